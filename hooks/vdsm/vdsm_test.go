// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/hooks/vdsm"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

func TestMain(m *testing.M) { os.Exit(hooktest.Main(m)) }

const (
	vmID   = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	image  = "c9865ca8-f6d2-4363-bec2-af870a87a819"
	volume = "1dfad482-c65c-436c-aa59-87e020b63302"
	where  = "rhev/f3f6e278-47a1-4048-b9a5-0cf4d6ba455f/images/" + image
)

// call runs a hook point as VDSM does: the file in a temporary directory with
// mode 0600, properties in the environment. It returns what is in the file then.
func call(t *testing.T, w *hooktest.World, point string, content []byte, properties map[string]string) ([]byte, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"vmId": vmID, "_hook_domxml": path}
	if point == "after_disk_prepare" {
		env = map[string]string{"vmId": vmID, "_hook_json": path}
	}
	for name, v := range properties {
		env[name] = v
	}
	err := vdsm.Run(t.Context(), w.Host, vdsm.Call{Point: point, Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok }})
	after, readErr := os.ReadFile(path)
	st, statErr := os.Stat(path)
	if statErr != nil || readErr != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file afterwards: %v, %v, %v", statErr, readErr, st)
	}
	if rest, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(rest) != 1 {
		t.Errorf("left beside the file: %v", rest)
	}
	if rest, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(rest) != 0 {
		t.Errorf("left beside the file: %v", rest)
	}
	if err != nil {
		if !bytes.Equal(after, content) {
			t.Errorf("failed, and wrote %q", after)
		}
		if line := failure.Line(err); failure.HintOf(err) == "" || strings.Contains(line, "\n") {
			t.Errorf("no way out, or more than a line: %q", line)
		}
	}
	return after, err
}

func fake(t *testing.T) (*hooktest.World, *hooktest.Local) {
	local := &hooktest.Local{Err: map[string]error{}}
	w := hooktest.New(t, local)
	local.Layout, local.Config = w.Layout, w.Config
	return w, local
}

// oVirt is a host with the shared disk of testdata/vdsm/disk-file.json; it
// returns what a guest reads from it.
func oVirt(t *testing.T, w *hooktest.World) []byte {
	want := w.Chain(where)
	if err := os.Rename(w.Path(where+"/top.qcow2"), w.Path(where+"/"+volume)); err != nil {
		t.Fatal(err)
	}
	return want
}

// expected is the fixture with the three keys that the hook sets, and nothing
// else, changed.
func expected(t *testing.T, w *hooktest.World, path, diskType string) string {
	text := string(w.Fixture("vdsm/disk-file.json"))
	for old, now := range map[string]string{
		`"diskType": "file"`:                         `"diskType": "` + diskType + `"`,
		`"format": "cow"`:                            `"format": "raw"`,
		`"path": "` + w.Path(where+"/"+volume) + `"`: `"path": "` + path + `"`,
	} {
		if !strings.Contains(text, old) {
			t.Fatalf("the fixture lacks %s", old)
		}
		text = strings.Replace(text, old, now, 1)
	}
	return text
}

func TestAfterDiskPrepare(t *testing.T) {
	for property, want := range map[[2]string]struct{ path, kind string }{
		{"localdisk", "lvm"}:                                          {"/dev/ovirt-local/" + volume, "block"},
		{"localdisk", "lvmthin"}:                                      {"/dev/ovirt-local/" + volume, "block"},
		{"diskhook", "local=lvm,on-stop=discard"}:                     {"/dev/ovirt-local/" + volume, "block"},
		{"diskhook", "sda:local=lvm"}:                                 {"/dev/ovirt-local/" + volume, "block"},
		{"diskhook", image + ":local=lvm;sdb:local=dir"}:              {"/dev/ovirt-local/" + volume, "block"},
		{"localdisk", "dir"}:                                          {"ROOT/var/lib/diskhook/local/" + volume + ".raw", "file"},
		{"diskhook", "local=dir,host=" + hooktest.Machine}:            {"ROOT/var/lib/diskhook/local/" + volume + ".raw", "file"},
		{"diskhook", "local=dir,fill=now,on-stop=keep;sdq:local=lvm"}: {"ROOT/var/lib/diskhook/local/" + volume + ".raw", "file"},
	} {
		t.Run(property[0]+"="+property[1], func(t *testing.T) {
			w, local := fake(t)
			oVirt(t, w)
			got, err := call(t, w, "after_disk_prepare", w.Fixture("vdsm/disk-file.json"), map[string]string{property[0]: property[1]})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(expected(t, w, strings.ReplaceAll(want.path, "ROOT", w.Root), want.kind), string(got)); diff != "" {
				t.Error(diff)
			}
			d := local.Asked[0]
			if d.Domain != vmID || d.Image != image || d.Volume != volume || d.Target != "sda" || d.Create == strings.Contains(property[1], "fill=now") {
				t.Errorf("asked for %+v", d)
			}
			if len(local.Calls) != 1 || !strings.HasSuffix(local.Calls[0], "deadline=0s") {
				t.Errorf("calls %q", local.Calls)
			}
		})
	}
}

