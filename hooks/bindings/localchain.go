// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// discoverTimeout bounds how long a start may look at image headers on shared
// storage, for all disks together.
const discoverTimeout = 10 * time.Second

// LocalDisks are those of the bound disks that are local, in localdisk's words
// and with the chains to fill their copies from. They may be filled, whatever
// their binding says of starts: this is for verbs, not for hooks.
func (h *Host) LocalDisks(ctx context.Context, d Domain, bound []Bound) ([]localdisk.Disk, error) {
	_, groups := byKind(bound)
	return local{}.disks(ctx, h, d, groups[local{}.Name()], true)
}

// BoundDisks are the local ones of the bound disks in localdisk's words, as
// they were recorded: nobody looked at what lies below their sources.
func (h *Host) BoundDisks(d Domain, bound []Bound) []localdisk.Disk {
	var disks []localdisk.Disk
	for _, b := range bound {
		if b.Binding.Kind == (local{}).Name() {
			disks = append(disks, local{}.disk(h, d, b))
		}
	}
	return disks
}

// disks are the bound disks in localdisk's words, with the chains to fill from
// where they may be needed.
func (k local) disks(ctx context.Context, h *Host, d Domain, bound []Bound, create bool) ([]localdisk.Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	disks := make([]localdisk.Disk, len(bound))
	for i, b := range bound {
		disk := k.disk(h, d, b)
		if b.overlaid() {
			r, err := localdisk.ReadReceipt(h.Layout, disk.Domain, disk.Key())
			if err == nil && (r == nil || r.Discarding) { // one that cannot be read is refused by whoever acts on it
				return nil, uncovered(d, b)
			}
		}
		if create {
			if disk.From == nil && (len(disk.Source) == 0 || h.IsLocal(disk.Source[0].Path)) {
				return nil, noSource(d, b.Disk)
			}
			disk.Create = true
		}
		if err := disk.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		if err := k.discover(ctx, h, b, &disk); err != nil {
			return nil, err
		}
		if err := h.uncut(d, b, disk); err != nil {
			return nil, err
		}
		h.keepBelowLeaf(&disk)
		disks[i] = disk
	}
	return disks, nil
}

// uncut refuses a definition that says what lies below the disk's overlay, and
// says it wrong: QEMU would believe it and not the image, and the guest would
// read zeros where its data are in the source.
func (h *Host) uncut(d Domain, b Bound, disk localdisk.Disk) error {
	if b.Recorded == nil || b.overlaid() || !b.Disk.Complete {
		return nil
	}
	r, err := localdisk.ReadReceipt(h.Layout, disk.Domain, disk.Key())
	if err != nil || r == nil || r.Discarding || len(r.Below()) == 0 || slices.Equal(paths(b.Disk.Chain), paths(r.Below())) {
		return nil // whoever fulfils reads the receipt again, and says what is wrong with it
	}
	err = failure.New(failure.Conflict, "%s: disk %s: its <backingStore> does not say what its overlay lies on (%s)", d, disk.Target, failure.OneLine(r.Below()[0].Path))
	return failure.Hint(err, "take the element <backingStore> out of the disk with `virsh edit %s`", d.NameArg())
}

func paths(layers []imagecheck.Layer) []string {
	var all []string
	for _, l := range layers {
		all = append(all, l.Path)
	}
	return all
}

// source is the chain that the disk had before it was bound, and whether that
// is all of it.
func (b Bound) source() (layers []imagecheck.Layer, complete bool) {
	if b.Recorded == nil {
		return b.Disk.Layers(), b.Disk.Complete
	}
	origin, err := b.Recorded.OriginDisk()
	if err != nil {
		return nil, false
	}
	was := ReadDisk(origin, false, xmlrewrite.VDSMDevice{})
	return was.Layers(), was.Complete
}

// discover completes the chain of a disk that may have to be filled, by
// reading image headers. A used copy settles everything: then the shared
// storage may be away. If there is a receipt but no guest used the copy yet, a
// chain that cannot be read is told to the log alone, as the copy is most
// likely ready; the receipt knows what the chain was.
func (k local) discover(ctx context.Context, h *Host, b Bound, disk *localdisk.Disk) error {
	if len(disk.Source) == 0 || disk.Source[len(disk.Source)-1].Format == "raw" {
		return nil
	}
	if _, complete := b.source(); complete {
		return nil
	}
	receipt, err := localdisk.ReadReceipt(h.Layout, disk.Domain, disk.Key())
	if err != nil {
		return nil // whoever fulfils reads it again, and says so
	}
	if receipt != nil && receipt.Used && !receipt.Discarding && receipt.Volume == disk.Volume {
		return nil
	}
	if !disk.Create && !disk.OVirt() {
		return nil
	}
	last := len(disk.Source) - 1
	below, err := h.Discover(ctx, *disk, disk.Source[last])
	switch {
	case err == nil:
		disk.Source = append(disk.Source[:last:last], below...)
	case receipt == nil && h.busy(ctx, *disk):
		h.Log.Warn("the chain of the source cannot be read, but its copy is under way", "disk", disk.String(), "err", err)
	case receipt == nil:
		return localdisk.Unreadable(*disk, "no local copy of it is known", err)
	case receipt.Volume != disk.Volume:
		return localdisk.Unreadable(*disk, "its local copy is of the volume "+receipt.Volume, err)
	default:
		if len(receipt.Source) > 0 && receipt.Source[0] == disk.Source[0] {
			disk.Source = receipt.Source
		}
		h.Log.Warn("the chain of the source cannot be read", "disk", disk.String(), "err", err)
	}
	return nil
}

// busy says that somebody works on the disk's copy: who starts the domain
// meanwhile waits for that, and is told how far it is. The time for looking at
// sources may be over.
func (h *Host) busy(ctx context.Context, disk localdisk.Disk) bool {
	observed, err := h.Local.Observe(context.WithoutCancel(ctx), []localdisk.Disk{disk})
	return err == nil && len(observed) == 1 && observed[0].Busy
}

// keepBelowLeaf keeps a copy that the disk's new leaf lies on: somebody took a
// snapshot while the guest ran on it, and without it the leaf is worth nothing.
// A leaf beside it is how on-stop=discard hands out new versions of a disk.
func (h *Host) keepBelowLeaf(disk *localdisk.Disk) {
	if !disk.OVirt() || disk.OnStop != localdisk.Discard || len(disk.Source) < 2 {
		return
	}
	r, err := localdisk.ReadReceipt(h.Layout, disk.Domain, disk.Key())
	if err != nil || r == nil || !r.Used || r.Discarding || r.Volume == disk.Volume {
		return
	}
	if slices.ContainsFunc(disk.Source[1:], func(l imagecheck.Layer) bool { return filepath.Base(l.Path) == r.Volume }) {
		disk.OnStop = localdisk.Keep // which refuses another leaf
	}
}
