// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
	"diskhook/storage/lvm/lvmtest"
)

func TestLostReceiptsAreAdoptedOnTheOperatorsWord(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		after := w.wroteRaw()
		w.reboot()
		must(t, os.RemoveAll(w.path("var/lib/diskhook/receipts")))
		if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "diskhook local adopt vm vda") {
			t.Fatalf("got %v", err)
		}
		must(t, service().Adopt(t.Context(), w.disk()))
		_, err := w.hook()
		must(t, err)
		w.same(w.stable(), after)
	})
}

// A volume that oVirt's own hook made, as it makes it, is taken over with its
// guest's data.
func TestVolumeOfOVirtsHookIsAdopted(t *testing.T) {
	const image, volume = "c9865ca8-f6d2-4363-bec2-af870a87a819", "1dfad482-c65c-436c-aa59-87e020b63302"
	w := newWorld(t, "lvm")
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) {
		g.Volumes[volume] = &lvmtest.Volume{UUID: "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef", Size: 4 << 20, Tags: []string{"VM_" + domain, "IU_" + image, "PU_00000000-0000-0000-0000-000000000000"}}
	}))
	must(t, os.WriteFile(w.path("lvm/"+volume+".img"), []byte(strings.Repeat("guest", 4<<20/5)+"data"), 0o600))
	d := w.disk()
	d.Image, d.Volume = image, volume
	placements, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
	must(t, err)
	if placements[0].Path != w.path("dev/ovirt-local/"+volume) {
		t.Errorf("path %s", placements[0].Path)
	}
	b, err := os.ReadFile(w.path("lvm/" + volume + ".img"))
	must(t, err)
	if !strings.HasPrefix(string(b), "guestguest") {
		t.Error("the guest's data was touched")
	}
	var r localdisk.Receipt
	data, err := os.ReadFile(w.path("var/lib/diskhook/receipts/" + domain + "/" + image + ".json"))
	must(t, err)
	must(t, json.Unmarshal(data, &r))
	if !r.Used || r.Copy != "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef" {
		t.Errorf("receipt %+v", r)
	}
}

func TestDamagedReceiptHidesNoOther(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	other := w.path("var/lib/diskhook/receipts/b07a37de-95d6-4682-84cd-c8c9201327e3")
	must(t, os.MkdirAll(other, 0o755))
	must(t, os.WriteFile(other+"/vda.json", []byte("{"), 0o644))
	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 2 || entries[0].Problem != "" || !strings.Contains(entries[1].Problem, "not understood") {
		t.Errorf("entries %+v", entries)
	}
	receipts, err := localdisk.Receipts(service().Layout, "")
	if len(receipts) != 1 || !errors.Is(err, failure.Precondition) {
		t.Errorf("receipts %v, %v", receipts, err)
	}
}

func TestCopyWithoutItsSidecarIsNoDeadEnd(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
	after := w.path("after.raw")
	w.tool("cp", w.content(), after)
	w.reboot()
	must(t, os.Remove(strings.TrimSuffix(w.content(), ".raw")+".json"))
	s := service()
	if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "diskhook local adopt vm vda") {
		t.Fatalf("start: %v", err)
	}
	for what, err := range map[string]error{
		"remove": s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}),
		"export": s.Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: w.path("out.raw"), Format: "raw"}),
	} {
		if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "adopt") {
			t.Errorf("%s: %v", what, err)
		}
	}
	entries, err := s.List(t.Context())
	must(t, err)
	if len(entries) != 1 || entries[0].Problem == "" {
		t.Errorf("list: %+v", entries)
	}
	must(t, s.Adopt(t.Context(), w.disk()))
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), after)
}

// A dry run of adopt refuses what adopt refuses, in the same words.
func TestDryRunRefusesWhatAdoptRefuses(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		for name, c := range map[string]struct {
			arrange func(*world)
			kind    *failure.Kind
			word    string
		}{
			"absent": {func(*world) {}, failure.NotFound, "no such copy"},
			"unfinished": {func(w *world) {
				_, _ = w.hook("DISKHOOK_FAILPOINT=fill.created=kill")
				w.awaitUnlocked()
			}, failure.Conflict, "is unfinished"},
			"somebody works on it": {func(w *world) {
				must(t, os.MkdirAll(w.path("run/diskhook/lock"), 0o755))
				l, err := lock.Try(w.path("run/diskhook/lock"), "local-"+domain+"-vda")
				must(t, err)
				w.t.Cleanup(l.Release)
			}, failure.Temporary, "somebody works on its copy"},
			"of another domain": {func(w *world) {
				_, err := w.hook()
				must(t, err)
				must(t, os.RemoveAll(w.path("var/lib/diskhook/receipts")))
				w.tagged("VM_"+domain, "VM_"+strings.Repeat("0", 8)+domain[8:])
			}, failure.Conflict, "is tagged"},
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, backend)
				c.arrange(w)
				_, dry := service().Adopted(t.Context(), w.disk())
				wet := service().Adopt(t.Context(), w.disk())
				if !errors.Is(dry, c.kind) || !strings.Contains(failure.Line(dry), c.word) || wet == nil || failure.Line(dry) != failure.Line(wet) {
					t.Errorf("dry run: %v\nadopt: %v", dry, wet)
				}
			})
		}
	})
}

// tagged changes a tag of the copy behind everybody's back.
func (w *world) tagged(old, tag string) {
	w.t.Helper()
	path := w.path("lvm/vg.json")
	if w.backend == "dir" {
		found, err := filepath.Glob(w.path("var/lib/diskhook/local/*.json"))
		if must(w.t, err); len(found) != 1 {
			w.t.Fatalf("sidecars %q", found)
		}
		path = found[0]
	}
	if w.backend == "thin" {
		path = w.path("var/lib/diskhook/thin/san.labels/dh_" + domain + "_vda.json")
	}
	b, err := os.ReadFile(path)
	must(w.t, err)
	must(w.t, os.WriteFile(path, bytes.ReplaceAll(b, []byte(old), []byte(tag)), 0o644))
}
