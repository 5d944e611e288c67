// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// Restorable lets saved memory meet only copies that a guest has used. One
// that would have to be made, and one that was made since, are not what the
// memory was saved with: the guest would write what it remembers over a disk
// that it does not know. Which of its runs a used copy is from nobody can tell.
func (k local) Restorable(ctx context.Context, h *Host, d Domain, bound []Bound) error {
	disks, err := k.disks(ctx, h, d, OnlyReady(bound), false)
	if err != nil {
		return err
	}
	observed, err := h.Local.Observe(ctx, disks)
	if err != nil {
		return err
	}
	for _, o := range observed {
		o.Disk.Create = true // what a start would do if it might
		decision := localdisk.Decide(o)
		used := o.Copy.State == localdisk.Ready && o.Receipt != nil && o.Receipt.Used && !o.Receipt.Untried
		switch {
		case decision.Action == localdisk.Veto:
			return decision.Err
		case decision.Action == localdisk.Adopt:
		case decision.Action == localdisk.Use && used, decision.Action == localdisk.Wait && used:
		case o.Copy.State == localdisk.Absent && !o.Busy:
			return unlike(d, o.Disk, "its local copy is gone")
		default:
			return unlike(d, o.Disk, "its local copy was made since, and no guest has used it")
		}
	}
	return nil
}

// Afresh is the way out for a suspended VM of oVirt whose disks are not those of
// its memory.
const Afresh = "shut the VM down, which gives its memory up, then start it where its copies are"

func unlike(d Domain, disk localdisk.Disk, why string) error {
	err := failure.New(failure.Conflict, "%s: the saved memory needs the disk as the guest left it, but %s", disk, why)
	if d.OVirt {
		return failure.Hint(err, "%s", Afresh)
	}
	return failure.Hint(err, "the memory can not be restored any more; start the domain afresh with `virsh start %[1]s` (after `virsh managedsave-remove %[1]s` if its state is a managed save)", d.NameArg())
}
