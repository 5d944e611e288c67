// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

var onDir = map[string]string{"diskhook": "sda:local=dir"}

// partial is the copy of sda as long as it is not complete.
const partial = "var/lib/diskhook/local/" + volume + ".raw.partial"

// placed is the domain's XML as VDSM hands it to before_vm_start when
// after_disk_prepare has placed sda.
func placed(w *hooktest.World, copied string) []byte {
	xml := bytes.Replace(sharedXML(w), []byte(w.Path(where+"/"+volume)), []byte(copied), 1)
	return bytes.Replace(xml, []byte(`io="threads" type="qcow2"`), []byte(`io="threads" type="raw"`), 1)
}

// TestPlacedIsLookedAt: what after_disk_prepare has made ready may have become
// something else by before_vm_start.
func TestPlacedIsLookedAt(t *testing.T) {
	w := hooktest.New(t, nil)
	oVirt(t, w)
	copied := w.Path("var/lib/diskhook/local/" + volume + ".raw")
	if _, err := call(t, w, "after_disk_prepare", w.Fixture("vdsm/disk-file.json"), onDir); err != nil {
		t.Fatal(err)
	}
	xml := placed(w, copied)
	start := func() error {
		t.Helper()
		got, err := call(t, w, "before_vm_start", xml, onDir)
		if err == nil && !bytes.Equal(got, xml) {
			t.Errorf("a ready file was rewritten: %s", cmp.Diff(string(xml), string(got)))
		}
		return err
	}
	if err := start(); err != nil {
		t.Fatal(failure.Line(err))
	}
	for word, elsewhere := range map[string]string{
		"is gone":  w.Path("away"),
		"UPDATING": w.Path(partial),
	} {
		if err := os.Rename(copied, elsewhere); err != nil {
			t.Fatal(err)
		}
		if err := start(); err == nil || !strings.Contains(failure.Line(err), word) || !strings.Contains(failure.Line(err), "sda") {
			t.Errorf("%s: %v", word, err)
		}
		if _, err := os.Stat(copied); err == nil {
			t.Fatalf("%s: another copy was made", word)
		}
		if err := os.Rename(elsewhere, copied); err != nil {
			t.Fatal(err)
		}
	}
	if err := start(); err != nil {
		t.Error(failure.Line(err))
	}
}

// TestPlacedByAnother: what lies among the copies without a receipt is refused,
// unless it is what oVirt's own hook leaves.
func TestPlacedByAnother(t *testing.T) {
	ready := func(w *hooktest.World, tags string) {
		w.Write("var/lib/diskhook/local/"+volume+".raw", strings.Repeat("x", 1<<20))
		w.Write("var/lib/diskhook/local/"+volume+".json", `{"schema":"diskhook.copy/v1","uuid":"u","tags":[`+tags+`]}`)
	}
	for name, c := range map[string]struct {
		arrange func(w *hooktest.World)
		lost    string // what the metadata do not tell
		words   []string
	}{
		"of another VM":  {func(w *hooktest.World) { ready(w, `"VM_`+image+`","IU_`+image+`"`) }, "", []string{"VM_" + vmID, "local adopt"}},
		"nothing there":  {func(*hooktest.World) {}, "", []string{"no receipt", "absent", "local adopt"}},
		"image not told": {func(w *hooktest.World) { ready(w, `"VM_`+vmID+`","IU_`+image+`"`) }, "poolID", []string{"no receipt", "pool", "local adopt"}},
		"unfinished": {func(w *hooktest.World) {
			ready(w, `"VM_`+vmID+`","IU_`+image+`"`)
			if err := os.Rename(w.Path("var/lib/diskhook/local/"+volume+".raw"), w.Path(partial)); err != nil {
				t.Fatal(err)
			}
		}, "", []string{"no receipt", "updating"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := hooktest.New(t, nil)
			imageOnShare(t, w)
			c.arrange(w)
			xml := placed(w, w.Path("var/lib/diskhook/local/"+volume+".raw"))
			if c.lost != "" {
				xml = bytes.ReplaceAll(xml, []byte("ovirt-vm:"+c.lost), []byte("ovirt-vm:lost"))
			}
			before := w.Files("var/lib/diskhook")
			_, err := call(t, w, "before_vm_start", xml, onDir)
			for _, word := range c.words {
				if err == nil || !strings.Contains(failure.Line(err), word) {
					t.Errorf("%v: no %q", err, word)
				}
			}
			if diff := cmp.Diff(before, w.Files("var/lib/diskhook")); diff != "" {
				t.Errorf("refused, but: %s", diff)
			}
		})
	}
}

