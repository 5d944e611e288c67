// SPDX-License-Identifier: Apache-2.0

//go:build integration

package lvm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// These tests run the real lvm(8) on a loop device of their own, with a
// configuration directory and locks of their own, and without device-mapper
// (global/activation=0): metadata, tags, space and messages are real,
// activation is not. They need root and lvm2, and fail without unless
// SKIP_REAL_LVM=1.

// withEnv runs real programs with LVM's configuration directory moved.
type withEnv struct{ env []string }

func (w withEnv) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	cmd.Env = append(cmd.Env, w.env...)
	return command.System{}.Run(ctx, cmd)
}

// realLVM returns a driver over n fresh loop devices and its lock directory.
func realLVM(t *testing.T, n int) (l *LVM, locks string) {
	t.Helper()
	if os.Getenv("SKIP_REAL_LVM") == "1" {
		t.Skip("SKIP_REAL_LVM=1")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root for loop devices; SKIP_REAL_LVM=1 skips it")
	}
	if _, err := command.Find("lvm"); err != nil {
		t.Fatalf("%v; SKIP_REAL_LVM=1 skips it", err)
	}
	dir := t.TempDir()
	locks = filepath.Join(dir, "lock")
	l = &LVM{
		Run:     withEnv{[]string{"LVM_SYSTEM_DIR=" + dir}},
		Timeout: 30 * time.Second,
		Config:  []string{`global { activation=0 locking_dir="` + locks + `" }`, "backup { backup=0 archive=0 }"},
	}
	for i := range n {
		file := filepath.Join(dir, "disk"+string(rune('0'+i)))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 64<<20); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup: %v: %s", err, out)
		}
		device := strings.TrimSpace(string(out))
		t.Cleanup(func() {
			if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
				t.Errorf("losetup -d %s: %v: %s", device, err, out)
			}
		})
		l.Devices = append(l.Devices, device)
	}
	return l, locks
}

// setUp runs verbs that the driver has no method for.
func setUp(t *testing.T, l *LVM, verb string, args ...string) {
	t.Helper()
	if err := l.change(t.Context(), verb, args...); err != nil {
		t.Fatal(err)
	}
}

