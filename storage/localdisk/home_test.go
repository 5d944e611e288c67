// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// Another place for copies is for those that are made from now on. The others
// stay where they are, and are found there.
func TestCopyStaysWhereItWasMade(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
	want, err := os.ReadFile(w.stable())
	must(t, err)
	w.reboot()

	other := w.path("other")
	t.Setenv("DISKHOOK_TEST_DIR", other)
	_, err = w.hook()
	must(t, err)
	got, err := os.ReadFile(w.stable())
	must(t, err)
	if string(got) != string(want) {
		t.Error("the guest sees other data")
	}
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is in the other place: %v", err)
	}
	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 1 || entries[0].Copy.Path != w.content() || entries[0].Problem != "" {
		t.Errorf("listed: %+v", entries)
	}
	must(t, service().Release(t.Context(), domain, []localdisk.Disk{w.disk()}, ""))
	must(t, service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: w.path("exported.raw"), Format: "raw"}))
	must(t, service().Adopt(t.Context(), w.disk()))

	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	if _, err := os.Stat(w.content()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed, and there: %v", err)
	}
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
	if to, err := os.Readlink(w.stable()); err != nil || to != other+"/dh_"+domain+"_vda.raw" {
		t.Errorf("the new copy is %s, %v", to, err)
	}
}

// A copy that no guest has used, of a source that changed, is made again where
// copies go now.
func TestCopyThatIsMadeAgainMoves(t *testing.T) {
	w := newWorld(t, "dir")
	must(t, service().Prestage(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{}))
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 0 64k", w.source[0].Path)
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
	t.Setenv("DISKHOOK_TEST_DIR", w.path("other"))
	if err := service().Prestage(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{}); err != nil {
		t.Fatal(failure.Line(err))
	}
	_, err := w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
	if _, err := os.Stat(w.content()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old one is there: %v", err)
	}
}
