// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/storage/receipts"
	"diskhook/xmlrewrite"
)

// A copy belongs to a target of its domain. Where that target is gone and what
// the copy was made from is there under another one, nothing that goes by
// target finds the copy, and the guest would see older data.

// Vanished refuses a domain that has lost a bound disk while another disk shows
// what that was: the bound path, or what the copy was made from. A bound disk
// that was just taken out is no reason to refuse; its copy stays.
func (h *Host) Vanished(d Domain) error {
	if d.Metadata == nil {
		return nil
	}
	for _, entry := range d.Metadata.Disks {
		if _, there := d.Disk(entry.Target); there {
			continue
		}
		origin, _ := Bound{Recorded: &entry}.source()
		for _, disk := range d.Disks {
			if disk.At() != "" && disk.At() == entry.Source {
				return drifted(d, entry.Target, entry.Source, "the disk "+disk.Target+" has it now")
			}
			if (entry.Quorum != nil || KeptBy(entry) != "") && disk.shows(origin) {
				return hidden(d, entry, disk)
			}
			if err := h.standsIn(d, entry, disk, origin); err != nil {
				return err
			}
		}
		h.Log.Warn("a bound disk is no longer in the domain", "domain", d.UUID, "disk", entry.Target)
	}
	return nil
}

// standsIn refuses disk if it has what the vanished disk had before it was
// bound, and a guest may have written to the copy since.
func (h *Host) standsIn(d Domain, entry xmlrewrite.BoundDisk, disk Disk, origin []imagecheck.Layer) error {
	if !isWord(entry.Target) || !isWord(d.UUID) {
		return nil
	}
	r, err := localdisk.ReadReceipt(h.Layout, d.UUID, entry.Target)
	if r != nil && disk.shows(r.Source) {
		origin = r.Source
	}
	switch {
	case !disk.shows(origin):
		return nil
	case err != nil:
		return illegible(d, entry.Target, err)
	case r != nil && (r.Discarding || !r.Used), r == nil && !h.written(entry.Local):
		return nil
	}
	return displaced(d, entry.Target, disk)
}

// written says whether a guest may have written to a copy of which this host
// has no receipt: the metadata name it, or say that it is elsewhere.
func (h *Host) written(l *xmlrewrite.Local) bool {
	if l == nil {
		return false
	}
	machine, err := h.Layout.MachineID()
	return l.Copy != "" || l.Host != "" && (err != nil || l.Host != machine)
}

// displaced refuses a domain in which an unbound disk has what another disk's
// copy was made from: the disk got another target, by which its receipt is not
// found. It compares the paths as they are declared and opens no image. On
// oVirt receipts go by image, whatever the target is.
func (h *Host) displaced(d Domain, isBound map[string]bool) error {
	if d.OVirt {
		return nil
	}
	candidates := slices.DeleteFunc(slices.Clone(d.Disks), func(disk Disk) bool { return isBound[disk.Target] || disk.Path == "" })
	if len(candidates) == 0 {
		return nil
	}
	targets, err := receiptTargets(h.Layout, d.UUID)
	if err != nil {
		return illegible(d, candidates[0].Target, err)
	}
	for _, target := range targets {
		if isBound[target] {
			continue
		}
		r, err := localdisk.ReadReceipt(h.Layout, d.UUID, target)
		switch {
		case err != nil && failure.KindOf(err) != nil:
			return illegible(d, target, err)
		case err != nil || r == nil || r.Discarding || !r.Used || r.Volume != "":
			continue
		}
		for _, disk := range candidates {
			if disk.Target != target && disk.shows(r.Source) {
				return displaced(d, target, disk)
			}
		}
	}
	return nil
}

// shows says whether the disk has one of the layers of a chain as its source,
// or lies above the chain. It would then show what the chain has.
func (d Disk) shows(chain []imagecheck.Layer) bool {
	names := func(layer imagecheck.Layer, path string) bool {
		return layer.Path != "" && filepath.Clean(layer.Path) == filepath.Clean(path)
	}
	if d.Path == "" || len(chain) == 0 {
		return false
	}
	return slices.ContainsFunc(chain, func(l imagecheck.Layer) bool { return names(l, d.Path) }) ||
		slices.ContainsFunc(d.Chain, func(l imagecheck.Layer) bool { return names(l, chain[0].Path) })
}

func displaced(d Domain, target string, disk Disk) error {
	target = failure.OneLine(clip(target))
	err := failure.New(failure.Conflict, "%s: disk %s has %s, of which the local copy of disk %s was made; what the guest wrote since is in that copy, and disk %s is no longer in the domain",
		d, disk.Target, describe(disk), target, target)
	args := d.NameArg() + " " + target
	return failure.Hint(err, "give the disk the target %s again with `virsh edit %s`, or leave the copy: `diskhook domain revert --export FILE %s` saves its data, `diskhook domain revert --discard-guest-data %s` gives it up", target, d.NameArg(), args, args)
}

// hidden refuses a disk that has what another one was before it was bound to a
// replica set or to what keeps its data.
func hidden(d Domain, entry xmlrewrite.BoundDisk, disk Disk) error {
	target := failure.OneLine(clip(entry.Target))
	what := failure.OneLine(KeptBy(entry))
	if entry.Quorum != nil {
		what = "replica set " + failure.OneLine(clip(entry.Quorum.Set))
	}
	err := failure.New(failure.Conflict, "%s: disk %s has %s, which disk %s was before it was bound to the %s, and disk %s is no longer in the domain",
		d, disk.Target, describe(disk), target, what, target)
	return failure.Hint(err, "give the disk the target %s again with `virsh edit %s`, or give up what the guest wrote with `diskhook domain revert --discard-guest-data %s %s`", target, d.NameArg(), d.NameArg(), target)
}

// receiptKeys lists the receipts of a kind that a domain has. Where it has no
// directory of them, or none that is for us to list, there is nothing.
func receiptKeys(l host.Layout, domain, suffix string) ([]string, error) {
	if st, err := os.Stat(receipts.Path(l, domain, "")); err != nil || !st.IsDir() {
		return nil, nil
	}
	keys, err := receipts.Keys(l, domain, suffix)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	return slices.DeleteFunc(keys, func(key string) bool { return !isWord(key) }), err
}

// receiptTargets lists the targets for which a domain of libvirt's has receipts.
// Those of oVirt are named by images.
func receiptTargets(l host.Layout, domain string) ([]string, error) {
	keys, err := receiptKeys(l, domain, ".json")
	return slices.DeleteFunc(keys, func(key string) bool { return strings.Contains(key, "-") }), err
}
