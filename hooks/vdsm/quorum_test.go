// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

func replicas(t *testing.T) (*hooktest.World, *hooktest.Local, *hooktest.Quorum) {
	w, local := fake(t)
	sets := &hooktest.Quorum{Layout: w.Layout, Err: map[string]error{}, Sets: map[string]quorum.Set{"db": hooktest.Set("db")}}
	w.Quorum = sets
	return w, local, sets
}

// TestQuorumProperty: the disk that the property names becomes the set, by
// target or serial, and no byte beside it changes.
func TestQuorumProperty(t *testing.T) {
	for name, c := range map[string]struct {
		property, value string
		want            []string
		calls           []string
	}{
		"by target": {"quorum", "sda=db", []string{`type="network"`, `protocol="nbd"`, `name="db"`, "nbd.sock", "<serial>" + image}, []string{"start db sda 1m0s"}},
		"by serial": {"quorum", image + "=db", []string{`type="network"`, "nbd.sock"}, []string{"start db sda 1m0s"}},
		"element":   {"diskhook", "sda:quorum=db,lower=none", []string{`type="quorum"`, `threshold value="2"`, "/srv/db-r1.raw", "/srv/db-r3.raw"}, []string{"open db sda"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, local, sets := replicas(t)
			before := w.Fixture("vdsm/engine.xml")
			after, err := call(t, w, "before_vm_start", before, map[string]string{c.property: c.value})
			if err != nil {
				t.Fatal(err)
			}
			text := string(after)
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in\n%s", want, text)
				}
			}
			if diff := cmp.Diff(c.calls, sets.Calls); diff != "" || len(local.Calls) != 0 {
				t.Error(diff, local.Calls)
			}
			cut := func(s string) string {
				head, rest, _ := strings.Cut(s, `<target dev="sda"`)
				head = head[:strings.LastIndex(head, "<disk ")]
				_, tail, _ := strings.Cut(rest, "</disk>")
				return head + tail
			}
			if diff := cmp.Diff(cut(string(before)), cut(text)); diff != "" {
				t.Errorf("beside the disk: %s", diff)
			}
			if _, err := call(t, w, "after_vm_destroy", after, map[string]string{c.property: c.value}); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{"stop db sda", "stop-rest " + vmID}, sets.Calls[len(c.calls):]); diff != "" {
				t.Errorf("at the end: %s", diff)
			}
		})
	}
}

// TestQuorumLeavesTheDiskAlone: the hook point that tells paths comes too early.
func TestQuorumLeavesTheDiskAlone(t *testing.T) {
	w, local, sets := replicas(t)
	before := w.Fixture("vdsm/disk-file.json")
	after, err := call(t, w, "after_disk_prepare", before, map[string]string{"quorum": "sda=db"})
	if err != nil || string(after) != string(before) || len(sets.Calls)+len(local.Calls) != 0 {
		t.Errorf("%v, %q, %q, changed: %t", err, sets.Calls, local.Calls, string(after) != string(before))
	}
}

func TestQuorumPropertyRefused(t *testing.T) {
	for name, c := range map[string]struct {
		property, value string
		kind            *failure.Kind
		word            string
	}{
		"unknown set":  {"quorum", "sda=nosuch", failure.NotFound, "replica set nosuch: it is not defined"},
		"unknown disk": {"quorum", "sdz=db", failure.NotFound, "sdz"},
		"CD-ROM":       {"quorum", "sdc=db", failure.Usage, "CD-ROM"},
		"no pair":      {"quorum", "db", failure.Usage, "DISK=SET"},
		"inline":       {"diskhook", "sda:quorum=db,lower=inline", failure.Usage, "not for VMs of oVirt"},
	} {
		t.Run(name, func(t *testing.T) {
			w, _, sets := replicas(t)
			_, err := call(t, w, "before_vm_start", w.Fixture("vdsm/engine.xml"), map[string]string{c.property: c.value})
			if err == nil || failure.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.word) {
				t.Errorf("%v", err)
			}
			if len(sets.Calls) != 0 {
				t.Errorf("started all the same: %q", sets.Calls)
			}
		})
	}
}

// TestQuorumPropertyTakenAway: the disk of the image has older data.
func TestQuorumPropertyTakenAway(t *testing.T) {
	w, _, sets := replicas(t)
	w.Write("var/lib/diskhook/receipts/"+vmID+"/"+image+".quorum",
		`{"schema":"diskhook.quorum-use/v1","set":"db","domain":"`+vmID+`","target":"sda","key":"`+image+`"}`)
	_, err := call(t, w, "before_vm_start", w.Fixture("vdsm/engine.xml"), nil)
	if failure.KindOf(err) != failure.Conflict || !strings.Contains(failure.Line(err), "set the property quorum=sda=db again") ||
		!strings.Contains(failure.Line(err), "diskhook quorum forget --discard-guest-data "+vmID+" "+image) {
		t.Errorf("%v", err)
	}
	if _, err := call(t, w, "before_vm_start", w.Fixture("vdsm/engine.xml"), map[string]string{"quorum": "sda=db"}); err != nil || len(sets.Calls) != 1 {
		t.Errorf("%v, %q", err, sets.Calls)
	}
}

func TestQuorumIsNotMigrated(t *testing.T) {
	w, _, _ := replicas(t)
	_, err := call(t, w, "before_vm_migrate_source", w.Fixture("vdsm/engine.xml"), map[string]string{"quorum": "sda=db"})
	if failure.KindOf(err) != failure.Precondition || !strings.Contains(err.Error(), "sda") {
		t.Errorf("%v", err)
	}
}

// TestQuorumFormer: what the disk is without the set goes along, so that a set
// which is older can be refused.
func TestQuorumFormer(t *testing.T) {
	w, _, sets := replicas(t)
	after, err := call(t, w, "before_vm_start", w.Fixture("vdsm/engine.xml"), map[string]string{"quorum": "sda=db"})
	if err != nil {
		t.Fatal(err)
	}
	u := sets.Used[0]
	if len(u.Former) != 1 || !strings.HasSuffix(u.Former[0].Path, image+"/"+volume) || u.Former[0].Format == "" || u.Replicas || u.Key != image {
		t.Errorf("%+v", u)
	}
	// VDSM calls again with what was written: nothing tells any more.
	if _, err := call(t, w, "before_vm_start", after, map[string]string{"quorum": "sda=db"}); err != nil {
		t.Fatal(err)
	}
	if u := sets.Used[1]; len(u.Former) != 0 || u.Replicas {
		t.Errorf("again: %+v", u)
	}
}

// TestQuorumUnplugged: the set of a disk that the VM has lost is stopped, no
// other, and nothing is started or written.
func TestQuorumUnplugged(t *testing.T) {
	const disk = `<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='db'><host transport='unix' socket='/run/diskhook/quorum/db/nbd.sock'/></source><target dev='sdb' bus='scsi'/><serial>` + image + `</serial></disk>`
	for name, c := range map[string]struct {
		property string
		calls    []string
	}{
		"by target":    {"sdb=db", []string{"stop db sdb"}},
		"by serial":    {image + "=db", []string{"stop db sdb"}},
		"another disk": {"sda=db", nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, local, sets := replicas(t)
			after, err := call(t, w, "after_disk_hotunplug", []byte(disk), map[string]string{"quorum": c.property})
			if err != nil || string(after) != disk || len(local.Calls) != 0 {
				t.Errorf("%v, %q, %s", err, local.Calls, after)
			}
			if diff := cmp.Diff(c.calls, sets.Calls); diff != "" {
				t.Error(diff)
			}
		})
	}
}
