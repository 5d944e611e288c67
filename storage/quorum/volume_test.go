// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/quorum"
)

// Replicas on logical volumes, longer than the disk and full of what an earlier
// owner left; their marks are tags.
func TestReplicasOnVolumes(t *testing.T) {
	w := newWorld(t)
	exe, err := os.Executable()
	must(t, err)
	for _, dir := range []string{"tools", "lvm", "dev"} {
		must(t, os.Mkdir(w.path(dir), 0o755))
	}
	must(t, os.Symlink(exe, w.path("tools/lvm")))
	t.Setenv("DISKHOOK_TOOLS", w.path("tools"))
	t.Setenv(lvmtest.EnvState, w.path("lvm"))
	t.Setenv(lvmtest.EnvDev, w.path("dev"))
	must(t, lvmtest.Create(w.path("lvm"), "vg", "", 64<<20))
	t.Cleanup(func() { must(t, lvmtest.Reboot(w.path("lvm"))) })
	volumes := lvm.LVM{Run: command.System{}}
	for _, name := range []string{"one", "two"} {
		must(t, volumes.Create(t.Context(), lvm.CreateOptions{VG: "vg", Name: name, Size: diskSize + 4<<20, Activate: true, Tags: []string{"KEEP"}}))
	}
	w.Service = service(os.Stderr)

	b := w.building()
	b.Replicas[0], b.Replicas[1] = w.file("dev/vg/one", "raw"), w.file("dev/vg/two", "qcow2")
	// Another test's mount(8) looks at all loop devices, for a moment.
	build := func() (set quorum.Set, err error) {
		for range 600 {
			if set, err = w.Build(t.Context(), b); err == nil || !strings.Contains(err.Error(), "in use by process") {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		return set, err
	}
	_, err = build()
	w.refused(err, failure.Conflict, "dev/vg/one", "it is not empty", "--overwrite")
	b.Overwrite = true
	set, err := build()
	must(t, err)
	if set.Replicas[0].Volume != "vg/one" || set.Replicas[0].Top().Type != quorum.Block {
		t.Errorf("%+v", set.Replicas[0])
	}
	w.holdsVolumes()
	if tags := w.tags("one"); len(tags) != 2 || tags[0] != "KEEP" || !strings.HasPrefix(tags[1], "DH_QUORUM:"+set.UUID+":r1:1:") {
		t.Errorf("tags %v", tags)
	}

	// A start would activate them, and status does not.
	must(t, lvmtest.Reboot(w.path("lvm")))
	st, err := w.Status(t.Context(), "db")
	if must(t, err); st.Veto != "" || len(st.Decision.Open) != 3 {
		t.Errorf("after a reboot: %s %+v", st.Veto, st.Decision)
	}
	if d := w.decision(); d.Veto == nil || len(d.Open) != 1 {
		t.Errorf("inactive volumes: %+v", d)
	}
	_, err = w.Verify(t.Context(), "db", nil) // which activates them
	must(t, err)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x11 1M 4k", w.path("dev/vg/one"))
	v, err := w.Resync(t.Context(), "db", quorum.Resyncing{})
	must(t, err)
	if len(v.Differs["r1"]) != 1 || v.Differs["r1"][0] != (quorum.Range{Offset: 1 << 20, Length: 4096}) {
		t.Errorf("%+v", v)
	}
	w.holdsVolumes()
	w.opens("r1", "r2", "r3")

	must(t, lvmtest.Reboot(w.path("lvm")))
	resize := func(size int64) {
		must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes["one"].Size = size }))
	}
	resize(diskSize / 2)
	st, err = w.Status(t.Context(), "db")
	if must(t, err); st.Veto != "" || st.Replicas[0].Votes || !strings.Contains(st.Replicas[0].Why, "it has 4194304 bytes") {
		t.Errorf("one that is too short: %s %+v", st.Veto, st.Replicas)
	}
	resize(diskSize + 4<<20)

	must(t, w.Remove(t.Context(), "db", true))
	if tags := append(w.tags("one"), w.tags("two")...); strings.Join(tags, " ") != "KEEP KEEP" {
		t.Errorf("tags %v", tags)
	}
	g, err := lvmtest.Load(w.path("lvm"))
	if must(t, err); len(g.Volumes) != 2 {
		t.Errorf("volumes %v", g.Volumes)
	}
}

// holdsVolumes looks at the beginning of the volumes, as long as the disk is.
func (w *world) holdsVolumes() {
	w.Helper()
	part := `json:{"driver":"raw","size":8388608,"file":{"driver":"host_device","filename":"` + w.path("dev/vg/one") + `"}}`
	w.tool("qemu-img", "compare", "-q", part, w.flat)
	w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", w.path("dev/vg/two"), w.flat)
}

func (w *world) tags(volume string) []string {
	w.Helper()
	g, err := lvmtest.Load(w.path("lvm"))
	must(w.T, err)
	return g.Volumes[volume].Tags
}