// imageOnShare is oVirt with the path that the ids of the disk lead to.
func imageOnShare(t *testing.T, w *hooktest.World) (path string) {
	t.Helper()
	oVirt(t, w)
	pool := w.Path("rhev/data-center/59c4c3ee-0205-0227-0229-000000000155")
	if err := errors.Join(os.MkdirAll(filepath.Dir(pool), 0o755), os.Symlink(w.Path("rhev"), pool)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(pool, strings.TrimPrefix(where, "rhev/"), volume)
}

// TestPlacedByTheOldHook: it left a complete volume, which storage compares
// with the image, by its size. Nothing may be made of that image.
func TestPlacedByTheOldHook(t *testing.T) {
	for format, top := range map[string]int{"qcow2": 3, "raw": 1} {
		w, local := fake(t)
		path := imageOnShare(t, w)
		if format == "raw" {
			if err := os.Rename(w.Path(where+"/base.raw"), path); err != nil {
				t.Fatal(err)
			}
		}
		_, err := call(t, w, "before_vm_start", placed(w, "/dev/ovirt-local/"+volume), map[string]string{"diskhook": "sda:local=lvm"})
		if err != nil {
			t.Fatal(failure.Line(err))
		}
		d := local.Asked[0]
		if len(d.Source) != top || d.Source[0].Path != path || d.Source[0].Format != format || d.Create {
			t.Errorf("%s: asked for %+v", format, d)
		}
		if diff := cmp.Diff([]string{"observe sda=lvm", "fulfil sda=lvm deadline=0s"}, local.Calls); diff != "" {
			t.Error(diff)
		}
	}
}

// TestWithoutMetadata: a disk of which oVirt's metadata do not tell the image
// gets the copy of that image, or is refused; never one of its own.
func TestWithoutMetadata(t *testing.T) {
	const copied = "/dev/ovirt-local/" + volume
	const domain = "f3f6e278-47a1-4048-b9a5-0cf4d6ba455f"
	serial := "<serial>" + image + "</serial>"
	block := func(xml string) string {
		return regexp.MustCompile(`(?s)<ovirt-vm:device devtype="disk" name="sda">.*?</ovirt-vm:device>`).ReplaceAllString(xml, "")
	}
	all := func(xml string) string {
		return regexp.MustCompile(`(?s)<ovirt-vm:vm>.*</ovirt-vm:vm>`).ReplaceAllString(xml, "")
	}
	for name, c := range map[string]struct {
		cut     func(string) string
		path    string // of sda, "" as it is
		serial  string
		receipt bool
		refused string
	}{
		"shared path":                     {block, "", serial, false, ""},
		"shared path, no serial":          {block, "", "", false, ""},
		"nothing of oVirt's":              {all, "", serial, false, ""},
		"VDSM's link":                     {block, "/run/vdsm/storage/" + domain + "/" + image + "/" + volume, "", false, ""},
		"volume of a block domain":        {block, "/dev/" + domain + "/" + volume, serial, false, ""},
		"the same, receipt":               {block, "/dev/" + domain + "/" + volume, "", true, ""},
		"the same, nothing":               {block, "/dev/" + domain + "/" + volume, "", false, "which image"},
		"its copy":                        {block, copied, serial, true, ""},
		"its copy, nothing of oVirt's":    {all, copied, serial, true, ""},
		"its copy, no serial":             {all, copied, "", true, ""},
		"a copy, nobody knows whose":      {all, copied, "", false, "which image"},
		"a copy with a name of libvirt's": {all, "/dev/ovirt-local/dh_" + vmID + "_sda", serial, false, "which image"},
		"a copy by device-mapper's name":  {all, "/dev/mapper/ovirt--local-x", serial, false, "which image"},
		"another serial":                  {block, "", "<serial>" + vmID + "</serial>", false, "which image"},
		"another serial, nothing else":    {all, "", "<serial>" + vmID + "</serial>", false, "which image"},
		"no path of VDSM's":               {all, "/srv/x.img", serial, false, "which image"},
	} {
		t.Run(name, func(t *testing.T) {
			w, local := fake(t)
			oVirt(t, w)
			xml := strings.Replace(string(sharedXML(w)), serial, c.serial, 1)
			if c.path != "" {
				xml = string(placed(w, strings.ReplaceAll(c.path, "ROOT", w.Root)))
				xml = strings.Replace(xml, serial, c.serial, 1)
			}
			if c.receipt {
				w.Receipt(localdisk.Receipt{Domain: vmID, Target: "sda", Image: image, Volume: volume, Backend: "lvm"})
			}
			before := w.Files("")
			_, err := call(t, w, "before_vm_start", []byte(c.cut(xml)), map[string]string{"localdisk": "lvm"})
			if c.refused != "" {
				if err == nil || !strings.Contains(failure.Line(err), c.refused) || !strings.Contains(failure.Line(err), "sda") || len(local.Calls) != 0 {
					t.Errorf("%v, %q", err, local.Calls)
				}
				if diff := cmp.Diff(before, w.Files("")); diff != "" {
					t.Error(diff)
				}
				return
			}
			if err != nil {
				t.Fatal(failure.Line(err))
			}
			if d := local.Asked[0]; d.Image != image || d.Volume != volume || d.Target != "sda" || d.Domain != vmID {
				t.Errorf("asked for %+v", d)
			}
		})
	}
}

// TestBoundByOurMetadata: they bind a disk of libvirt's, whose copy is called
// by its target; on oVirt that would be a second one.
func TestBoundByOurMetadata(t *testing.T) {
	w, local := fake(t)
	stable := w.Path("run/diskhook/disks/" + vmID + "/sda")
	xml := regexp.MustCompile(`(?s)<ovirt-vm:vm>.*</ovirt-vm:vm>`).ReplaceAllString(string(placed(w, stable)),
		`<dh:disks xmlns:dh="urn:diskhook:1" domain="`+vmID+`"><dh:disk target="sda" source="`+stable+`"><dh:local backend="lvm"/></dh:disk></dh:disks>`)
	_, err := call(t, w, "before_vm_start", []byte(xml), nil)
	if err == nil || !strings.Contains(failure.Line(err), "which image") || len(local.Calls) != 0 {
		t.Errorf("%v, %q", err, local.Calls)
	}
}

// TestResume: the copies are on the host where the VM was suspended. On any
// other one after_disk_prepare has made some of what the disks were before.
func TestResume(t *testing.T) {
	json := func(w *hooktest.World) []byte { return w.Fixture("vdsm/disk-file.json") }
	copied := func(w *hooktest.World) string { return w.Path("var/lib/diskhook/local/" + volume + ".raw") }
	done := func(w *hooktest.World, point string, content []byte) {
		t.Helper()
		if _, err := call(t, w, point, content, onDir); err != nil {
			t.Fatalf("%s: %s", point, failure.Line(err))
		}
	}
	here, there := hooktest.New(t, nil), hooktest.New(t, nil)
	for _, w := range []*hooktest.World{here, there} {
		oVirt(t, w)
		done(w, "after_disk_prepare", json(w))
	}
	done(here, "after_vm_hibernate", placed(here, copied(here)))
	done(here, "after_vm_destroy", placed(here, copied(here)))
	done(here, "after_disk_prepare", json(here))
	done(here, "before_vm_dehibernate", placed(here, copied(here)))

	refused := func(w *hooktest.World, words ...string) {
		t.Helper()
		_, err := call(t, w, "before_vm_dehibernate", placed(w, copied(w)), onDir)
		for _, word := range words {
			if err == nil || !strings.Contains(failure.Line(err), word) {
				t.Errorf("%v: no %q", err, word)
			}
		}
	}
	left := func(w *hooktest.World) (left []string) {
		t.Helper()
		for _, path := range []string{copied(w), w.Path("var/lib/diskhook/receipts/" + vmID + "/" + image + ".json"), w.Path("run/diskhook/disks/" + vmID)} {
			if _, err := os.Lstat(path); err == nil {
				left = append(left, path)
			}
		}
		return left
	}
	refused(there, "sda", "suspended here")
	if all := left(there); len(all) != 0 {
		t.Errorf("the copy made for the refused start is left: %q", all)
	}
	done(there, "after_disk_prepare", json(there)) // the VM runs there, and ends
	done(there, "before_vm_start", placed(there, copied(there)))
	done(there, "after_vm_destroy", placed(there, copied(there)))
	done(there, "after_disk_prepare", json(there))
	refused(there, "sda", "suspended here")
	if all := left(there); len(all) != 3 {
		t.Errorf("a guest has used the copy, but only %q is left", all)
	}
	if err := os.Rename(copied(here), here.Path("away")); err != nil {
		t.Fatal(err)
	}
	refused(here, "sda", "is gone")
	if err := os.Rename(here.Path("away"), copied(here)); err != nil {
		t.Fatal(err)
	}
	done(here, "after_vm_dehibernate", placed(here, copied(here)))
	refused(here, "sda", "suspended here") // its memory went on once; what is left of it is old

	forgetful := hooktest.New(t, nil) // it has the mark, and nothing else
	oVirt(t, forgetful)
	forgetful.Write("var/lib/diskhook/receipts/"+vmID+"/saved", "")
	memory := forgetful.Path("var/lib/diskhook/receipts/" + vmID + "/saved")
	done(forgetful, "after_disk_prepare", json(forgetful))
	refused(forgetful, "copy was made since")
	if _, err := os.Stat(memory); err != nil || len(left(forgetful)) != 0 {
		t.Errorf("left %q, mark %v", left(forgetful), err)
	}
	_, err := call(t, forgetful, "before_vm_dehibernate", sharedXML(forgetful), onDir)
	if line := failure.Line(err); err == nil || !strings.Contains(line, "local copy is gone; shut the VM down") || strings.Contains(line, "virsh") {
		t.Error(line)
	}

	xml := sharedXML(there)
	if got, err := call(t, there, "before_vm_dehibernate", bytes.ReplaceAll(xml, []byte(image), []byte(vmID)), nil); err != nil {
		t.Errorf("a VM without binding: %v %s", err, got)
	}
}