func report(t *testing.T, l *LVM) Report {
	t.Helper()
	r, err := l.Report(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRealLifeOfAVolume(t *testing.T) {
	l, _ := realLVM(t, 1)
	ctx := t.Context()
	if _, err := l.Report(ctx, group); !errors.Is(err, ErrNoVG) {
		t.Fatalf("no group yet: %v", err)
	}
	setUp(t, l, "vgcreate", group, l.Devices[0])

	empty := report(t, l)
	if empty.VG.Name != group || empty.VG.Size != 60<<20 || empty.VG.Free != 60<<20 || empty.VG.ExtentSize != 4<<20 || len(empty.LVs) != 0 {
		t.Fatalf("empty group: %+v", empty)
	}

	// A name that looks like a reserved one to a careless reader, tags with
	// every sign, a size that is no whole extent.
	tags := []string{"UPDATING", "VM_1", "a+b.c/d=e!f:g&h#i"}
	must(t, l.Create(ctx, CreateOptions{VG: group, Name: "dh_1_vda", Size: 5<<20 + 512, Tags: tags, SkipActivation: true}))
	must(t, l.Create(ctx, CreateOptions{VG: group, Name: "bystander", Size: 4 << 20, Tags: []string{"UPDATING"}, Activate: true}))
	made := report(t, l)
	if made.VG.Seqno != empty.VG.Seqno+2 {
		t.Errorf("seqno %d after two creations from %d: a volume existed without its tags", made.VG.Seqno, empty.VG.Seqno)
	}
	lv, _ := made.LV("dh_1_vda")
	want := LV{
		VG: group, VGUUID: empty.VG.UUID, Name: "dh_1_vda", UUID: lv.UUID, Attr: attr("-wi-XX---k"), Tags: lv.Tags, Size: 8 << 20,
		DataPercent: -1, MetadataPercent: -1, Path: "/dev/" + group + "/dh_1_vda", SkipActivation: true, Segtype: "linear",
	}
	if diff := cmp.Diff(want, lv); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	sameTags(t, lv, tags...)
	if lv.Size != made.VG.RoundUp(5<<20+512) || made.VG.Free != 48<<20 {
		t.Errorf("size %d, free %d", lv.Size, made.VG.Free)
	}
	bystander, _ := made.LV("bystander")
	if bystander.SkipActivation {
		t.Error("the bystander is skipped at activation")
	}

	// One commit takes one tag and gives another, and nothing else changes.
	must(t, l.ChangeTags(ctx, group, []string{"dh_1_vda"}, []string{"DH_v1", "VM_1"}, []string{"UPDATING", "never-there"}))
	tagged := report(t, l)
	lv, _ = tagged.LV("dh_1_vda")
	sameTags(t, lv, "VM_1", "a+b.c/d=e!f:g&h#i", "DH_v1")
	if tagged.VG.Seqno != made.VG.Seqno+1 {
		t.Errorf("%d commits for one change of tags", tagged.VG.Seqno-made.VG.Seqno)
	}
	if after, _ := tagged.LV("bystander"); cmp.Diff(bystander, after) != "" {
		t.Errorf("the bystander changed: %s", cmp.Diff(bystander, after))
	}

	// Extend is "at least": again and smaller change nothing.
	must(t, l.Extend(ctx, group, "dh_1_vda", 12<<20))
	longer := report(t, l)
	must(t, l.Extend(ctx, group, "dh_1_vda", 12<<20))
	must(t, l.Extend(ctx, group, "dh_1_vda", 4<<20))
	again := report(t, l)
	if lv, _ := again.LV("dh_1_vda"); lv.Size != 12<<20 || again.VG.Seqno != longer.VG.Seqno {
		t.Errorf("%d bytes, seqno %d, want %d", lv.Size, again.VG.Seqno, longer.VG.Seqno)
	}
	// It now has two segments, around the bystander, and is still one volume.
	if len(again.LVs) != 2 {
		t.Errorf("%d volumes", len(again.LVs))
	}

	must(t, l.SetReadOnly(ctx, group, true, "dh_1_vda"))
	must(t, l.SetReadOnly(ctx, group, true, "dh_1_vda"))
	if lv, _ := report(t, l).LV("dh_1_vda"); lv.Attr.Writable() {
		t.Errorf("%s is writable", lv.Attr)
	}

	must(t, l.Remove(ctx, group, "dh_1_vda"))
	if err := l.Remove(ctx, group, "dh_1_vda"); !errors.Is(err, ErrNoLV) || failure.KindOf(err) != failure.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	left := report(t, l)
	if after, _ := left.LV("bystander"); len(left.LVs) != 1 || cmp.Diff(bystander, after) != "" {
		t.Errorf("left: %+v", left.LVs)
	}
}

func sameTags(t *testing.T, lv LV, want ...string) {
	t.Helper()
	for _, tag := range want {
		if !slices.Contains(lv.Tags, tag) {
			t.Errorf("%s: no tag %s", lv, tag)
		}
	}
	if len(lv.Tags) != len(want) {
		t.Errorf("%s: tags %q, want %q", lv, lv.Tags, want)
	}
}

func TestRealRefusals(t *testing.T) {
	l, locks := realLVM(t, 2)
	ctx := t.Context()
	setUp(t, l, "vgcreate", group, l.Devices[0])
	must(t, l.Create(ctx, CreateOptions{VG: group, Name: "a", Size: 4 << 20}))
	before := report(t, l)

	locked := *l
	locked.Config = append([]string{"global/wait_for_locks=0"}, l.Config...)
	slow := *l
	slow.Timeout = 200 * time.Millisecond
	other := *l
	other.Devices = l.Devices[1:]

	create := func(name string, size int64) func() error {
		return func() error { return l.Create(ctx, CreateOptions{VG: group, Name: name, Size: size}) }
	}
	for _, tc := range []struct {
		name  string
		do    func() error
		means error
		kind  *failure.Kind
		lock  bool
	}{
		{name: "taken", do: create("a", 4<<20), means: ErrExists, kind: failure.Conflict},
		{name: "full", do: create("b", 1<<30), kind: failure.NoSpace},
		{name: "extend full", do: func() error { return l.Extend(ctx, group, "a", 1<<30) }, kind: failure.NoSpace},
		{name: "reserved", do: create("b_tmeta", 4<<20), kind: failure.Usage},
		{name: "no group", do: func() error { return l.Create(ctx, CreateOptions{VG: "nosuch", Name: "a", Size: 512}) }, means: ErrNoVG, kind: failure.Precondition},
		{name: "no pool", do: func() error { return l.Create(ctx, CreateOptions{VG: group, Name: "b", Size: 512, Pool: "pool0"}) }, means: ErrNoPool, kind: failure.Precondition},
		{name: "no thin pool", do: func() error { return l.Create(ctx, CreateOptions{VG: group, Name: "b", Size: 512, Pool: "a"}) }, means: ErrNoPool, kind: failure.Precondition},
		{name: "no volume to tag", do: func() error { return l.ChangeTags(ctx, group, []string{"b"}, []string{"x"}, nil) }, means: ErrNoLV, kind: failure.NotFound},
		{name: "no volume to activate", do: func() error { return l.Activate(ctx, group, "b") }, means: ErrNoLV, kind: failure.NotFound},
		{name: "no volume to extend", do: func() error { return l.Extend(ctx, group, "b", 4<<20) }, means: ErrNoLV, kind: failure.NotFound},
		{name: "no origin", do: func() error { return l.Snapshot(ctx, SnapshotOptions{VG: group, Origin: "b", Name: "c"}) }, means: ErrNoLV, kind: failure.NotFound},
		{name: "snapshot of a linear volume", do: func() error { return l.Snapshot(ctx, SnapshotOptions{VG: group, Origin: "a", Name: "c"}) }, kind: nil},
		{name: "group on a device that is not ours", do: func() error { _, err := other.Report(ctx, group); return err }, means: ErrNoVG, kind: failure.Precondition},
		{name: "locked, no waiting", do: func() error { return locked.Remove(ctx, group, "a") }, means: ErrLocked, kind: failure.Temporary, lock: true},
		{name: "locked, waiting", do: func() error { return slow.Remove(ctx, group, "a") }, means: context.DeadlineExceeded, kind: failure.Temporary, lock: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.lock {
				hold, err := os.OpenFile(filepath.Join(locks, "V_"+group), os.O_RDWR|os.O_CREATE, 0o600)
				must(t, err)
				defer hold.Close()
				must(t, unix.Flock(int(hold.Fd()), unix.LOCK_EX))
			}
			err := tc.do()
			if err == nil {
				t.Fatal("no error")
			}
			if tc.means != nil && !errors.Is(err, tc.means) {
				t.Errorf("got %v, want %v", err, tc.means)
			}
			if got := failure.KindOf(err); got != tc.kind {
				t.Errorf("kind %v, want %v: %v", got, tc.kind, err)
			}
			var failed *command.Error
			if !errors.As(err, &failed) {
				t.Errorf("no *command.Error in %v", err)
			}
		})
	}
	if diff := cmp.Diff(before, report(t, l)); diff != "" {
		t.Errorf("refusals changed the group (-before +after)\n%s", diff)
	}
}

func TestRealGroupsThatCannotBeUsed(t *testing.T) {
	l, _ := realLVM(t, 2)
	ctx := t.Context()
	setUp(t, l, "vgcreate", group, l.Devices[0], l.Devices[1])
	must(t, l.Create(ctx, CreateOptions{VG: group, Name: "wide", Size: 100 << 20, Tags: []string{"x"}}))

	half := *l
	half.Devices = l.Devices[:1]
	r, err := half.Report(ctx, group)
	must(t, err)
	if lv, _ := r.LV("wide"); !errors.Is(r.VG.Health(), ErrPartial) || !errors.Is(lv.Health(), ErrPartial) || !slices.Contains(lv.Tags, "x") {
		t.Errorf("a device away: vg %v, lv %v, tags %q", r.VG.Health(), lv.Health(), lv.Tags)
	}
	if err := half.Create(ctx, CreateOptions{VG: group, Name: "b", Size: 4 << 20}); !errors.Is(err, ErrPartial) {
		t.Errorf("create with a device away: %v", err)
	}

	setUp(t, l, "vgexport", group)
	if r := report(t, l); !errors.Is(r.VG.Health(), ErrExported) {
		t.Errorf("exported: %v", r.VG.Health())
	}
	if err := l.Remove(ctx, group, "wide"); !errors.Is(err, ErrExported) {
		t.Errorf("remove from an exported group: %v", err)
	}
	setUp(t, l, "vgimport", group)
	setUp(t, l, "vgchange", "--systemid", "another-host", group)
	if _, err := l.Report(ctx, group); !errors.Is(err, ErrForeign) {
		t.Errorf("another host's: %v", err)
	}
}

func TestRealTwoGroupsOfOneName(t *testing.T) {
	l, _ := realLVM(t, 2)
	first, second := *l, *l
	first.Devices, second.Devices = l.Devices[:1], l.Devices[1:]
	setUp(t, &first, "vgcreate", group, l.Devices[0])
	setUp(t, &second, "vgcreate", group, l.Devices[1])
	if _, err := l.Report(t.Context(), group); !errors.Is(err, ErrSameName) {
		t.Errorf("report: %v", err)
	}
	err := l.Create(t.Context(), CreateOptions{VG: group, Name: "a", Size: 4 << 20})
	if !errors.Is(err, ErrSameName) {
		t.Errorf("create: %v", err)
	}
	if len(report(t, &first).LVs)+len(report(t, &second).LVs) != 0 {
		t.Error("a volume was made in one of them")
	}
	// Naming the devices is the way out.
	must(t, first.Create(t.Context(), CreateOptions{VG: group, Name: "a", Size: 4 << 20}))
	if len(report(t, &first).LVs) != 1 || len(report(t, &second).LVs) != 0 {
		t.Error("not in the first")
	}
}
