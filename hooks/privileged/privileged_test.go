// SPDX-License-Identifier: Apache-2.0

package privileged_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/hooks/privileged"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

func TestMain(m *testing.M) { os.Exit(hooktest.Main(m)) }

var _ bindings.Local = (*privileged.Client)(nil)

const (
	domain = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	image  = "c9865ca8-f6d2-4363-bec2-af870a87a819"
	volume = "1dfad482-c65c-436c-aa59-87e020b63302"
)

// owner is whom copies are given to: as root vdsm:qemu, else ourselves.
func owner() *localdisk.Owner {
	if os.Geteuid() == 0 {
		return &localdisk.Owner{UID: 36, GID: 107}
	}
	return &localdisk.Owner{UID: os.Geteuid(), GID: os.Getegid()}
}

// newServer works below the root of a world.
func newServer(t *testing.T) (*hooktest.World, *privileged.Server) {
	w := hooktest.New(t, nil)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return w, &privileged.Server{Service: &localdisk.Service{
		Layout: w.Layout, Config: w.Config, Run: command.System{}, Log: slog.New(slog.DiscardHandler), Program: exe,
		Owner: owner(),
	}}
}

// loop is a runner that hands sudo's argv and stdin to a server in place of
// running anything.
type loop struct {
	*privileged.Server
	argv   [][]string
	stderr bytes.Buffer
}

func (l *loop) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	l.argv = append(l.argv, cmd.Argv())
	var out bytes.Buffer
	if !l.Serve(ctx, cmd.Args[2:], cmd.Stdin, &out, &l.stderr) {
		return command.Result{Stdout: out.Bytes()}, &command.Error{Argv: cmd.Argv(), Code: 1}
	}
	return command.Result{Stdout: out.Bytes()}, nil
}

func disk(w *hooktest.World) localdisk.Disk {
	return localdisk.Disk{
		Domain: domain, Target: "sda", Image: image, Volume: volume, Backend: "dir", OnStop: localdisk.Discard, Create: true,
		Source: []imagecheck.Layer{{Path: w.Path("images/top.qcow2"), Format: "qcow2"}, {Path: w.Path("images/mid.qcow2"), Format: "qcow2"}, {Path: w.Path("images/base.raw"), Format: "raw"}},
	}
}

