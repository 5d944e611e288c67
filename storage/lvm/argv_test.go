// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
)

const allDevices = `--config 'devices { use_devicesfile=0 hints="none" filter=["r|^/dev/mapper/dh-[^+]*[+]|"] }' `

func TestArgv(t *testing.T) {
	thick := CreateOptions{VG: "vg", Name: "a", Size: 512, Tags: []string{"UPDATING", "VM_1"}}
	for name, tc := range map[string]struct {
		do   func(context.Context, *LVM) error
		want string // after config; "" runs nothing
	}{
		"create linear": {
			func(ctx context.Context, l *LVM) error {
				o := thick
				o.Activate, o.SkipActivation = true, true
				return l.Create(ctx, o)
			},
			"lvcreate -y -n a -L 512b -Wy -Zy --addtag UPDATING --addtag VM_1 -ky -K -ay vg",
		},
		"create linear for the old hook": {
			func(ctx context.Context, l *LVM) error {
				o := thick
				o.Activate = true
				return l.Create(ctx, o)
			},
			"lvcreate -y -n a -L 512b -Wy -Zy --addtag UPDATING --addtag VM_1 -kn -ay vg",
		},
		"create linear inactive": {
			func(ctx context.Context, l *LVM) error { return l.Create(ctx, thick) },
			"lvcreate -y -n a -L 512b -Wn -Zn --addtag UPDATING --addtag VM_1 -kn -an vg",
		},
		"create thin": {
			func(ctx context.Context, l *LVM) error {
				return l.Create(ctx, CreateOptions{VG: "vg", Name: "a", Size: 1 << 40, Pool: "pool0", SkipActivation: true, Activate: true})
			},
			"lvcreate -y -n a -V 1099511627776b --thinpool pool0 -ky -K -ay vg",
		},
		"create thin inactive": {
			func(ctx context.Context, l *LVM) error {
				return l.Create(ctx, CreateOptions{VG: "vg", Name: "a", Size: 1024, Pool: "pool0", SkipActivation: true})
			},
			"lvcreate -y -n a -V 1024b --thinpool pool0 -ky -an vg",
		},
		"snapshot": {
			func(ctx context.Context, l *LVM) error {
				return l.Snapshot(ctx, SnapshotOptions{VG: "vg", Origin: "base", Name: "a", Tags: []string{"UPDATING"}, SkipActivation: true, Activate: true})
			},
			"lvcreate -y -s -n a --addtag UPDATING -ky -K -ay vg/base",
		},
		"activate all": {
			func(ctx context.Context, l *LVM) error { return l.Activate(ctx, "vg", "a", "b") },
			"lvchange -y -ay -K vg/a vg/b",
		},
		"activate none":   {func(ctx context.Context, l *LVM) error { return l.Activate(ctx, "vg") }, ""},
		"activate shared": {func(ctx context.Context, l *LVM) error { return l.ActivateShared(ctx, "vg", "a") }, "lvchange -y -asy -K vg/a"},
		"activate alone":  {func(ctx context.Context, l *LVM) error { return l.ActivateExclusive(ctx, "vg", "a") }, "lvchange -y -aey -K vg/a"},
		"refresh":         {func(ctx context.Context, l *LVM) error { return l.Refresh(ctx, "vg", "a") }, "lvchange -y --refresh vg/a"},
		"deactivate":      {func(ctx context.Context, l *LVM) error { return l.Deactivate(ctx, "vg", "a", "b") }, "lvchange -y -an vg/a vg/b"},
		"deactivate none": {func(ctx context.Context, l *LVM) error { return l.Deactivate(ctx, "vg") }, ""},
		"tags": {
			func(ctx context.Context, l *LVM) error {
				return l.ChangeTags(ctx, "vg", []string{"a", "b"}, []string{"DH_v1", "x"}, []string{"UPDATING"})
			},
			"lvchange -y --addtag DH_v1 --addtag x --deltag UPDATING vg/a vg/b",
		},
		"no tags": {func(ctx context.Context, l *LVM) error { return l.ChangeTags(ctx, "vg", []string{"a"}, nil, nil) }, ""},
		"tags of nothing": {func(ctx context.Context, l *LVM) error {
			return l.ChangeTags(ctx, "vg", nil, nil, []string{"UPDATING"})
		}, ""},
		"read-only":        {func(ctx context.Context, l *LVM) error { return l.SetReadOnly(ctx, "vg", true, "a") }, "lvchange -y -p r vg/a"},
		"writable":         {func(ctx context.Context, l *LVM) error { return l.SetReadOnly(ctx, "vg", false, "a") }, "lvchange -y -p rw vg/a"},
		"remove":           {func(ctx context.Context, l *LVM) error { return l.Remove(ctx, "vg", "a") }, "lvremove -y vg/a"},
		"extend":           {func(ctx context.Context, l *LVM) error { return l.Extend(ctx, "vg", "a", 1<<30) }, "lvextend -y -L 1073741824b vg/a"},
		"names with signs": {func(ctx context.Context, l *LVM) error { return l.Remove(ctx, "a+b", "_c.d") }, "lvremove -y a+b/_c.d"},
	} {
		t.Run(name, func(t *testing.T) {
			run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: "lvm "}}}
			if err := tc.do(t.Context(), &LVM{Run: run}); err != nil {
				t.Fatal(err)
			}
			var want []string
			if tc.want != "" {
				verb, args, _ := strings.Cut(tc.want, " ")
				want = []string{"lvm " + verb + " " + allDevices + args}
			}
			got := run.Lines()
			if len(got) == 0 {
				got = nil
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestReportIsOneCommand(t *testing.T) {
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: "lvm fullreport ", Stdout: fixture(t, "thin")}}}
	r, err := (&LVM{Run: run}).Report(t.Context(), "dhtest")
	if err != nil || len(r.LVs) != 13 {
		t.Fatalf("%d volumes, %v", len(r.LVs), err)
	}
	want := []string{"lvm fullreport " + allDevices + "--reportformat json --units b --nosuffix" +
		" --configreport vg -o vg_name,vg_uuid,vg_attr,vg_size,vg_free,vg_extent_size,vg_missing_pv_count,vg_seqno,vg_lock_type" +
		" --configreport lv -o lv_uuid,lv_name,lv_attr,lv_tags,lv_size,pool_lv,origin,data_percent,metadata_percent,lv_path" +
		" --configreport seg -o lv_uuid,segtype,chunk_size" +
		` --configreport pv -o pv_name -S 'pv_name=""' --configreport pvseg -o pv_uuid -S 'pv_uuid=""' dhtest`}
	if diff := cmp.Diff(want, run.Lines()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestReportOfAnotherGroupIsRefused(t *testing.T) {
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: "lvm ", Stdout: fixture(t, "thin")}}}
	if _, err := (&LVM{Run: run}).Report(t.Context(), "other"); err == nil {
		t.Error("taken")
	}
}

