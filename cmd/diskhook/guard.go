// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
)

// guard makes the command line strict. urfave/cli v2 by itself
//
//  1. drops options that come after arguments,
//  2. prints usage errors and the help that goes with them to standard output,
//  3. exits with 3 in the middle of Run for an unknown command,
//  4. exits by itself for errors that know a code,
//  5. answers a missing required flag with help on standard output and 1,
//  6. splits the values of repeated flags at commas.
//
// Here all of these are failure.Usage, said once, on standard error. Required
// flags and arguments are checked by the actions, which therefore never set
// Required.
func guard(p *program, app *cli.App) {
	app.HideVersion = true
	app.HideHelpCommand = true
	app.EnableBashCompletion = true
	app.UseShortOptionHandling = true
	app.DisableSliceFlagSeparator = true
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.CommandNotFound = func(*cli.Context, string) {}
	app.OnUsageError = usageError
	quiet(app.Flags)
	for _, c := range app.Commands {
		guardCommand(p, c)
	}
}

func guardCommand(p *program, c *cli.Command) {
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	c.UseShortOptionHandling = true
	quiet(c.Flags)
	for _, sub := range c.Subcommands {
		guardCommand(p, sub)
	}
	switch act := c.Action; {
	case act != nil:
		c.Action = func(ctx *cli.Context) error {
			if err := lateOption(ctx.Args().Slice(), afterDashes(args(p))); err != nil {
				return err
			}
			return act(ctx)
		}
	case len(c.Subcommands) > 0:
		c.Action = noVerb
	}
}

// quiet keeps "(default: false)" out of help.
func quiet(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = true
		}
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	return see(c, failure.Wrap(failure.Usage, err))
}

// see adds where the usage of the command at hand is told.
func see(c *cli.Context, err error) error {
	return failure.Hint(err, "see `%s --help`", c.Command.HelpName)
}

// noVerb is the action of everything that needs another word.
func noVerb(c *cli.Context) error {
	commands := c.Command.Subcommands
	if len(commands) == 0 {
		commands = c.App.Commands
	}
	var names []string
	for _, known := range commands {
		if !known.Hidden {
			names = append(names, known.Name)
		}
	}
	err := failure.New(failure.Usage, "say what to do")
	if word := c.Args().First(); word != "" {
		err = failure.New(failure.Usage, "%s: there is no %q", c.Command.HelpName, word)
	}
	return failure.Hint(err, "one of %s; see `%s --help`", strings.Join(names, ", "), c.Command.HelpName)
}

// lateOption refuses an option that follows an argument. protected is the
// number of words that follow "--".
func lateOption(words []string, protected int) error {
	for _, word := range words[:max(0, len(words)-protected)] {
		if len(word) > 1 && word[0] == '-' && word != "--" {
			err := failure.New(failure.Usage, "%q: options go before arguments", word)
			return failure.Hint(err, "move it before the first argument, or write -- before a name that begins with -")
		}
	}
	return nil
}

// afterDashes counts the words after the first "--".
func afterDashes(args []string) int {
	i := slices.Index(args, "--")
	if i < 0 {
		return 0
	}
	return len(args) - i - 1
}

// beforeDashes returns the words that may be options.
func beforeDashes(args []string) []string { return args[:len(args)-afterDashes(args)] }

// asksForHelp: help that was asked for is data and goes to standard output, as
// do the words that a shell asks for to complete a line.
func asksForHelp(args []string) bool {
	return slices.ContainsFunc(beforeDashes(args), func(a string) bool { return a == "-h" || a == "--help" }) ||
		len(args) > 0 && args[len(args)-1] == "--generate-bash-completion"
}

// wantsJSON finds -o json in every spelling that urfave/cli takes, since an
// error may come before it has parsed anything.
func wantsJSON(args []string) bool {
	args = beforeDashes(args)
	for i, a := range args {
		switch name, value, joined := strings.Cut(strings.TrimLeft(a, "-"), "="); {
		case !strings.HasPrefix(a, "-") || name != "o" && name != "output":
		case joined && value == "json", !joined && i+1 < len(args) && args[i+1] == "json":
			return true
		}
	}
	return false
}

// operands returns exactly the arguments that names ask for. A name in
// brackets may be left out, which gives "".
func operands(c *cli.Context, names ...string) ([]string, error) {
	words := withoutDashes(c)
	required := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, "[") })
	if required < 0 {
		required = len(names)
	}
	switch {
	case len(words) < required:
		return nil, see(c, failure.New(failure.Usage, "%s is missing", names[len(words)]))
	case len(words) > len(names):
		return nil, see(c, failure.New(failure.Usage, "one argument too many: %q", words[len(names)]))
	}
	for i, w := range words {
		if w == "" {
			return nil, see(c, failure.New(failure.Usage, "%s is empty", strings.Trim(names[i], "[]")))
		}
	}
	return append(words, make([]string, len(names)-len(words))...), nil
}

// operandList returns all arguments, of which there may be none.
func operandList(c *cli.Context, name string) ([]string, error) {
	words := withoutDashes(c)
	if slices.Contains(words, "") {
		return nil, see(c, failure.New(failure.Usage, "%s is empty", name))
	}
	return words, nil
}

// withoutDashes are the arguments without the "--" before those that may look
// like options.
func withoutDashes(c *cli.Context) []string {
	words := c.Args().Slice()
	if i := slices.Index(words, "--"); i >= 0 {
		words = slices.Delete(words, i, i+1)
	}
	return words
}