// TestBothEnds takes a real copy through every verb.
func TestBothEnds(t *testing.T) {
	w, server := newServer(t)
	want := w.Chain("images")
	wire := &loop{Server: server}
	c := privileged.NewClient(wire, w.Layout, w.Config)
	ctx := t.Context()

	observed, err := c.Observe(ctx, []localdisk.Disk{disk(w)})
	if err != nil || len(observed) != 1 || observed[0].Copy.State != localdisk.Absent || observed[0].Machine != hooktest.Machine {
		t.Fatalf("%+v, %v", observed, err)
	}
	if d := localdisk.Decide(observed[0]); d.Action != localdisk.Create {
		t.Errorf("decided %v", d)
	} else if lines := c.Commands(ctx, observed[0], d); len(lines) == 0 {
		t.Error("no commands for a dry run")
	}
	placements, err := c.Fulfil(ctx, []localdisk.Disk{disk(w)}, localdisk.Waiting{})
	if err != nil {
		t.Fatal(failure.Line(err))
	}
	path := w.Path("var/lib/diskhook/local/" + volume + ".raw")
	if len(placements) != 1 || placements[0].Path != path || placements[0].Block {
		t.Errorf("%+v", placements)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.HasPrefix(got, want) {
		t.Errorf("content: %v", err)
	}
	if !strings.Contains(wire.stderr.String(), `{"disk":"sda","status":{`) {
		t.Errorf("no progress on stderr: %q", wire.stderr.String())
	}
	if st, err := os.Stat(path); err != nil || *owner() != (localdisk.Owner{UID: int(st.Sys().(*syscall.Stat_t).Uid), GID: int(st.Sys().(*syscall.Stat_t).Gid)}) {
		t.Errorf("the copy is not given to %v: %v, %v", *owner(), st, err)
	}
	if err := c.SetOwner(ctx, placements[0], owner().UID, owner().GID); err != nil {
		t.Error(err)
	}
	if err := c.MarkSaved(ctx, domain); err != nil || !localdisk.Saved(w.Layout, domain) {
		t.Errorf("mark: %v", err)
	}
	if err := c.Release(ctx, domain, []localdisk.Disk{disk(w)}, "destroyed"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("saved, and discarded: %v", err)
	}
	if err := c.ClearSaved(ctx, domain); err != nil || localdisk.Saved(w.Layout, domain) {
		t.Errorf("clear: %v", err)
	}
	if diff := cmp.Diff([]string{"sudo", "-n", privileged.Helper, "local", "observe"}, wire.argv[0]); diff != "" {
		t.Error(diff)
	}
}

// TestFailuresSurvive: kind, text and hint are the same on both ends.
func TestFailuresSurvive(t *testing.T) {
	w, server := newServer(t)
	c := privileged.NewClient(&loop{Server: server}, w.Layout, w.Config)
	d := disk(w)
	d.Create = false
	direct := func() error {
		_, err := server.Service.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
		return err
	}()
	_, through := c.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
	if direct == nil || through == nil {
		t.Fatal("an absent copy was fulfilled")
	}
	if failure.Line(direct) != failure.Line(through) || failure.KindOf(direct) != failure.KindOf(through) {
		t.Errorf("direct  %v %s\nthrough %v %s", failure.KindOf(direct), failure.Line(direct), failure.KindOf(through), failure.Line(through))
	}
}

// TestMaliciousRequests are refused before anything is looked at or made.
func TestMaliciousRequests(t *testing.T) {
	w, server := newServer(t)
	w.Write("secret", "root's")
	good := func(change func(map[string]any)) string {
		b, err := json.Marshal(disk(w))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, _ = json.Marshal(map[string]any{"disks": []any{m}})
		return string(b)
	}
	set := func(key string, v any) string { return good(func(m map[string]any) { m[key] = v }) }
	source := func(path, format string) string {
		return set("source", []any{map[string]any{"path": path, "format": format}})
	}
	node := func(path string) string {
		b, _ := json.Marshal(map[string]any{"placement": map[string]any{"target": "sda", "node": path}, "uid": owner().UID, "gid": owner().GID})
		return string(b)
	}
	before := w.Files("")
	for name, c := range map[string]struct {
		verb, request string
		kind          *failure.Kind
	}{
		"no verb":                  {"", "{}", failure.Usage},
		"unknown verb":             {"local rm", "{}", failure.Usage},
		"half a verb":              {"local", "{}", failure.Usage},
		"verb and more":            {"local observe --force", "{}", failure.Usage},
		"empty":                    {"local fulfil", "", failure.Usage},
		"not JSON":                 {"local fulfil", "rm -rf /", failure.Usage},
		"two documents":            {"local fulfil", good(func(map[string]any) {}) + "{}", failure.Usage},
		"unknown field":            {"local fulfil", `{"disks":[],"config":{}}`, failure.Usage},
		"unknown field of a disk":  {"local fulfil", set("vg", "root"), failure.Usage},
		"huge":                     {"local fulfil", strings.Repeat(" ", 2<<20) + "{}", failure.Usage},
		"no disks":                 {"local fulfil", `{"disks":[]}`, failure.Usage},
		"too many disks":           {"local fulfil", `{"disks":[` + strings.Repeat("{},", 300) + `{}]}`, failure.Usage},
		"twice the same":           {"local fulfil", strings.Replace(good(func(map[string]any) {}), "}]}", "},"+good(func(map[string]any) {})[len(`{"disks":[`):], 1), failure.Usage},
		"no oVirt disk":            {"local fulfil", good(func(m map[string]any) { delete(m, "image"); delete(m, "volume") }), failure.Usage},
		"domain as path":           {"local fulfil", set("domain", "../../../etc"), failure.Usage},
		"target as option":         {"local fulfil", set("target", "--force"), failure.Usage},
		"target as path":           {"local fulfil", set("target", "../sda"), failure.Usage},
		"image as path":            {"local fulfil", set("image", "../../shadow"), failure.Usage},
		"volume as option":         {"local fulfil", set("volume", "-f"), failure.Usage},
		"volume of another's name": {"local fulfil", set("volume", "root"), failure.Usage},
		"backend":                  {"local fulfil", set("backend", "/bin/sh"), failure.Usage},
		"on-stop":                  {"local fulfil", set("on_stop", "destroy"), failure.Usage},
		"negative deadline":        {"local fulfil", strings.Replace(good(func(map[string]any) {}), `{"disks"`, `{"deadline_ms":-1,"disks"`, 1), failure.Usage},
		"a huge name":              {"local fulfil", set("domain_name", strings.Repeat("x", 5000)), failure.Usage},
		"source outside":           {"local fulfil", source("/etc/shadow", "raw"), failure.Precondition},
		"source climbs out":        {"local fulfil", source(w.Root+"/../etc/shadow", "raw"), failure.Usage},
		"source beside the root":   {"local fulfil", source(w.Root+"-evil/x", "raw"), failure.Precondition},
		"source by protocol":       {"local fulfil", source("nbd://evil/x", "raw"), failure.Usage},
		"source as json:":          {"local fulfil", source(`json:{"driver":"file"}`, "raw"), failure.Usage},
		"source of odd format":     {"local fulfil", source(w.Path("secret"), "vmdk"), failure.Usage},
		"source of no format":      {"local fulfil", source(w.Path("secret"), ""), failure.Usage},
		"observe outside":          {"local observe", source("/etc/shadow", "raw"), failure.Precondition},
		"release another's":        {"local release", strings.Replace(good(func(map[string]any) {}), `{"disks"`, `{"domain":"`+image+`","reason":"destroyed","disks"`, 1), failure.Usage},
		"release: a path":          {"local release-rest", `{"domain":"../../x"}`, failure.Usage},
		"saved: path":              {"local mark-saved", `{"domain":"../../x"}`, failure.Usage},
		"saved: empty":             {"local clear-saved", `{"domain":""}`, failure.Usage},
		"own /etc/shadow":          {"local owner", node("/etc/shadow"), failure.Usage},
		"own the directory":        {"local owner", node(w.Path("var/lib/diskhook/local")), failure.Usage},
		"own a climb":              {"local owner", node(w.Path("var/lib/diskhook/local") + "/../../../../secret"), failure.Usage},
		"own a sidecar":            {"local owner", node(w.Path("var/lib/diskhook/local/" + volume + ".json")), failure.Usage},
		"own another volume":       {"local owner", node("/dev/ovirt-local/root"), failure.Usage},
		"own an odd uuid":          {"local owner", node("/dev/ovirt-local/" + strings.ToUpper(volume)), failure.Usage},
		"own a disk":               {"local owner", node("/dev/sda"), failure.Usage},
		"own for somebody else":    {"local owner", strings.Replace(node("/dev/ovirt-local/"+volume), `"uid":`, `"uid":9`, 1), failure.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			var out, log bytes.Buffer
			if server.Serve(t.Context(), strings.Fields(c.verb), strings.NewReader(c.request), &out, &log) {
				t.Fatalf("done: %s", out.String())
			}
			var r struct {
				Error struct{ Code, Message, Hint string }
			}
			if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Error.Code != c.kind.Code || r.Error.Message == "" {
				t.Errorf("%v: %s", err, out.String())
			}
			if strings.Count(out.String(), "\n") != 1 {
				t.Errorf("more than one line: %q", out.String())
			}
		})
	}
	if diff := cmp.Diff(before, w.Files("")); diff != "" {
		t.Errorf("something was made: %s", diff)
	}
}

