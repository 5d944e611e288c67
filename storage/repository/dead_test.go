// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagelock"
	"diskhook/storage/repository"
)

// Only a host that is named loses an image, and only if nobody is seen to use it there; who
// could not use it then has taken it from nobody.
func TestAnImageIsTakenFromTheDeadOnly(t *testing.T) {
	w := newWorld(t, "nfs-3.4")
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	p, err := w.on("h1").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
	must(t, err)
	take := func(dead ...string) error {
		_, err := w.on("h2").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "mine", Write: true, Dead: dead})
		return err
	}
	held := func(by string) {
		t.Helper()
		info, err := w.on("h2").GetImage(ctx, "a", disk)
		must(t, err)
		if len(info.Holders) != 1 || info.Holders[0] != by {
			t.Errorf("held by %q, not %q", info.Holders, by)
		}
	}
	refused(t, take(), repository.ErrInUse, "vm on host h1")
	if hint := failure.HintOf(take()); !strings.Contains(hint, "--dead h1") {
		t.Errorf("hint: %s", hint)
	}
	refused(t, take("h3"), repository.ErrInUse, "vm on host h1")
	refused(t, take("h1", "h2"), failure.Usage)
	guest, err := os.OpenFile(p.Path, os.O_RDWR, 0)
	must(t, err)
	must(t, imagelock.Write(guest))
	refused(t, take("h1"), repository.ErrInUse, "its host is not dead")
	must(t, guest.Close())
	held("vm on h1")
	must(t, os.Rename(p.Path, p.Path+".away"))
	refused(t, take("h1"), repository.ErrBroken)
	held("vm on h1")
	must(t, os.Rename(p.Path+".away", p.Path))
	must(t, take("h1"))
	held("mine on h2")
}
