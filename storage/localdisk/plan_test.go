// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// The tags are oVirt's, so that its hook reads our volumes; the mark goes and
// ours come in one command, after everything else.
func TestCommandsOfAFirstStart(t *testing.T) {
	w := newWorld(t, "lvm")
	_, err := w.hook()
	must(t, err)
	lv := "ovirt-local/dh_" + domain + "_vda"
	want := []string{
		"lvcreate -n dh_" + domain + "_vda -L 3145728b --addtag UPDATING --addtag VM_" + domain +
			" --addtag PU_00000000-0000-0000-0000-000000000000 -a y -k y -K ovirt-local",
		"lvchange --addtag DH_v1 --addtag DH_target_vda --addtag DH_machine_0123456789abcdef0123456789abcdef --deltag UPDATING " + lv,
		"lvchange -a y -K " + lv,
	}
	var got []string
	for _, line := range lvmtest.Log(w.path("lvm")) {
		if !strings.HasPrefix(line, "fullreport") {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if len(g.Volumes) != 2 {
		t.Errorf("volumes %v", g.Volumes)
	}
}

// Disks that fit one by one, but not together, are refused before the first.
func TestRoomIsAskedForAllDisksTogether(t *testing.T) {
	w := newWorld(t, "lvm")
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Size = 128<<20 + 4<<20 }))
	one, two := w.disk(), w.disk()
	two.Target = "vdb"
	for name, try := range map[string]func() error{
		"room": func() error { return service().Room(t.Context(), []localdisk.Disk{one, two}) },
		"fulfil": func() error {
			_, err := service().Fulfil(t.Context(), []localdisk.Disk{one, two}, localdisk.Waiting{})
			return err
		},
	} {
		if err := try(); !errors.Is(err, failure.NoSpace) || !strings.Contains(failure.HintOf(err), "vgextend") {
			t.Errorf("%s: %v", name, err)
		}
	}
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if len(g.Volumes) != 1 {
		t.Errorf("created: %v", g.Volumes)
	}
	must(t, service().Room(t.Context(), []localdisk.Disk{one}))
}

// A dry run shows what a start, and what prestage, would do; and does nothing.
func TestCommandsShowAndDoNothing(t *testing.T) {
	w := newWorld(t, "lvm")
	s := service()
	show := func() (start, fill []string) {
		observed, err := s.Observe(t.Context(), []localdisk.Disk{w.disk()})
		must(t, err)
		decision := localdisk.Decide(observed[0])
		return s.Commands(t.Context(), observed[0], decision), s.FillCommands(t.Context(), observed[0], decision)
	}
	contains := func(lines []string, words ...string) {
		t.Helper()
		for i, word := range words {
			if i >= len(lines) || !strings.Contains(lines[i], word) {
				t.Fatalf("lines %q, want %q", lines, words)
			}
		}
		if len(lines) != len(words) {
			t.Fatalf("lines %q, want %q", lines, words)
		}
	}
	start, fill := show()
	contains(fill, "lvm lvcreate", "# copy", "# flush", "write ")
	contains(start, "lvm lvcreate", "# copy", "# flush", "write ", "(used)", "link ")
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if len(g.Volumes) != 1 {
		t.Errorf("created: %v", g.Volumes)
	}
	_, err = w.hook()
	must(t, err)
	start, fill = show()
	contains(start, "lvm lvchange", "link ")
	contains(fill)
}