// TestUnheard: the helper cannot be run, or says something else.
func TestUnheard(t *testing.T) {
	for name, c := range map[string]struct {
		stdout string
		err    error
		kind   *failure.Kind
		word   string
	}{
		"no sudoers": {"", &command.Error{Argv: []string{"sudo", "-n"}, Code: 1, Stderr: "sudo: a password is required"}, failure.Precondition, "password is required"},
		"garbage":    {"hello", nil, failure.Precondition, "diskhook-helper"},
		"crashed":    {"", &command.Error{Argv: []string{"sudo"}, Code: 2, Stderr: "panic: x"}, failure.Precondition, "panic"},
		"timed out":  {"", &command.Error{Argv: []string{"sudo"}, Code: -1, Err: context.DeadlineExceeded}, failure.Temporary, "took too long"},
		"a new kind": {`{"error":{"code":"novel","message":"something else","hint":"do that"}}`, errors.New("exit 1"), nil, "do that"},
	} {
		client := privileged.NewClient(answer{c.stdout, c.err}, host.Layout{}, host.Config{})
		_, err := client.Fulfil(t.Context(), nil, localdisk.Waiting{})
		if err == nil || failure.KindOf(err) != c.kind || !strings.Contains(failure.Line(err), c.word) {
			t.Errorf("%s: %v: %s", name, failure.KindOf(err), failure.Line(err))
		}
	}
}

