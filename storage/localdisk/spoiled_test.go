// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// TestUnfinishedVolumeInPlaceOfAUsedCopy: the copy is gone and oVirt's hook
// began another under its name. The way out that the veto names leads out.
func TestUnfinishedVolumeInPlaceOfAUsedCopy(t *testing.T) {
	w := newWorld(t, "lvm")
	_, err := w.hook()
	must(t, err)
	w.reboot()
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	v := g.Volumes["dh_"+domain+"_vda"]
	v.Tags = []string{"UPDATING", "VM_" + domain}
	v.UUID = strings.Replace(v.UUID, v.UUID[:6], "zzzzzz", 1)
	b, err := json.Marshal(g)
	must(t, err)
	must(t, os.WriteFile(w.path("lvm/vg.json"), b, 0o600))

	d := w.disk()
	if _, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{}); !strings.Contains(failure.HintOf(err), "recreate --discard-guest-data") {
		t.Fatalf("%v", err)
	}
	must(t, service().Recreate(t.Context(), d, localdisk.GiveUp{DiscardGuestData: true}, localdisk.Waiting{}))
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
}
