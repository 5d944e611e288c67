// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// TestManual finds every verb and every flag of the program in its manual,
// and no verb in the manual that the program does not have.
func TestManual(t *testing.T) {
	page := readManual(t, "diskhook.8")
	common, _, found := strings.Cut(page, "\n.Ss domain:")
	if !found {
		t.Fatal("the manual has no section of the noun domain")
	}
	entries := manualEntries(page)

	verbs := map[string]*cli.Command{}
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			name := strings.TrimSpace(path + " " + c.Name)
			switch {
			case c.Hidden || c.Name == "help":
			case len(c.Subcommands) > 0:
				walk(name, c.Subcommands)
			default:
				verbs[name] = c
			}
		}
	}
	app := New(&program{args: []string{"diskhook"}, stdout: os.Stdout, stderr: os.Stderr})
	walk("", app.Commands)

	if diff := cmp.Diff(slices.Sorted(maps.Keys(verbs)), slices.Sorted(maps.Keys(entries))); diff != "" {
		t.Errorf("verbs (-program +manual):\n%s", diff)
	}
	for verb, command := range verbs {
		synopsis, _, _ := strings.Cut(entries[verb], "\n")
		for _, bundle := range regexp.MustCompile(`Fl ([a-z]+)`).FindAllStringSubmatch(synopsis, -1) {
			for letter := range strings.SplitSeq(bundle[1], "") {
				if !slices.ContainsFunc(command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), letter) }) {
					t.Errorf("%s has no -%s", verb, letter)
				}
			}
		}
		for _, flag := range command.Flags {
			names := flag.Names()
			short, long := "", names[0]
			if len(names) > 1 {
				short = names[1]
			}
			entry := entries[verb]
			switch {
			case long == "help":
			// A common option is told once; the verb has its letter.
			case short != "" && strings.Contains(common, "Fl -"+long+"\n"), short != "" && strings.Contains(common, "Fl -"+long+" "):
				if !regexp.MustCompile(`Fl [a-z]*` + short).MatchString(entry) {
					t.Errorf("%s: -%s (--%s) is missing", verb, short, long)
				}
			case !strings.Contains(entry, "-"+long):
				t.Errorf("%s: --%s is missing", verb, long)
			case short != "" && !strings.Contains(entry, "Fl "+short+" "):
				t.Errorf("%s: -%s is missing", verb, short)
			}
		}
	}
	for _, flag := range app.Flags {
		if !strings.Contains(common, "Fl -"+flag.Names()[0]) {
			t.Errorf("--%s is missing", flag.Names()[0])
		}
	}
}

// TestManualHasExitCodes finds each code in the table of EXIT STATUS.
func TestManualHasExitCodes(t *testing.T) {
	_, status, found := strings.Cut(readManual(t, "diskhook.8"), ".Sh EXIT STATUS")
	if !found {
		t.Fatal("no section EXIT STATUS")
	}
	for _, code := range append(slices.Collect(maps.Values(exitCodes())), exitOK, exitFailure) {
		if !strings.Contains(status, ".It "+strconv.Itoa(code)+"\n") {
			t.Errorf("exit code %d is missing", code)
		}
	}
	for _, name := range []string{"qemu-hook.8", "diskhook-helper.8", "diskhook.toml.5"} {
		if !strings.Contains(readManual(t, name), "\n.Sh EXIT STATUS\n") {
			t.Errorf("%s: no section EXIT STATUS", name)
		}
	}
}

// manualEntries are the items of the manual that describe a verb, by its name.
func manualEntries(page string) map[string]string {
	page, _, _ = strings.Cut(page, "\n.Sh BINDINGS")
	_, page, _ = strings.Cut(page, "\n.Ss domain:")
	entries := map[string]string{}
	for _, item := range strings.Split(page, "\n.It Cm ")[1:] {
		words := strings.Fields(item)
		end := slices.IndexFunc(words, func(w string) bool { return !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(w) })
		name := words[0]
		if end > 1 {
			name += " " + words[1]
		}
		entries[name] = item
	}
	return entries
}

func readManual(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile("../../contrib/man/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}
