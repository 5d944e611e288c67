// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package lvm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// inGuest is set where this test binary runs itself in the test guest, whose
// kernel has device-mapper.
const inGuest = "DISKHOOK_IN_GUEST"

// TestDeviceMapper does with a real kernel what the other tests cannot:
// activation, open counts, thin pools, and the content of new volumes.
func TestDeviceMapper(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		runInGuest(t)
		return
	}
	g := guest{T: t, lvm: &LVM{Run: command.System{}, Devices: []string{"/dev/vdb"}}}
	g.setUp("vgcreate", group, "/dev/vdb")
	g.setUp("lvcreate", "-n", "pool0", "--type", "thin-pool", "-L", "64m", group)
	g.setUp("lvchange", "--errorwhenfull", "y", group+"/pool0")
	g.setUp("lvcreate", "-n", "pool1", "--type", "thin-pool", "-L", "64m", "-Zn", group)
	t.Run("linear", func(t *testing.T) { guest{t, g.lvm}.linear() })
	t.Run("content", func(t *testing.T) { guest{t, g.lvm}.content() })
	t.Run("holder", func(t *testing.T) { guest{t, g.lvm}.holder() })
	t.Run("thin", func(t *testing.T) { guest{t, g.lvm}.thin() })
	t.Run("full pool", func(t *testing.T) { guest{t, g.lvm}.full() })
	t.Run("thin cluster", func(t *testing.T) { guest{t, &LVM{Run: command.System{}}}.cluster() })
}

