// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/repository"
)

// A domain's disk is an image on a volume group that another host has as well: its volume is
// active here alone from the start to the end, and nowhere after that.
func TestImageOfASharedGroup(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	r, other := w.WithGroup()
	id := r.Disk(w.Write("a.raw", strings.Repeat("what the image has. ", 32<<10)))
	doc := boundTo(t, r.Host, owner, id)

	// The other host has it.
	theirs := repository.Preparing{Holder: "theirs", Write: true}
	at, err := other.PrepareImage(t.Context(), "r", id, theirs)
	if err != nil {
		t.Fatal(err)
	}
	volume := filepath.Base(at.Path)
	_, _, err = startVolumes(t, r.Host, doc)
	refused(t, err, failure.Conflict, "it is in use: by theirs on host "+other.HostID)
	if on := w.ActiveOn(volume); len(on) != 1 || !on[other.HostID] {
		t.Errorf("active on %v", on)
	}
	if err := other.ReleaseImage(t.Context(), "r", id, "theirs"); err != nil {
		t.Fatal(err)
	}

	d, bound, err := startVolumes(t, r.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	if on := w.ActiveOn(volume); len(on) != 1 || !on[hooktest.Machine] {
		t.Errorf("active on %v", on)
	}
	path, err := os.Readlink(link(r.Host, owner, "vda"))
	if err != nil || !strings.HasSuffix(path, "/dev/san/"+volume) {
		t.Errorf("%s: %v", path, err)
	}
	_, err = other.PrepareImage(t.Context(), "r", id, theirs)
	refused(t, err, failure.Conflict, "it is in use: by "+owner)
	for range 2 {
		if err := r.Release(t.Context(), d, bound, "shutdown"); err != nil {
			t.Fatal(err)
		}
	}
	if on := w.ActiveOn(volume); len(on) != 0 {
		t.Errorf("active on %v after the end", on)
	}

	// A snapshot lets the disk go on over another volume: both are open here then.
	r.Cut(id)
	if doc, err = r.Refresh(doc, nil); err != nil {
		t.Fatal(err)
	}
	if d, bound, err = startVolumes(t, r.Host, doc); err != nil {
		t.Fatal(err)
	}
	r.Tool("qemu-io", "-r", "-f", "qcow2", "-c", "read -q 0 64k", link(r.Host, owner, "vda"))
	if on := w.ActiveOn(volume); len(on) != 1 || on[hooktest.Machine] {
		t.Errorf("what it lies on is active on %v", on)
	}
	if err := r.Release(t.Context(), d, bound, ""); err != nil {
		t.Fatal(err)
	}
	if on := w.ActiveOn(volume); len(on) != 0 {
		t.Errorf("active on %v after the end", on)
	}
}