func TestDevicesAndConfig(t *testing.T) {
	l := &LVM{Devices: []string{"/dev/sdb", "/dev/disk/by-id/wwn-0x5.1+2"}, Config: []string{"global { activation=0 }", "backup/archive=0"}}
	got, err := l.config()
	if err != nil {
		t.Fatal(err)
	}
	want := `devices { use_devicesfile=0 hints="none" filter=["a|^/dev/sdb$|", "a|^/dev/disk/by-id/wwn-0x5[.]1[+]2$|", "r|.*|"] } global { activation=0 } backup/archive=0`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, dev := range []string{"", "/", "sdb", `/dev/a"b`, "/dev/a|b", "/dev/a b", "/dev/a*", `/dev/a\x20`, "/dev/(a)", "/dev/[a]", "/dev/a$"} {
		if got, err := (&LVM{Devices: []string{dev}}).config(); !errors.Is(err, failure.Usage) {
			t.Errorf("device %q: %s, %v", dev, got, err)
		}
	}
}

// What is refused runs nothing: commandtest fails on any command.
func TestHostileArgumentsRunNothing(t *testing.T) {
	l := &LVM{Run: &commandtest.Runner{T: t}}
	ctx := t.Context()
	bad := []string{"", "-f", "--force", "a/b", "a b", "..", "a\nb", "@tag", "vg/lv", strings.Repeat("x", 128)}
	for _, name := range bad {
		calls := map[string]error{
			"create":     l.Create(ctx, CreateOptions{VG: "vg", Name: name, Size: 512}),
			"create vg":  l.Create(ctx, CreateOptions{VG: name, Name: "a", Size: 512}),
			"snapshot":   l.Snapshot(ctx, SnapshotOptions{VG: "vg", Origin: name, Name: "a"}),
			"activate":   l.Activate(ctx, "vg", "a", name),
			"deactivate": l.Deactivate(ctx, "vg", "a", name),
			"bare group": l.Deactivate(ctx, name),
			"tags":       l.ChangeTags(ctx, "vg", []string{name}, []string{"x"}, nil),
			"remove":     l.Remove(ctx, "vg", name),
			"remove vg":  l.Remove(ctx, name, "a"),
			"extend":     l.Extend(ctx, "vg", name, 512),
			"read-only":  l.SetReadOnly(ctx, "vg", true, name),
		}
		if name != "" {
			calls["pool"] = l.Create(ctx, CreateOptions{VG: "vg", Name: "a", Size: 512, Pool: name})
		}
		_, calls["report"] = l.Report(ctx, name)
		for call, err := range calls {
			if !errors.Is(err, failure.Usage) {
				t.Errorf("%s %q: %v", call, name, err)
			}
		}
	}
	for _, tag := range []string{"", "-f", "a,b", "@x", "a b"} {
		for call, err := range map[string]error{
			"create": l.Create(ctx, CreateOptions{VG: "vg", Name: "a", Size: 512, Tags: []string{tag}}),
			"add":    l.ChangeTags(ctx, "vg", []string{"a"}, []string{tag}, nil),
			"delete": l.ChangeTags(ctx, "vg", []string{"a"}, nil, []string{tag}),
		} {
			if !errors.Is(err, failure.Usage) {
				t.Errorf("%s tag %q: %v", call, tag, err)
			}
		}
	}
	for _, size := range []int64{0, -512, 513, 1} {
		if err := l.Create(ctx, CreateOptions{VG: "vg", Name: "a", Size: size}); !errors.Is(err, failure.Usage) {
			t.Errorf("size %d: %v", size, err)
		}
		if err := l.Extend(ctx, "vg", "a", size); !errors.Is(err, failure.Usage) {
			t.Errorf("extend to %d: %v", size, err)
		}
	}
}