// TestUntouchedDisks: not bound, or of a sort that a property for all disks
// passes over.
func TestUntouchedDisks(t *testing.T) {
	w, local := fake(t)
	plain := string(w.Fixture("vdsm/disk-file.json"))
	for name, c := range map[string]struct {
		json       string
		properties map[string]string
	}{
		"no property":   {plain, nil},
		"another disk":  {plain, map[string]string{"diskhook": "sdb:local=lvm"}},
		"CD-ROM":        {strings.Replace(plain, `"device": "disk"`, `"device": "cdrom", "readonly": true`, 1), map[string]string{"localdisk": "lvm"}},
		"read-only":     {strings.Replace(plain, `"index": 0`, `"readonly": "true"`, 1), map[string]string{"localdisk": "lvm"}},
		"shareable":     {strings.Replace(plain, `"index": 0`, `"shared": "shareable"`, 1), map[string]string{"localdisk": "lvm"}},
		"transient":     {strings.Replace(plain, `"index": 0`, `"shared": "transient"`, 1), map[string]string{"localdisk": "lvm"}},
		"LUN":           {strings.Replace(plain, `"index": 0`, `"GUID": "3600"`, 1), map[string]string{"localdisk": "lvm"}},
		"managed":       {strings.Replace(plain, `"index": 0`, `"managed": true`, 1), map[string]string{"localdisk": "lvm"}},
		"network":       {strings.Replace(plain, `"diskType": "file"`, `"diskType": "network"`, 1), map[string]string{"localdisk": "lvm"}},
		"without image": {strings.Replace(plain, `"imageID"`, `"otherID"`, 1), map[string]string{"localdisk": "lvm"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := call(t, w, "after_disk_prepare", []byte(c.json), c.properties)
			if err != nil || string(got) != c.json || len(local.Calls) != 0 {
				t.Errorf("%v, %q, %s", err, local.Calls, got)
			}
			if c.properties["localdisk"] == "" {
				return
			}
			if !strings.Contains(w.Log.String(), "disk is not bound") {
				t.Error("skipped without a word in the log")
			}
			if _, err := call(t, w, "after_disk_prepare", []byte(c.json), map[string]string{"diskhook": "sda:local=lvm"}); err == nil {
				t.Error("named, but skipped")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	lvm := map[string]string{"localdisk": "lvm"}
	json := func(w *hooktest.World) []byte { return w.Fixture("vdsm/disk-file.json") }
	xml := func(w *hooktest.World) []byte { return w.Fixture("vdsm/engine.xml") }
	for name, c := range map[string]struct {
		point      string
		content    func(*hooktest.World) []byte
		properties map[string]string
		words      []string
	}{
		"wrong value":       {"after_disk_prepare", json, map[string]string{"localdisk": "zfs"}, []string{"zfs", "localdisk", "lvmthin"}},
		"empty value":       {"before_vm_start", xml, map[string]string{"localdisk": ""}, []string{"localdisk"}},
		"quorum":            {"before_vm_start", xml, map[string]string{"quorum": "db"}, []string{"quorum"}},
		"two that disagree": {"after_disk_prepare", json, map[string]string{"localdisk": "lvm", "diskhook": "local=dir"}, []string{"sda", "disagree"}},
		"no such disk":      {"before_vm_start", xml, map[string]string{"diskhook": "sdz:local=lvm"}, []string{"sdz"}},
		"a LUN by name":     {"before_vm_start", xml, map[string]string{"diskhook": "sdf:local=lvm"}, []string{"sdf", "LUN"}},
		"vmId":              {"after_disk_prepare", json, map[string]string{"localdisk": "lvm", "vmId": "../../etc"}, []string{"vmId"}},
		"another VM":        {"before_vm_start", xml, map[string]string{"localdisk": "lvm", "vmId": image}, []string{vmID}},
		"no file":           {"before_vm_start", xml, map[string]string{"localdisk": "lvm", "_hook_domxml": "/nonexistent/x"}, []string{"/nonexistent/x"}},
		"a directory":       {"before_vm_start", xml, map[string]string{"localdisk": "lvm", "_hook_domxml": "/"}, []string{"regular"}},
		"relative":          {"before_vm_start", xml, map[string]string{"localdisk": "lvm", "_hook_domxml": "x"}, []string{"absolute"}},
		"not JSON":          {"after_disk_prepare", func(*hooktest.World) []byte { return []byte(`{"path": `) }, lvm, []string{"JSON"}},
		"JSON list":         {"after_disk_prepare", func(*hooktest.World) []byte { return []byte(`[1]`) }, lvm, []string{"JSON"}},
		"key twice":         {"after_disk_prepare", func(*hooktest.World) []byte { return []byte(`{"path": "/a", "path": "/b"}`) }, lvm, []string{"twice"}},
		"two documents":     {"after_disk_prepare", func(*hooktest.World) []byte { return []byte(`{} {}`) }, lvm, []string{"follows"}},
		"not XML":           {"before_vm_start", func(*hooktest.World) []byte { return []byte(`<domain>`) }, lvm, []string{"_hook_domxml"}},
		"empty XML":         {"before_vm_start", func(*hooktest.World) []byte { return nil }, lvm, []string{"_hook_domxml"}},
		"migrates":          {"before_vm_migrate_source", xml, lvm, []string{"sda", "cannot be migrated"}},
		"a path of ours": {"before_vm_start", func(w *hooktest.World) []byte {
			return bytes.Replace(xml(w), []byte("/rhev/data-center/59c4c3ee-0205-0227-0229-000000000155/f3f6e278-47a1-4048-b9a5-0cf4d6ba455f/images/"+image+"/"+volume), []byte("/dev/ovirt-local/another"), 1)
		}, lvm, []string{"sda", "/dev/ovirt-local/another", "not the disk's own"}},
		"forgotten":           {"after_disk_prepare", json, nil, []string{"sda", "localdisk=lvm", "local export", "local remove --discard-guest-data"}},
		"forgotten, XML":      {"before_vm_start", xml, nil, []string{"sda", "localdisk=lvm"}},
		"forgotten, migrates": {"before_vm_migrate_source", xml, nil, []string{"sda"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, local := fake(t)
			if strings.HasPrefix(name, "forgotten") {
				w.Receipt(localdisk.Receipt{Image: image, Volume: volume, Backend: "lvm", Home: "ovirt-local", Name: volume})
			}
			_, err := call(t, w, c.point, c.content(w), c.properties)
			if err == nil {
				t.Fatal("not refused")
			}
			for _, word := range c.words {
				if !strings.Contains(failure.Line(err), word) {
					t.Errorf("line %q lacks %q", failure.Line(err), word)
				}
			}
			if len(local.Calls) != 0 {
				t.Errorf("storage was asked: %q", local.Calls)
			}
		})
	}
}

// TestNothingWrittenOnFailure: what storage refuses comes out as it is, and
// the file stays (call looks).
func TestNothingWrittenOnFailure(t *testing.T) {
	w, local := fake(t)
	oVirt(t, w)
	local.Err["fulfil"] = failure.Hint(failure.New(failure.NoSpace, "vg ovirt-local: 5 bytes are free"), "extend it")
	for point, content := range map[string][]byte{
		"after_disk_prepare": w.Fixture("vdsm/disk-file.json"),
		"before_vm_start":    sharedXML(w),
	} {
		if _, err := call(t, w, point, content, map[string]string{"localdisk": "lvm"}); failure.KindOf(err) != failure.NoSpace {
			t.Errorf("%s: %v", point, err)
		}
	}
}

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

func TestEnds(t *testing.T) {
	w, local := fake(t)
	xml := w.Fixture("vdsm/engine.xml")
	for _, c := range []struct {
		point, property string
		xml             []byte
		calls           []string
		fails           bool
	}{
		{"after_vm_destroy", "local=lvm", xml, []string{"release " + vmID + " sda=lvm sdb=lvm reason=\"destroyed\"", "release-rest " + vmID}, false},
		{"after_vm_destroy", "sdz:local=lvm;sda:local=lvm", xml, []string{"release " + vmID + " sda=lvm reason=\"destroyed\"", "release-rest " + vmID}, false},
		{"after_vm_destroy", "local=lvm", nil, []string{"release-rest " + vmID}, true},
		{"after_vm_hibernate", "local=lvm", xml, []string{"mark-saved " + vmID}, false},
		{"after_vm_hibernate", "sdz:local=lvm", xml, nil, false},
		{"after_vm_hibernate", "local=lvm", nil, []string{"mark-saved " + vmID}, true},
		{"after_vm_dehibernate", "local=lvm", xml, []string{"clear-saved " + vmID}, false},
		{"after_vm_dehibernate", "local=lvm", nil, []string{"clear-saved " + vmID}, false},
		{"after_vm_start", "local=nonsense", nil, nil, false}, // a hook point that is none of ours
	} {
		local.Calls = nil
		path := w.Write("hook", string(c.xml))
		env := map[string]string{"vmId": vmID, "_hook_domxml": path, "diskhook": c.property}
		err := vdsm.Run(t.Context(), w.Host, vdsm.Call{Point: c.point, Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok }})
		if (err != nil) != c.fails {
			t.Errorf("%s %s: %v", c.point, c.property, err)
		}
		if diff := cmp.Diff(c.calls, local.Calls); diff != "" {
			t.Errorf("%s %s: %s", c.point, c.property, diff)
		}
	}
}

func TestBeforeVDSMStart(t *testing.T) {
	w, _ := fake(t)
	links := w.Path("run/diskhook/disks/" + vmID)
	node := w.Write("node", "")
	other := w.Path("run/diskhook/disks/other")
	if err := errors.Join(os.MkdirAll(links, 0o755), os.MkdirAll(other, 0o755), os.Symlink(node, links+"/sda"),
		os.Symlink("/nonexistent/node", links+"/sdb"), os.Symlink("/nonexistent/node", other+"/sda"), os.WriteFile(other+"/file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := vdsm.Run(t.Context(), w.Host, vdsm.Call{Point: "before_vdsm_start", Lookup: func(string) (string, bool) { return "", false }}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		links + "/sda": true, links + "/sdb": false, other + "/sda": false, other + "/file": true,
		w.Path("run/diskhook/lock"): true, w.Path("run/diskhook/status"): true,
	} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

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

// TestUnpluggedWhileItRan: the XML of the end does not name the disk any more.
func TestUnpluggedWhileItRan(t *testing.T) {
	w := hooktest.New(t, nil)
	oVirt(t, w)
	bound := map[string]string{"diskhook": "sda:local=dir,on-stop=discard"}
	if _, err := call(t, w, "after_disk_prepare", w.Fixture("vdsm/disk-file.json"), bound); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(w.Path("run/diskhook/disks/" + vmID + "/sda")); err != nil {
		t.Fatal(err)
	}
	xml := sharedXML(w)
	begin := bytes.Index(xml, []byte(`<disk snapshot="no" type="file" device="disk">`))
	end := begin + bytes.Index(xml[begin:], []byte("</disk>")) + len("</disk>")
	if _, err := call(t, w, "after_vm_destroy", append(xml[:begin:begin], xml[end:]...), bound); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(w.Path("run/diskhook/disks/" + vmID)); err == nil {
		t.Error("its link is still there")
	}
	if _, err := os.Stat(w.Path("var/lib/diskhook/local/" + volume + ".raw")); err != nil {
		t.Errorf("its copy was given up: %v", err)
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

// TestOwnerIsKept: VDSM's file stays VDSM's when root ran the hook.
func TestOwnerIsKept(t *testing.T) {
	uid, gid := 36, 36
	if os.Geteuid() != 0 {
		uid, gid = os.Geteuid(), os.Getegid()
	}
	w, _ := fake(t)
	path := w.Write("hook.json", `{"imageID": "`+image+`", "volumeID": "`+volume+`", "name": "sda", "device": "disk", "diskType": "file", "format": "raw", "path": "/srv/x"}`)
	if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"vmId": vmID, "_hook_json": path, "localdisk": "lvm"}
	if err := vdsm.Run(t.Context(), w.Host, vdsm.Call{Point: "after_disk_prepare", Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); int(sys.Uid) != uid || int(sys.Gid) != gid || st.Mode().Perm() != 0o640 {
		t.Errorf("owner %d:%d, mode %v", sys.Uid, sys.Gid, st.Mode())
	}
	if b, _ := os.ReadFile(path); !strings.Contains(string(b), `"path": "/dev/ovirt-local/`) {
		t.Errorf("%s", b)
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
