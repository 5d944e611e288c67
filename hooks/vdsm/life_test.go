// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// TestLife takes a VM with real copies through VDSM's order of calls.
func TestLife(t *testing.T) {
	w := hooktest.New(t, nil)
	want := oVirt(t, w)
	json := w.Fixture("vdsm/disk-file.json")
	bound := map[string]string{"diskhook": "sda:local=dir,on-stop=discard"}
	copied := w.Path("var/lib/diskhook/local/" + volume + ".raw")
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	expect := func(point string, content []byte, properties map[string]string) []byte {
		t.Helper()
		got, err := call(t, w, point, content, properties)
		if err != nil {
			t.Fatalf("%s: %v", point, failure.Line(err))
		}
		return got
	}

	got := expect("after_disk_prepare", json, bound)
	if diff := cmp.Diff(expected(t, w, copied, "file"), string(got)); diff != "" {
		t.Error(diff)
	}
	if content, err := os.ReadFile(copied); err != nil || !bytes.HasPrefix(content, want) {
		t.Errorf("content: %v", err)
	}
	expect("after_disk_prepare", json, bound) // VDSM was restarted
	xml := expect("before_vm_start", sharedXML(w), bound)

	// A snapshot was taken while it ran: without the copy below it, it is
	// worth nothing.
	snapshot := bytes.Replace(xml, []byte(copied), []byte(w.Path(where+"/1dfad482-c65c-436c-aa59-000000000000")), 1)
	expect("after_vm_destroy", snapshot, bound)
	if !there(copied) {
		t.Fatal("the copy below a snapshot was discarded")
	}
	expect("after_disk_prepare", json, bound)
	// Neither is a start that failed a reason: the disk is where it was before.
	expect("after_vm_destroy", sharedXML(w), bound)
	if !there(copied) {
		t.Fatal("discarded after a start that failed")
	}
	expect("after_disk_prepare", json, bound)

	// Saved memory keeps the copy.
	expect("after_vm_hibernate", xml, bound)
	expect("after_vm_destroy", xml, bound)
	if !there(copied) || !localdisk.Saved(w.Layout, vmID) {
		t.Fatal("the copy of a saved VM was discarded")
	}
	expect("after_disk_prepare", json, bound)
	expect("after_vm_dehibernate", xml, bound)

	// The property goes while the guest's data is in the copy.
	if _, err := call(t, w, "after_disk_prepare", json, nil); failure.KindOf(err) != failure.Conflict {
		t.Errorf("property gone: %v", err)
	}
	expect("after_vm_destroy", xml, bound)
	expect("after_vm_destroy", xml, bound)
	if there(copied) {
		t.Error("on-stop=discard kept the copy")
	}
	if got := expect("after_disk_prepare", json, nil); !bytes.Equal(got, json) {
		t.Error("not bound any more, but rewritten")
	}
	// Pinned elsewhere.
	_, err := call(t, w, "after_disk_prepare", json, map[string]string{"diskhook": "local=dir,host=" + strings.Repeat("f", 32)})
	if failure.KindOf(err) != failure.Precondition || there(copied) {
		t.Errorf("on another host: %v", err)
	}
}

// TestLeafAboveTheCopy: a snapshot that was taken while the VM ran belongs to
// the copy; what on-stop=discard makes of any other leaf is not for it.
func TestLeafAboveTheCopy(t *testing.T) {
	const leaf, version = "1dfad482-c65c-436c-aa59-000000000000", "1dfad482-c65c-436c-aa59-111111111111"
	w := hooktest.New(t, nil)
	oVirt(t, w)
	w.Tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", volume, w.Path(where+"/"+leaf))
	w.Tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid.qcow2", w.Path(where+"/"+version))
	json := func(volumeID string) []byte {
		return bytes.ReplaceAll(w.Fixture("vdsm/disk-file.json"), []byte(volume), []byte(volumeID))
	}
	bound := map[string]string{"diskhook": "sda:local=dir,on-stop=discard"}
	copied := func(volumeID string) string { return w.Path("var/lib/diskhook/local/" + volumeID + ".raw") }
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	if _, err := call(t, w, "after_disk_prepare", json(volume), bound); err != nil {
		t.Fatal(err)
	}
	kept := func(while, why string) {
		t.Helper()
		_, err := call(t, w, "after_disk_prepare", json(leaf), bound)
		if err == nil {
			t.Fatalf("%s: not refused", while)
		}
		if line := failure.Line(err); !strings.Contains(line, volume) || !strings.Contains(line, leaf) || !strings.Contains(line, why) {
			t.Errorf("%s: %v", while, err)
		}
		if !there(copied(volume)) || there(copied(leaf)) {
			t.Fatalf("%s: the copy below the leaf was given up", while)
		}
	}
	kept("a snapshot", "leaf is now")
	if err := os.Rename(w.Path(where+"/"+leaf), w.Path("away")); err != nil {
		t.Fatal(err)
	}
	kept("shared storage away", "cannot be read")
	if _, err := call(t, w, "after_disk_prepare", json(version), bound); err != nil {
		t.Fatal(err)
	}
	if there(copied(volume)) || !there(copied(version)) {
		t.Error("a new version does not replace the old one")
	}
}
