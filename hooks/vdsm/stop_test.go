// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/hooks/vdsm"
)

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
