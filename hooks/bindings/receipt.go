// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// Forsaken refuses a domain that has a disk with a receipt, but without a
// binding: the guest's data is in the local copy, and the disk as it stands
// has older data. A receipt that is there but cannot be read or understood
// counts as one; a domain that has no receipts never fails.
func (h *Host) Forsaken(d Domain, bound []Bound) error {
	if !isWord(d.UUID) {
		return nil
	}
	isBound := map[string]bool{}
	for _, b := range bound {
		isBound[b.Disk.Target] = true
	}
	for _, disk := range d.Disks {
		key := disk.Target
		if d.OVirt {
			// VDSM does not always tell the image, but makes it the serial.
			key = cmp.Or(disk.Image, disk.Serial)
		}
		if isBound[disk.Target] || !isWord(key) {
			continue
		}
		r, err := localdisk.ReadReceipt(h.Layout, d.UUID, key)
		if err != nil && failure.KindOf(err) == nil {
			h.Log.Warn("receipt", "domain", d.UUID, "disk", disk.Target, "err", err)
			continue
		}
		if err := h.forsaken(d, disk, r, err); err != nil {
			return err
		}
	}
	if err := h.withoutReplicas(d, bound); err != nil {
		return err
	}
	return h.displaced(d, isBound)
}

func (h *Host) forsaken(d Domain, disk Disk, r *localdisk.Receipt, err error) error {
	switch {
	case err != nil:
		return illegible(d, disk.Target, err)
	case r == nil || r.Discarding || !d.OVirt && (!r.Used || r.Volume != ""):
		return nil
	}
	args := d.NameArg() + " " + disk.Target
	err = failure.New(failure.Conflict, "%s: disk %s: its data is in the local copy %s/%s, but nothing binds the disk to it any more", d, disk.Target, r.Home, r.Name)
	if d.OVirt {
		return failure.Hint(err, "set the property localdisk=%s again, save the data with `diskhook local export %s FILE`, or give it up with `diskhook local remove --discard-guest-data %s`", r.Backend, args, args)
	}
	if disk.Path == localdisk.StablePath(h.Layout, d.UUID, disk.Target) {
		return failure.Hint(err, "bind it again with `diskhook domain apply %s`, or leave the copy: `diskhook domain revert --export FILE %s` saves its data, `diskhook domain revert --discard-guest-data %s` gives it up", d.NameArg(), args, args)
	}
	return failure.Hint(err, "bind it again with `diskhook domain apply --bind %s:local=%s %s`, save the data with `diskhook local export %s FILE`, or give it up with `diskhook local remove --discard-guest-data %s`", disk.Target, r.Backend, d.NameArg(), args, args)
}

func illegible(d Domain, target string, err error) error {
	err = failure.New(failure.Precondition, "%s: disk %s: a guest may have written to its local copy, but what tells cannot be read: %w", d, target, err)
	return failure.Hint(err, "make the file readable, or restore it from a backup; `diskhook local list` shows the copies")
}
