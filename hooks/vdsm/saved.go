// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"context"
	"errors"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// A suspended VM has its memory on shared storage, and Engine may resume it on
// any host. The local copies of its disks are on one, which has the mark.

func afterVMHibernate(ctx context.Context, v *vm) error {
	_, bound, err := v.gone()
	if err == nil && len(but(bound, "volume")) == 0 {
		return nil // a volume is the same wherever it is attached
	}
	// A VM whose disks cannot be told may have bound ones: it is marked.
	return errors.Join(err, v.Local.MarkSaved(ctx, v.id))
}

// beforeVMDehibernate comes when after_disk_prepare has made the disks ready:
// on another host it has copied what the disks were before, which is not what
// the memory goes with. Only the mark tells.
func beforeVMDehibernate(ctx context.Context, v *vm) error {
	_, _, d, err := v.readDomain()
	if err != nil {
		return err
	}
	bound, err := v.settle(ctx, d)
	if err != nil || len(bound) == 0 {
		return err
	}
	if err = v.resumable(ctx, d, bound); err != nil {
		// What after_disk_prepare made is of no use, here or anywhere.
		if left := v.Local.Abandon(context.WithoutCancel(ctx), v.id); left != nil {
			v.Log.Warn("the copies that were made for this start stay", "err", left)
		}
	}
	return v.orReleased(ctx, d, bound, err)
}

func (v *vm) resumable(ctx context.Context, d bindings.Domain, bound []bindings.Bound) error {
	if here := but(bound, "volume"); bindings.Migratable(d, here) != nil && !localdisk.Saved(v.Layout, v.id) {
		err := failure.New(failure.Precondition, "%s: disk %s is bound to a copy on one host, and this host does not know that the VM was suspended here", d, here[0].Disk.Target)
		return failure.Hint(err, "resume it on the host where it was suspended, or %s", bindings.Afresh)
	}
	return v.Restorable(ctx, d, bound)
}

func afterVMDehibernate(ctx context.Context, v *vm) error {
	return v.Local.ClearSaved(ctx, v.id)
}
