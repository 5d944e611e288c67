// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/proctest"
)

const domain = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"

// The test binary also is the copy process (`local fill JOBFILE`), the hook
// (`fulfil`, disks as JSON on stdin), so that each can be killed for real, and
// a fake lvm.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "lvm" {
		os.Exit(lvmtest.Main(os.Args[1:]))
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "local":
			os.Exit(exitCode(service().Fill(context.Background(), os.Args[3])))
		case "fulfil":
			os.Exit(exitCode(fulfil()))
		case "settle":
			os.Exit(exitCode(settle()))
		case "accept":
			os.Exit(exitCode(service().AcceptSource(context.Background(), domain, "vda", false)))
		case "raw":
			os.Exit(exitCode(toRaw()))
		case "gc":
			os.Exit(exitCode(gc()))
		case "discard":
			os.Exit(exitCode(discard()))
		case "adopt":
			os.Exit(exitCode(adopt()))
		case "export":
			os.Exit(exitCode(exportTo(os.Getenv("DISKHOOK_TEST_EXPORT"))))
		}
	}
	os.Exit(proctest.Main(m, "TestTemplateSurvivesACrashAtEveryPoint", "TestConvertSurvivesACrashAtEveryPoint",
		"TestAnyOrderOfEventsWithTemplatesKeepsTheGuestsData", "TestFirstStartSurvivesACrashAtEveryPoint",
		"TestFirstInstantStartSurvivesACrashAtEveryPoint", "TestSettleOfflineSurvivesACrashAtEveryPoint"))
}

func exitCode(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, failure.Line(err))
		return 1
	}
	return 0
}

