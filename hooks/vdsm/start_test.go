// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/storage/localdisk"
)

// sharedXML is Engine's domain with its images below the root.
func sharedXML(w *hooktest.World) []byte {
	xml := bytes.ReplaceAll(w.Fixture("vdsm/engine.xml"), []byte("/rhev/data-center/59c4c3ee-0205-0227-0229-000000000155/"), []byte(w.Root+"/rhev/"))
	return xml
}

func TestBeforeVMStart(t *testing.T) {
	w, local := fake(t)
	oVirt(t, w)
	before := sharedXML(w)
	want := string(before)
	for _, change := range [][2]string{
		{`<disk snapshot="no" type="file" device="disk">`, `<disk snapshot="no" type="block" device="disk">`},
		{`<source file="` + w.Path(where+"/"+volume) + `">`, `<source dev="/dev/ovirt-local/` + volume + `">`},
		{`<driver name="qemu" io="threads" type="qcow2" error_policy="stop" cache="none"/>`, `<driver name="qemu" io="native" type="raw" error_policy="stop" cache="none"/>`},
		{`<source dev="/rhev/data-center/mnt/blockSD/a67a8671-05fc-4e42-b147-f7d3a0496cd6/images/b07a37de-95d6-4682-84cd-c8c9201327e3/b3335e60-6d27-46e0-bed8-50e75cca6786">`, `<source dev="/dev/ovirt-local/b3335e60-6d27-46e0-bed8-50e75cca6786">`},
	} {
		if !strings.Contains(want, change[0]) {
			t.Fatalf("the fixture lacks %s", change[0])
		}
		want = strings.Replace(want, change[0], change[1], 1)
	}
	got, err := call(t, w, "before_vm_start", before, map[string]string{"localdisk": "lvm"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"fulfil sda=lvm sdb=lvm deadline=0s"}, local.Calls); diff != "" {
		t.Errorf("not all disks at once: %s", diff)
	}

	t.Run("after after_disk_prepare", func(t *testing.T) {
		local.Calls = nil
		w.Receipt(localdisk.Receipt{Domain: vmID, Target: "sda", Image: image, Volume: volume})
		w.Receipt(localdisk.Receipt{Domain: vmID, Target: "sdb", Image: "b07a37de-95d6-4682-84cd-c8c9201327e3", Volume: "b3335e60-6d27-46e0-bed8-50e75cca6786"})
		// VDSM has set type and source, and left io=threads.
		prepared := strings.Replace(want, `io="native" type="raw" error_policy="stop" cache="none"/>
      <alias name="ua-c9865`, `io="threads" type="raw" error_policy="stop" cache="none"/>
      <alias name="ua-c9865`, 1)
		if prepared == want {
			t.Fatal("the fixture changed")
		}
		got, err := call(t, w, "before_vm_start", []byte(prepared), map[string]string{"localdisk": "lvm"})
		if err != nil || !cmp.Equal(local.Calls, []string{"fulfil sda=lvm sdb=lvm deadline=0s"}) {
			t.Errorf("%v, not all disks were looked at, once: %q", err, local.Calls)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Error(diff)
		}
		again, err := call(t, w, "before_vm_start", got, map[string]string{"localdisk": "lvm"})
		if err != nil || !bytes.Equal(again, got) || len(local.Calls) != 2 {
			t.Errorf("a second call: %v, %q", err, local.Calls)
		}
	})
	t.Run("no property", func(t *testing.T) {
		if err := os.RemoveAll(w.Path("var/lib/diskhook/receipts")); err != nil {
			t.Fatal(err)
		}
		got, err := call(t, w, "before_vm_start", before, nil)
		if err != nil || !bytes.Equal(got, before) {
			t.Errorf("%v", err)
		}
	})
}

func TestBeforeDiskHotplug(t *testing.T) {
	w, local := fake(t)
	oVirt(t, w)
	snippet := func(path, serial string) string {
		return `<disk device="disk" snapshot="no" type="file"><source file="` + path + `"><seclabel model="dac" relabel="no" type="none"/></source><target bus="scsi" dev="sdq"/><serial>` + serial + `</serial><driver cache="none" error_policy="stop" io="threads" name="qemu" type="qcow2"/></disk>`
	}
	shared := w.Path(where + "/" + volume)
	got, err := call(t, w, "before_disk_hotplug", []byte(snippet(shared, image)), map[string]string{"localdisk": "lvm"})
	if err != nil {
		t.Fatal(err)
	}
	want := `<disk device="disk" snapshot="no" type="block"><source dev="/dev/ovirt-local/` + volume + `"><seclabel model="dac" relabel="no" type="none"/></source><target bus="scsi" dev="sdq"/><serial>` + image + `</serial><driver cache="none" error_policy="stop" io="native" name="qemu" type="raw"/></disk>`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if d := local.Asked[0]; d.Image != image || d.Volume != volume || d.Domain != vmID {
		t.Errorf("asked for %+v", d)
	}
	for name, c := range map[string]struct {
		path, serial string
		refused      bool
	}{
		"a LUN":            {"/dev/mapper/36001405b3b7829f14c1400d925eefebb", "", false},
		"a managed volume": {"/run/vdsm/managedvolumes/" + vmID + "_" + vmID, "", false},
		"another serial":   {shared, vmID, true},
		"no ids":           {"/rhev/a/images/b/c", "", true},
	} {
		local.Calls = nil
		xml := snippet(c.path, c.serial)
		got, err := call(t, w, "before_disk_hotplug", []byte(xml), map[string]string{"localdisk": "lvm"})
		if (err != nil) != c.refused || string(got) != xml || len(local.Calls) != 0 {
			t.Errorf("%s: %v, %q\n%s", name, err, local.Calls, got)
		}
	}
}

// TestDiskOfAnOldVDSM has no diskType; the answer has one.
func TestDiskOfAnOldVDSM(t *testing.T) {
	w, _ := fake(t)
	oVirt(t, w)
	old := strings.Replace(string(w.Fixture("vdsm/disk-file.json")), `"diskType": "file", `, "", 1)
	got, err := call(t, w, "after_disk_prepare", []byte(old), map[string]string{"localdisk": "lvm"})
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(got)), `, "diskType": "block"}`) {
		t.Errorf("%v\n%s", err, got)
	}
}

// TestNothingIsMadeFromACopy: a path among the copies is used if it is the
// disk's own, and is no source whatever it is.
func TestNothingIsMadeFromACopy(t *testing.T) {
	w, local := fake(t)
	for _, path := range []string{"/dev/ovirt-local/" + volume, "/dev/ovirt-local/" + image, "/dev/mapper/ovirt--local-x", w.Path("var/lib/diskhook/local/x.raw")} {
		json := strings.Replace(string(w.Fixture("vdsm/disk-file.json")), w.Path(where+"/"+volume), path, 1)
		if _, err := call(t, w, "after_disk_prepare", []byte(json), map[string]string{"localdisk": "lvm"}); err != nil {
			t.Fatal(err)
		}
		if d := local.Asked[0]; d.Source != nil || d.Create {
			t.Errorf("%s: asked for %+v", path, d)
		}
	}
}
