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
