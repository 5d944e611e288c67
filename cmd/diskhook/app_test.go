// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/xmlrewrite"
)

func newProgram(args ...string) (*program, *strings.Builder, *strings.Builder) {
	var stdout, stderr strings.Builder
	return &program{args: append([]string{"diskhook"}, args...), stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr}, &stdout, &stderr
}

// walk calls visit for every command of the program.
func walk(commands []*cli.Command, visit func(*cli.Command)) {
	for _, c := range commands {
		visit(c)
		walk(c.Subcommands, visit)
	}
}

// What urfave/cli does wrong by itself is guarded against in every command.
func TestEveryCommandIsGuarded(t *testing.T) {
	p, _, _ := newProgram()
	walk(New(p).Commands, func(c *cli.Command) {
		if c.OnUsageError == nil || c.Action == nil {
			t.Errorf("%s: not guarded", c.Name)
		}
		for _, f := range c.Flags {
			if r, ok := f.(cli.RequiredFlag); ok && r.IsRequired() {
				t.Errorf("%s: flag %v is Required, which prints help to standard output", c.Name, f.Names())
			}
		}
	})
}

// Verbs that change something can be tried; those that print say how.
func TestVerbsHaveTheCommonFlags(t *testing.T) {
	p, _, _ := newProgram()
	mutating := []string{"apply", "revert", "rebind", "unbind", "prestage", "settle", "cancel", "recreate", "remove", "resize", "export", "adopt", "gc", "rewrite",
		"build", "verify", "resync", "replace", "forget", "accept", "define", "undefine", "attach", "detach", "reconcile",
		"create", "connect", "disconnect", "fix", "snapshot", "copy", "import", "annotate", "stop", "resume", "prepare", "release"}
	noOutput := []string{"rewrite", "check", "run", "fill", "serve", "helper", "work"}
	app := New(p)
	repoCheck := app.Command("repo").Command("check") // config check has no result
	thin := app.Command("thin")
	thinLooks := []string{"status", "monitor", "membership"} // all its other verbs change something, check too (--rebuild-map)
	walk(app.Commands, func(c *cli.Command) {
		if len(c.Subcommands) > 0 {
			return
		}
		has := func(name string) bool {
			return slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
		}
		ofThin := slices.Contains(thin.Subcommands, c)
		if got, want := has("dry-run"), slices.Contains(mutating, c.Name) && !ofThin || ofThin && !slices.Contains(thinLooks, c.Name); got != want {
			t.Errorf("%s: has --dry-run: %v, want %v", c.Name, got, want)
		}
		if got, want := has("output"), !slices.Contains(noOutput, c.Name) || c == repoCheck || ofThin; got != want {
			t.Errorf("%s: has --output: %v, want %v", c.Name, got, want)
		}
	})
}

func TestExitCodes(t *testing.T) {
	for _, kind := range failure.Kinds() {
		if exitCodes()[kind] < 2 {
			t.Errorf("%s has no exit code of its own", kind.Code)
		}
	}
	for name, tc := range map[string]struct {
		err    error
		code   int
		stderr string
	}{
		"ok":           {nil, 0, ""},
		"plain":        {errors.New("disk vda: broken"), 1, "diskhook: disk vda: broken\n"},
		"usage":        {failure.New(failure.Usage, "e"), 2, "diskhook: e\n"},
		"not found":    {failure.New(failure.NotFound, "e"), 3, "diskhook: e\n"},
		"conflict":     {fmt.Errorf("vm: %w", failure.New(failure.Conflict, "e")), 4, "diskhook: vm: e\n"},
		"temporary":    {failure.New(failure.Temporary, "e"), 5, "diskhook: e\n"},
		"deadline":     {fmt.Errorf("vm: %w", context.DeadlineExceeded), 5, "diskhook: vm: context deadline exceeded\n"},
		"no space":     {failure.New(failure.NoSpace, "e"), 6, "diskhook: e\n"},
		"precondition": {failure.Hint(failure.New(failure.Precondition, "e"), "do x"), 7, "diskhook: e\nhint: do x\n"},
		"problems":     {failure.New(failure.Problems, "e"), 8, "diskhook: e\n"},
		"would change": {wouldChange(), 10, ""},
		"outermost":    {failure.Wrap(failure.NoSpace, failure.New(failure.Conflict, "e")), 6, "diskhook: e\n"},
		"xml":          {fmt.Errorf("vm.xml: %w", xmlrewrite.ErrDTD), 2, "diskhook: vm.xml: " + xmlrewrite.ErrDTD.Error() + "\n"},
		"unsupported":  {xmlrewrite.ErrUnsupported, 7, "diskhook: " + xmlrewrite.ErrUnsupported.Error() + "\n"},
		"forged line":  {errors.New("domain a\ndiskhook: all is well\x1b[2J"), 1, "diskhook: domain a diskhook: all is well [2J\n"},
	} {
		t.Run(name, func(t *testing.T) {
			p, stdout, stderr := newProgram("x")
			if got := p.finish(t.Context(), tc.err); got != tc.code {
				t.Errorf("exit %d, want %d", got, tc.code)
			}
			if diff := cmp.Diff(tc.stderr, stderr.String()); diff != "" || stdout.Len() > 0 {
				t.Errorf("stdout %q, stderr: %s", stdout, diff)
			}
		})
	}
}