// A command that changes something is not killed by the end of the context
// that it began under; one that only reads is; neither begins after the end.
func TestContext(t *testing.T) {
	seen := &contexts{}
	l := &LVM{Run: seen, Timeout: 7 * time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	_ = l.Remove(ctx, "vg", "a")
	_, _ = l.Report(ctx, "vg")
	cancel()
	if err := seen.ctx[0].Err(); err != nil {
		t.Errorf("lvremove: %v", err)
	}
	if seen.ctx[1].Err() == nil {
		t.Error("fullreport goes on")
	}
	if seen.timeouts[0] != 7*time.Second || seen.timeouts[1] != 7*time.Second {
		t.Errorf("timeouts %v", seen.timeouts)
	}
	if err := l.Remove(ctx, "vg", "a"); !errors.Is(err, context.Canceled) || len(seen.ctx) != 2 {
		t.Errorf("after the end: %v, %d commands", err, len(seen.ctx))
	}
	l.Timeout = 0
	_ = l.Remove(t.Context(), "vg", "a")
	if seen.timeouts[2] != defaultTimeout {
		t.Errorf("default timeout %v", seen.timeouts[2])
	}
}

type contexts struct {
	ctx      []context.Context
	timeouts []time.Duration
}

func (c *contexts) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	c.ctx, c.timeouts = append(c.ctx, ctx), append(c.timeouts, cmd.Timeout)
	return command.Result{}, nil
}
