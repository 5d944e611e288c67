// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/quorum"
)

// The test binary also is a fake lvm, and a verb in a process of its own, so
// that it can be killed for real: `verb JOB`, the job as JSON.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "lvm" {
		os.Exit(lvmtest.Main(os.Args[1:]))
	}
	if len(os.Args) > 3 && os.Args[1] == "quorum" && os.Args[2] == "serve" {
		os.Exit(serve(os.Args[3]))
	}
	if len(os.Args) > 2 && os.Args[1] == "verb" {
		var j job
		err := json.Unmarshal([]byte(os.Args[2]), &j)
		if err == nil {
			err = j.run(context.Background(), service(os.Stderr))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, failure.Line(err))
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve is `diskhook quorum serve`.
func serve(name string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := service(os.Stderr).Serve(ctx, name); err != nil {
		fmt.Fprintln(os.Stderr, failure.Line(err))
		return 1
	}
	return 0
}

// job is one verb; the one that is set.
type job struct {
	Build   *quorum.Building
	Resync  *quorum.Resyncing
	Replace *quorum.Replacing
	Remove  *bool
	Export  string // to a raw file
	Start   bool
	Stop    bool
}

// vda uses the set in tests.
var vda = quorum.Use{Domain: "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", Target: "vda", Name: "vm1"}

func (j job) run(ctx context.Context, s *quorum.Service) error {
	var err error
	switch {
	case j.Build != nil:
		_, err = s.Build(ctx, *j.Build)
	case j.Resync != nil:
		_, err = s.Resync(ctx, "db", *j.Resync)
	case j.Replace != nil:
		_, err = s.Replace(ctx, "db", *j.Replace)
	case j.Export != "":
		err = s.Export(ctx, "db", j.Export, "raw", nil)
	case j.Start:
		_, err = s.Start(ctx, "db", vda, 30*time.Second)
	case j.Stop:
		err = s.Stop(ctx, "db", vda)
	case j.Remove != nil:
		if err = s.Remove(ctx, "db", *j.Remove); errors.Is(err, failure.NotFound) {
			err = nil // it was gone already
		}
	}
	return err
}

// service works below DISKHOOK_ROOT.
func service(log io.Writer) *quorum.Service {
	layout := host.Layout{Root: os.Getenv("DISKHOOK_ROOT")}
	config := host.Defaults(layout)
	config.Paths.Roots = []string{layout.Root}
	config.Quorum.HangTimeout = host.Duration(hangTimeout)
	if dev := os.Getenv(lvmtest.EnvDev); dev != "" {
		config.Paths.Roots = append(config.Paths.Roots, "/dev")
	}
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return &quorum.Service{Layout: layout, Config: config, Run: command.System{Log: logger}, Log: logger, Program: os.Args[0], Watcher: inbox{layout.Root}}
}

const (
	diskSize    = 8 << 20
	hangTimeout = 2 * time.Second
)

// world is a moved root with a source to build from.
type world struct {
	*testing.T
	root   string
	source []imagecheck.Layer
	flat   string // the source's content, raw
	*quorum.Service
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, root: t.TempDir()}
	t.Setenv("DISKHOOK_ROOT", w.root)
	must(t, os.MkdirAll(w.path("etc"), 0o755))
	base, top := w.path("base.raw"), w.path("top.qcow2")
	content := bytes.Repeat([]byte("the base, block by block. "), 40<<10)
	must(t, os.WriteFile(base, content[:1<<20], 0o644))
	w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top, fmt.Sprint(diskSize))
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x33 3M 192k", top)
	w.source = []imagecheck.Layer{{Path: top, Format: "qcow2"}, {Path: base, Format: "raw"}}
	w.flat = w.path("flat.raw")
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, w.flat)
	var log strings.Builder
	w.Service = service(&log)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.root, name) }

// file is a replica in a file.
func (w *world) file(name, format string) quorum.Layer {
	w.Helper()
	l, err := quorum.ParseReplica(w.path(name), format)
	must(w.T, err)
	return l
}

// building is of three replicas: two raw files and a qcow2 one.
func (w *world) building() quorum.Building {
	return quorum.Building{Name: "db", Threshold: 2, From: w.source, Replicas: []quorum.Layer{
		w.file("a.raw", "raw"), w.file("b.qcow2", "qcow2"), w.file("c.raw", "raw"),
	}}
}

// built is a world with the set db.
func built(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	_, err := w.Build(t.Context(), w.building())
	must(t, err)
	return w
}

func (w *world) tool(name string, args ...string) string {
	w.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		w.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// spoil writes a pattern into a replica behind everybody's back.
func (w *world) spoil(id, pattern, offset, length string) {
	w.Helper()
	top := w.replica(id).Top()
	w.tool("qemu-io", "-f", top.Format, "-c", fmt.Sprintf("write -q -P %s %s %s", pattern, offset, length), top.Path)
}

func (w *world) replica(id string) quorum.Replica {
	w.Helper()
	set, err := w.Load("db")
	must(w.T, err)
	r, ok := set.Replica(id)
	if !ok {
		w.Fatalf("no replica %s in %v", id, set.IDs())
	}
	return r
}

// holds fails unless all replicas of the set have the content of flat.
func (w *world) holds(flat string) {
	w.Helper()
	set, err := w.Load("db")
	must(w.T, err)
	for _, r := range set.Replicas {
		w.same(r, flat)
	}
}

func (w *world) same(r quorum.Replica, flat string) {
	w.Helper()
	w.tool("qemu-img", "compare", "-q", "-f", r.Top().Format, "-F", "raw", r.Top().Path, flat)
}

// decision is what a start would do.
func (w *world) decision() quorum.Decision {
	w.Helper()
	set, err := w.Load("db")
	must(w.T, err)
	d, _, err := w.Decide(w.Context(), set)
	must(w.T, err)
	return d
}

// opens fails unless a start would open exactly these replicas.
func (w *world) opens(ids ...string) {
	w.Helper()
	d := w.decision()
	if d.Veto != nil || strings.Join(d.Open, " ") != strings.Join(ids, " ") {
		w.Fatalf("opens %v, veto %v, want %v", d.Open, d.Veto, ids)
	}
}

// refused fails unless err is of that kind and its line has all the words.
func (w *world) refused(err error, kind *failure.Kind, words ...string) {
	w.Helper()
	if err == nil {
		w.Fatal("it was not refused")
	}
	line := failure.Line(err)
	if failure.KindOf(err) != kind {
		w.Errorf("refused with kind %v, want %v: %s", failure.KindOf(err), kind, line)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			w.Errorf("the line lacks %q: %s", word, line)
		}
	}
}

// verb runs a job in a process of its own.
func (w *world) verb(j job, env ...string) error {
	w.Helper()
	defer w.awaitFree()
	return w.verbNow(j, env...)
}

// verbNow is verb for one that may leave a daemon behind on purpose.
func (w *world) verbNow(j job, env ...string) error {
	w.Helper()
	arg, err := json.Marshal(j)
	must(w.T, err)
	cmd := exec.CommandContext(w.Context(), os.Args[0], "verb", string(arg))
	cmd.Env = append(os.Environ(), env...)
	// One that hangs says where.
	late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer late.Stop()
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("SIGQUIT")) {
		w.Fatalf("it hangs: %s", out)
	}
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		err = fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	return err
}

// awaitFree waits until the daemons of a killed verb have gone.
func (w *world) awaitFree() {
	w.Helper()
	for range 400 {
		held, err := lock.Held(w.path("run/diskhook/lock"), "quorum-db")
		must(w.T, err)
		if !held {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	w.Fatal("the lock is never given up")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