// service works below DISKHOOK_ROOT, sources included.
func service() *localdisk.Service {
	layout := host.Layout{Root: os.Getenv("DISKHOOK_ROOT")}
	config := host.Defaults(layout)
	config.Paths.Roots = []string{layout.Root}
	config.Local.Reserve = 0
	config.Local.Cache = "off"
	if os.Getenv("DISKHOOK_TEST_DEVICES") != "" {
		config.Paths.Roots = append(config.Paths.Roots, "/dev")
	}
	if os.Getenv("DISKHOOK_TEST_CACHE") != "" {
		config.Local.Cache, config.Local.CacheMinAge = "auto", 0
	}
	if rate, err := strconv.Atoi(os.Getenv("DISKHOOK_TEST_RATE")); err == nil {
		config.Local.Rate = host.Size(rate)
	}
	if dir := os.Getenv("DISKHOOK_TEST_DIR"); dir != "" {
		config.Local.Dir = dir
	}
	if vg := os.Getenv("DISKHOOK_TEST_VG"); vg != "" {
		config.Local.VG = vg
	}
	if reserve, err := strconv.Atoi(os.Getenv("DISKHOOK_TEST_RESERVE")); err == nil {
		config.Local.Reserve = host.Size(reserve)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := &localdisk.Service{Layout: layout, Config: config, Run: command.System{Log: log}, Log: log, Program: os.Getenv("DISKHOOK_TEST_BINARY")}
	if os.Getenv("DISKHOOK_TEST_POOL") != "" {
		s.Thin = thePool()
	}
	return s
}

func fulfil() error {
	var disks []localdisk.Disk
	if err := json.NewDecoder(os.Stdin).Decode(&disks); err != nil {
		return err
	}
	placements, err := service().Fulfil(context.Background(), disks, localdisk.Waiting{Deadline: time.Minute})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(placements)
}

// world is one moved root: a three-layer chain to copy, and for the LVM
// backends a volume group.
type world struct {
	t       *testing.T
	backend string
	instant bool // its disk is bound with fill=instant
	lying   bool // its disk is bound with template=overlay
	root    string
	source  []imagecheck.Layer
	flat    string // the source's content, raw
}

func newWorld(t *testing.T, backend string) *world {
	t.Helper()
	w := &world{t: t, backend: backend, root: t.TempDir()}
	for _, dir := range []string{"etc", "tools", "lvm", "dev"} {
		must(t, os.MkdirAll(w.path(dir), 0o755))
	}
	exe, err := os.Executable()
	must(t, err)
	t.Setenv("DISKHOOK_ROOT", w.root)
	t.Setenv("DISKHOOK_TOOLS", w.path("tools"))
	t.Setenv("DISKHOOK_TEST_BINARY", exe)
	t.Setenv(lvmtest.EnvState, w.path("lvm"))
	t.Setenv(lvmtest.EnvDev, w.path("dev"))
	must(t, os.WriteFile(w.path("etc/machine-id"), []byte("0123456789abcdef0123456789abcdef\n"), 0o644))
	if backend == "thin" {
		t.Setenv("DISKHOOK_TEST_POOL", "1")
		t.Cleanup(func() { must(t, thePool().reboot()) })
	}
	if w.lvm() {
		must(t, os.Symlink(exe, w.path("tools/lvm")))
		must(t, lvmtest.Create(w.path("lvm"), "ovirt-local", "pool0", 256<<20))
		t.Cleanup(func() { must(t, lvmtest.Reboot(w.path("lvm"))) })
	}
	w.makeSource()
	t.Cleanup(w.awaitProcesses)
	return w
}

// awaitProcesses waits for copy processes for which no start waits any more:
// one that finds its copy made still looks at it.
func (w *world) awaitProcesses() {
	for range 400 {
		working := false
		names, err := filepath.Glob("/proc/[0-9]*/cmdline")
		must(w.t, err)
		for _, name := range names {
			argv, err := os.ReadFile(name)
			working = working || err == nil && bytes.Contains(argv, []byte("\x00fill\x00"+w.root+"/"))
		}
		if !working {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	w.t.Error("a copy process does not end")
}

func (w *world) makeSource() {
	base, mid, top := w.path("base.raw"), w.path("mid.qcow2"), w.path("top.qcow2")
	content := bytes.Repeat([]byte("the shared base, block by block. "), 64<<10)
	must(w.t, os.WriteFile(base, content[:len(content)/512*512], 0o644))
	w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, mid)
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x22 64k 128k", mid)
	w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", mid, top, "3M")
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x33 1M 64k", top)
	w.source = []imagecheck.Layer{{Path: top, Format: "qcow2"}, {Path: mid, Format: "qcow2"}, {Path: base, Format: "raw"}}
	w.flat = w.path("flat.raw")
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, w.flat)
}

// lvm says that the backend is one of LVM's.
func (w *world) lvm() bool { return strings.HasPrefix(w.backend, "lvm") }

func (w *world) path(name string) string { return filepath.Join(w.root, name) }

func (w *world) disk() localdisk.Disk {
	d := localdisk.Disk{Domain: domain, DomainName: "vm", Target: "vda", Backend: w.backend, OnStop: localdisk.Keep, Source: w.source, Create: true}
	if w.instant {
		d.Instant, d.Opened = true, "qcow2"
	}
	if w.lying {
		d.Template, d.Opened = true, "qcow2"
	}
	return d
}

// stable is the path that the domain's XML names.
func (w *world) stable() string { return w.path("run/diskhook/disks/" + domain + "/vda") }

// wroteRaw starts the disk, which is a raw copy, and writes to it. It returns a
// file of what is on it then.
func (w *world) wroteRaw() string {
	w.t.Helper()
	_, err := w.hook()
	must(w.t, err)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
	after := w.path("after.raw")
	w.tool("qemu-img", "convert", "-f", "raw", "-O", "raw", w.stable(), after)
	return after
}

// ready reports whether there is a complete copy, by what is on disk.
func (w *world) ready() bool {
	if w.backend == "dir" {
		_, err := os.Stat(w.path("var/lib/diskhook/local/dh_" + domain + "_vda.raw"))
		return err == nil
	}
	if w.backend == "thin" {
		label, err := thePool().labels.Of("dh_" + domain + "_vda")
		must(w.t, err)
		return label != nil && !slices.Contains(label.Tags, "UPDATING")
	}
	g, err := lvmtest.Load(w.path("lvm"))
	must(w.t, err)
	v := g.Volumes["dh_"+domain+"_vda"]
	for i := 0; v != nil && i < len(v.Tags); i++ {
		if v.Tags[i] == "UPDATING" {
			return false
		}
	}
	return v != nil
}

// content is where the copy's bytes are, active or not.
func (w *world) content() string {
	if w.backend == "dir" {
		return w.path("var/lib/diskhook/local/dh_" + domain + "_vda.raw")
	}
	if w.backend == "thin" {
		return w.path("pool/dh_" + domain + "_vda.img")
	}
	return w.path("lvm/dh_" + domain + "_vda.img")
}

// reboot takes away what does not survive one.
func (w *world) reboot() {
	if w.backend == "thin" {
		must(w.t, thePool().reboot())
	}
	must(w.t, os.RemoveAll(w.path("run")))
	if w.lvm() {
		must(w.t, lvmtest.Reboot(w.path("lvm")))
	}
}

// hook runs Fulfil in a process of its own.
func (w *world) hook(env ...string) (stdout string, err error) {
	w.t.Helper()
	disks, err := json.Marshal([]localdisk.Disk{w.disk()})
	must(w.t, err)
	cmd := exec.Command(os.Args[0], "fulfil")
	cmd.Stdin, cmd.Env = bytes.NewReader(disks), append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		lines := bytes.Split(bytes.TrimSpace(errs.Bytes()), []byte("\n"))
		return out.String(), fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	return out.String(), nil
}

// awaitUnlocked waits until no process that a killed one left behind, such as
// a writing qemu-img, holds the disk's lock.
func (w *world) awaitUnlocked() {
	w.t.Helper()
	for range 400 {
		if held, err := lock.Held(w.path("run/diskhook/lock"), "local-"+domain+"-vda"); err != nil || !held {
			must(w.t, err)
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	w.t.Fatal("the lock is never given up")
}

func (w *world) tool(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// same fails unless file has the given content, and zeros after it.
func (w *world) same(file, content string) {
	w.t.Helper()
	w.tool("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", file, content)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