func TestErrorsAsJSON(t *testing.T) {
	p, _, stderr := newProgram("local", "list", "-o", "json")
	err := failure.Hint(failure.New(failure.NoSpace, "vg x: full\nno"), "run `y`")
	if code := p.finish(t.Context(), err); code != 6 {
		t.Errorf("exit %d", code)
	}
	want := `{"type":"error","code":"no_space","message":"vg x: full no","hint":"run ` + "`y`" + `"}` + "\n"
	if diff := cmp.Diff(want, stderr.String()); diff != "" {
		t.Error(diff)
	}
}

func TestSignalsEndWith128AndTheirNumber(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(stopped{sig})
		p, _, stderr := newProgram()
		if got := p.finish(ctx, fmt.Errorf("copy: %w", ctx.Err())); got != want {
			t.Errorf("%v: exit %d, want %d (%s)", sig, got, want, stderr)
		}
	}
}

func TestWantsJSON(t *testing.T) {
	for line, want := range map[string]bool{
		"local list -o json": true, "local list --output json": true, "local list -o=json": true, "--output=json x": true,
		"local list": false, "local list -o table": false, "show -- -o json": false, "show json": false, "-o": false,
	} {
		if got := wantsJSON(strings.Fields(line)); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

// Every setting of the configuration is shown, with what it means.
func TestSettingsAreComplete(t *testing.T) {
	shown := map[string]bool{}
	for _, s := range settings(host.Defaults(host.Layout{})) {
		shown[s.Key] = true
		if s.Meaning == "" {
			t.Errorf("%s: what does it mean?", s.Key)
		}
	}
	config := reflect.TypeFor[host.Config]()
	for i := range config.NumField() {
		section := config.Field(i)
		if section.Type.Kind() != reflect.Struct {
			continue // rules
		}
		for j := range section.Type.NumField() {
			key := section.Tag.Get("toml") + "." + section.Type.Field(j).Tag.Get("toml")
			if !shown[key] {
				t.Errorf("%s is not shown", key)
			}
			delete(shown, key)
		}
	}
	for key := range shown {
		t.Errorf("%s is no setting", key)
	}
}

func TestHarmless(t *testing.T) {
	for in, want := range map[string]string{
		"vm": "vm", "a b": "a b", "ü": "ü", "a\nb": `a\nb`, "\x1b[2Jx": `\x1b[2Jx`, "a\tb\"c": `a\tb"c`, "\u202eevil": `\u202eevil`,
	} {
		if got := harmless(in); got != want {
			t.Errorf("harmless(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHookCall(t *testing.T) {
	name := "-rf\n../x"
	c, ok := hookCall([]string{"diskhook", "hook", "run", "--", "libvirt", name, "prepare", "begin", "-"})
	if !ok || c.libvirt.Domain != name || c.libvirt.Op != "prepare" || c.libvirt.SubOp != "begin" || c.libvirt.Extra != "-" {
		t.Errorf("got %+v, %v", c.libvirt, ok)
	}
	if c, ok := hookCall([]string{"diskhook", "hook", "run", "--", "vdsm", "before_vm_start"}); !ok || c.vdsm.Point != "before_vm_start" {
		t.Errorf("got %+v, %v", c.vdsm, ok)
	}
	for _, bad := range []string{"hook run", "hook run libvirt a b c d", "hook run -- libvirt a b c", "hook run -- vdsm a b", "hook run -- x", "local list"} {
		if _, ok := hookCall(append([]string{"diskhook"}, strings.Fields(bad)...)); ok {
			t.Errorf("%q is taken for a hook", bad)
		}
	}
}