type answer struct {
	stdout string
	err    error
}

func (a answer) Run(context.Context, command.Cmd) (command.Result, error) {
	return command.Result{Stdout: []byte(a.stdout)}, a.err
}

func TestLoadConfig(t *testing.T) {
	me := uint32(os.Geteuid())
	const content = "[local]\nvg = \"fast\"\n"
	for name, c := range map[string]struct {
		prepare func(path string) error
		owner   uint32
		kind    *failure.Kind
		vg      string
	}{
		"none":             {func(string) error { return nil }, me, nil, "ovirt-local"},
		"good":             {func(p string) error { return os.WriteFile(p, []byte(content), 0o644) }, me, nil, "fast"},
		"unknown key":      {func(p string) error { return os.WriteFile(p, []byte(content+"odd = 1\n"), 0o644) }, me, failure.Usage, "fast"},
		"group can write":  {func(p string) error { return errors.Join(os.WriteFile(p, []byte(content), 0o644), os.Chmod(p, 0o664)) }, me, failure.Precondition, ""},
		"world can write":  {func(p string) error { return errors.Join(os.WriteFile(p, []byte(content), 0o644), os.Chmod(p, 0o646)) }, me, failure.Precondition, ""},
		"of somebody else": {func(p string) error { return os.WriteFile(p, []byte(content), 0o644) }, me + 1, failure.Precondition, ""},
		"a link": {func(p string) error {
			return errors.Join(os.WriteFile(p+".real", []byte(content), 0o644), os.Symlink(p+".real", p))
		}, me, failure.Precondition, ""},
		"directory writable": {func(p string) error { return os.Chmod(filepath.Dir(p), 0o777) }, me, failure.Precondition, ""},
	} {
		t.Run(name, func(t *testing.T) {
			layout := host.Layout{Root: t.TempDir()}
			if err := errors.Join(os.MkdirAll(filepath.Dir(layout.Config()), 0o755), c.prepare(layout.Config())); err != nil {
				t.Fatal(err)
			}
			config, err := privileged.LoadConfig(layout, c.owner)
			if failure.KindOf(err) != c.kind || (err == nil) != (c.kind == nil) || config.Local.VG != c.vg {
				t.Errorf("%v, vg %q", err, config.Local.VG)
			}
			if c.kind == failure.Precondition && failure.HintOf(err) == "" {
				t.Errorf("no way out: %v", err)
			}
		})
	}
}
