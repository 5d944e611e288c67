// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// readReceipt reads one receipt by its name: the user vdsm may do that, but
// not list the directory. nil: there is none.
func readReceipt(l host.Layout, domain, key string) (*localdisk.Receipt, error) {
	path := filepath.Join(l.Receipts(), domain, key+".json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r localdisk.Receipt
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, failure.New(failure.Precondition, "receipt %s: %w", path, err)
	}
	return &r, nil
}

// Forsaken refuses a domain that has a disk with a receipt, but without a
// binding: the guest's data is in the local copy, and the disk as it stands
// has older data. Receipts that cannot be read count only if they are there.
func (h *Host) Forsaken(d Domain, bound []Bound) error {
	isBound := map[string]bool{}
	for _, b := range bound {
		isBound[b.Disk.Target] = true
	}
	for _, disk := range d.Disks {
		key := disk.Target
		if d.OVirt {
			key = disk.Image
		}
		if isBound[disk.Target] || key == "" || !isWord(key) || !isWord(d.UUID) {
			continue
		}
		r, err := readReceipt(h.Layout, d.UUID, key)
		if err != nil && failure.KindOf(err) == nil {
			h.Log.Warn("receipt", "domain", d.UUID, "disk", disk.Target, "err", err)
			continue
		}
		if err := forsaken(d, disk, r, err); err != nil {
			return err
		}
	}
	return nil
}

func forsaken(d Domain, disk Disk, r *localdisk.Receipt, err error) error {
	switch {
	case err != nil:
		err = failure.New(failure.Precondition, "%s: disk %s: %w", d, disk.Target, err)
		return failure.Hint(err, "restore the file from a backup; `diskhook local list` shows the copies")
	case r == nil || r.Discarding || !d.OVirt && (!r.Used || r.Volume != ""):
		return nil
	}
	args := d.NameArg() + " " + disk.Target
	err = failure.New(failure.Conflict, "%s: disk %s: its data is in the local copy %s/%s, but nothing binds the disk to it any more", d, disk.Target, r.Home, r.Name)
	if d.OVirt {
		return failure.Hint(err, "set the property localdisk=%s again, save the data with `diskhook local export %s FILE`, or give it up with `diskhook local remove --discard-guest-data %s`", r.Backend, args, args)
	}
	return failure.Hint(err, "bind it again with `diskhook domain apply --bind %s:local=%s %s`, save the data with `diskhook local export %s FILE`, or give it up with `diskhook local remove --discard-guest-data %s`", disk.Target, r.Backend, d.NameArg(), args, args)
}