func runInGuest(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	payload := t.TempDir()
	if err := os.WriteFile(filepath.Join(payload, "lvm.test"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	run := exec.CommandContext(t.Context(), "../../contrib/testguest/run",
		"--payload", payload, "--disk-size", "512M", "--disk", filepath.Join(t.TempDir(), "disk"), "--timeout", "900",
		"--", "env", inGuest+"=1", "./lvm.test", "-test.v", "-test.run", "^TestDeviceMapper$")
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A guest that ran nothing has not passed.
	if n := bytes.Count(out, []byte("    --- PASS: TestDeviceMapper/")); n != 6 {
		t.Fatalf("%d of 6 parts passed\n%s", n, out)
	}
	t.Logf("%s", out)
}

type guest struct {
	*testing.T
	lvm *LVM
}

func (g guest) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

func (g guest) setUp(verb string, args ...string) {
	g.Helper()
	g.must(g.lvm.change(g.Context(), verb, args...))
}

func (g guest) command(name string, args ...string) string {
	g.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		g.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

func (g guest) lv(name string) LV {
	g.Helper()
	r, err := g.lvm.Report(g.Context(), group)
	g.must(err)
	lv, ok := r.LV(name)
	if !ok {
		g.Fatalf("no lv %s", name)
	}
	if lv.Active == nil || lv.Open == nil {
		g.Fatalf("%s: %s: unknown state with a driver", lv, lv.Attr)
	}
	return lv
}

func (g guest) state(name string, active, open bool) {
	g.Helper()
	if lv := g.lv(name); *lv.Active != active || *lv.Open != open {
		g.Errorf("%s: %s: active %v, open %v; want %v, %v", lv, lv.Attr, *lv.Active, *lv.Open, active, open)
	}
}

func (g guest) open(name string) *os.File {
	g.Helper()
	path := "/dev/" + group + "/" + name
	_, err := blockdev.WaitNode(g.Context(), path)
	g.must(err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	g.must(err)
	return f
}

// settled waits until udev has closed what it probed, else a volume may be
// open for a moment.
func (g guest) settled() { g.command("udevadm", "settle") }

func (g guest) linear() {
	ctx := g.Context()
	for _, name := range []string{"a", "b"} {
		g.must(g.lvm.Create(ctx, CreateOptions{VG: group, Name: name, Size: 8 << 20, Tags: []string{"UPDATING"}, SkipActivation: true, Activate: true}))
	}
	if size, err := blockdev.WaitNode(ctx, g.lv("a").Path); err != nil || size != 8<<20 {
		g.Fatalf("size %d, %v", size, err)
	}
	g.settled()
	g.state("a", true, false)
	f := g.open("a")
	g.state("a", true, true)
	for verb, err := range map[string]error{"remove": g.lvm.Remove(ctx, group, "a"), "deactivate": g.lvm.Deactivate(ctx, group, "b", "a")} {
		if !errors.Is(err, ErrInUse) || failure.KindOf(err) != failure.Conflict {
			g.Errorf("%s while open: %v", verb, err)
		}
	}
	f.Close()
	g.must(g.lvm.Deactivate(ctx, group, "a", "b"))
	g.must(g.lvm.Deactivate(ctx, group, "a", "b"))
	g.state("a", false, false)
	if _, err := os.Stat("/dev/" + group + "/a"); !errors.Is(err, os.ErrNotExist) {
		g.Errorf("the node of an inactive volume: %v", err)
	}
	// What the host does at boot leaves it alone.
	g.setUp("vgchange", "-ay", group)
	g.state("a", false, false)
	g.must(g.lvm.Activate(ctx, group, "a", "b"))
	g.must(g.lvm.Activate(ctx, group, "a", "b"))
	g.settled()
	g.state("a", true, false)
	g.state("b", true, false)
	g.must(g.lvm.Extend(ctx, group, "a", 12<<20))
	if size, err := blockdev.WaitNode(ctx, g.lv("a").Path); err != nil || size != 12<<20 {
		g.Errorf("after extend: size %d, %v", size, err)
	}

	g.command("dmsetup", "suspend", group2dm("b"))
	err := g.lv("b").Health()
	g.command("dmsetup", "resume", group2dm("b"))
	if !errors.Is(err, ErrSuspended) || g.lv("b").Health() != nil {
		g.Errorf("suspended: %v, then %v", err, g.lv("b").Health())
	}
	// Active volumes go without -f.
	g.must(g.lvm.Remove(ctx, group, "a"))
	g.must(g.lvm.Remove(ctx, group, "b"))
}

// group2dm is the kernel's name: hyphens doubled, one between group and volume.
func group2dm(name string) string { return strings.ReplaceAll(group, "-", "--") + "-" + name }

// content shows why a linear volume never counts as zeroed, and that
// ZeroRange touches its range alone.
func (g guest) content() {
	ctx := g.Context()
	o := CreateOptions{VG: group, Name: "c", Size: 8 << 20, Activate: true}
	old := bytes.Repeat([]byte{0xaa}, 8<<20)
	g.must(g.lvm.Create(ctx, o))
	f := g.open("c")
	_, err := f.WriteAt(old, 0)
	g.must(err)
	g.must(blockdev.Flush(f))
	f.Close()
	g.settled()
	g.must(g.lvm.Remove(ctx, group, "c"))

	g.must(g.lvm.Create(ctx, o))
	f = g.open("c")
	defer f.Close()
	want := bytes.Clone(old)
	clear(want[:4096])
	g.reads(f, want)

	g.must(blockdev.ZeroRange(ctx, f, 5<<20+100, 3<<20-100))
	g.must(blockdev.Flush(f))
	clear(want[5<<20+100:])
	g.reads(f, want)
	f.Close()

	// A file system of before is gone at the next creation.
	g.command("mkfs.ext4", "-q", "/dev/"+group+"/c")
	g.settled()
	g.must(g.lvm.Remove(ctx, group, "c"))
	g.must(g.lvm.Create(ctx, o))
	g.settled()
	if out, err := exec.Command("blkid", "-p", "/dev/"+group+"/c").CombinedOutput(); err == nil {
		g.Errorf("a signature survived: %s", out)
	}
	g.must(g.lvm.Remove(ctx, group, "c"))
}

func (g guest) reads(f *os.File, want []byte) {
	g.Helper()
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	g.must(err)
	if len(got) != len(want) {
		g.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			g.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
}

func (g guest) holder() {
	ctx := g.Context()
	g.must(g.lvm.Create(ctx, CreateOptions{VG: group, Name: "h", Size: 4 << 20, SkipActivation: true, Activate: true}))
	path := "/dev/" + group + "/h"
	g.settled()
	if who, used, err := blockdev.InUse(path); used || err != nil {
		g.Errorf("in use %v by %q, %v", used, who, err)
	}
	g.command("dmsetup", "create", "on-top", "--table", "0 8 linear "+path+" 0")
	who, used, err := blockdev.InUse(path)
	if !used || err != nil || !strings.HasPrefix(who, "device dm-") || !strings.HasSuffix(who, " (on-top)") {
		g.Errorf("in use %v by %q, %v", used, who, err)
	}
	if err := g.lvm.Remove(ctx, group, "h"); !errors.Is(err, ErrInUse) {
		g.Errorf("remove under a device: %v", err)
	}
	g.settled()
	g.command("dmsetup", "remove", "--retry", "on-top")
	g.must(g.lvm.Remove(ctx, group, "h"))
}

func (g guest) thin() {
	ctx := g.Context()
	if !g.lv("pool0").Attr.Zeroes() || g.lv("pool1").Attr.Zeroes() {
		g.Errorf("zeroing: pool0 %s, pool1 %s", g.lv("pool0").Attr, g.lv("pool1").Attr)
	}
	g.must(g.lvm.Create(ctx, CreateOptions{VG: group, Name: "base", Size: 1 << 30, Pool: "pool0", Tags: []string{"UPDATING"}, SkipActivation: true, Activate: true}))
	if lv := g.lv("base"); !lv.Attr.Thin() || lv.Pool != "pool0" || lv.DataPercent != 0 || lv.Segtype != "thin" || !lv.Attr.Zeroes() {
		g.Errorf("%+v", lv)
	}
	f := g.open("base")
	data := bytes.Repeat([]byte{0x55}, 4<<20)
	_, err := f.WriteAt(data, 0)
	g.must(err)
	g.must(blockdev.Flush(f))
	f.Close()
	if used := g.lv("pool0").DataPercent; used < 6.25 || used > 7.82 { // 4 to 5 MiB of 64
		g.Errorf("%v %% of the pool are used", used)
	}
	g.settled()
	g.must(g.lvm.SetReadOnly(ctx, group, true, "base"))
	if lv := g.lv("base"); lv.Attr.Writable() {
		g.Errorf("%s is writable", lv.Attr)
	}
	g.must(g.lvm.Snapshot(ctx, SnapshotOptions{VG: group, Origin: "base", Name: "copy", Tags: []string{"UPDATING", "VM_1"}, SkipActivation: true, Activate: true}))
	if lv := g.lv("copy"); lv.Origin != "base" || lv.Pool != "pool0" || lv.Size != 1<<30 || !slices.Contains(lv.Tags, "VM_1") || !lv.SkipActivation {
		g.Errorf("%+v", lv)
	}
	f = g.open("copy")
	head := make([]byte, 4<<20+4096)
	_, err = f.ReadAt(head, 0)
	g.must(err)
	if !bytes.Equal(head, append(data, make([]byte, 4096)...)) {
		g.Error("the snapshot does not begin as its origin is")
	}
	_, err = f.WriteAt([]byte("written"), 0)
	if err := errors.Join(err, blockdev.Flush(f)); err != nil {
		g.Errorf("a snapshot of a read-only volume: %v", err)
	}
	f.Close()
	g.settled()
	g.must(g.lvm.Remove(ctx, group, "copy"))
	g.must(g.lvm.Remove(ctx, group, "base"))
}

func (g guest) full() {
	ctx := g.Context()
	g.must(g.lvm.Create(ctx, CreateOptions{VG: group, Name: "fat", Size: 1 << 30, Pool: "pool0", Activate: true}))
	f := g.open("fat")
	_, err := f.WriteAt(make([]byte, 80<<20), 0)
	if err := errors.Join(err, blockdev.Flush(f)); err == nil {
		g.Error("80 MiB fit into a pool of 64 MiB, and the flush agrees")
	}
	f.Close()
	for deadline := time.Now().Add(20 * time.Second); g.lv("pool0").DataPercent < 100 && time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
	}
	if err := g.lv("pool0").Health(); !errors.Is(err, ErrDataFull) {
		g.Errorf("health of the full pool: %v (%s)", err, g.lv("pool0").Attr)
	}
	if err := g.lvm.Create(ctx, CreateOptions{VG: group, Name: "more", Size: 1 << 20, Pool: "pool0", Activate: true}); failure.KindOf(err) != failure.NoSpace {
		g.Errorf("create in a full pool: %v", err)
	}
	if _, err := g.lvm.Report(ctx, group); err != nil {
		g.Error(err)
	}
}

// cluster: a thin cluster's device that is suspended holds nobody up who looks at all
// devices, and what a guest has in it is not seen.
func (g guest) cluster() {
	g.command("lvcreate", "-y", "-q", "-n", "given", "-L", "16m", group)
	const device = "dh-cluster+volume"
	g.command("dmsetup", "create", device, "--table", "0 32768 linear /dev/"+group+"/given 0")
	g.settled()
	g.command("vgcreate", "-q", "guests", "/dev/mapper/"+device)
	if _, err := g.lvm.Report(g.Context(), "guests"); !errors.Is(err, ErrNoVG) {
		g.Errorf("a guest's volume group: %v", err)
	}
	g.command("dmsetup", "suspend", device)
	_, err := g.lvm.Report(g.Context(), group)
	g.command("dmsetup", "resume", device)
	g.must(err)
	g.command("dmsetup", "remove", device)
}
