// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"fmt"
	"slices"

	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// Rewritten is a domain before and after its disks were bound.
type Rewritten struct {
	Before, After *xmlrewrite.Document
	Domain        Domain // as it was before
	Bound         []Bound
	Skipped       []Skipped
}

// Diff is the change as a unified diff; "" if there is none.
func (r Rewritten) Diff() string {
	return xmlrewrite.Diff(r.Before.Bytes(), r.After.Bytes(), "before", "after")
}

// Rewrite binds disks of a domain for good: it points them at the paths that a
// fulfil makes and records in the metadata what they were. written are the
// bindings of flags and rules. Disks that are bound already stay as they are;
// to bind one otherwise is a failure.Conflict.
func (h *Host) Rewrite(doc *xmlrewrite.Document, written []Binding) (Rewritten, error) {
	r := Rewritten{Before: doc}
	var err error
	if r.Domain, err = ReadDomain(doc); err != nil {
		return r, err
	}
	if err := SameDomain(r.Domain); err != nil {
		return r, err
	}
	if !isWord(r.Domain.UUID) {
		err := failure.New(failure.Usage, "%s: it has no uuid", r.Domain)
		return r, failure.Hint(err, "define it first, or add <uuid>")
	}
	if r.Bound, r.Skipped, err = Resolve(r.Domain, written); err == nil {
		err = h.complete(r.Domain, r.Bound)
	}
	if err != nil {
		return r, err
	}
	if err := apart(r.Domain, r.Bound); err != nil {
		return r, err
	}
	if err := h.mayBind(r.Domain, r.Bound); err != nil {
		return r, err
	}
	var changes []xmlrewrite.Rewriter
	entries := r.Domain.entries()
	for _, b := range r.Bound {
		if b.Recorded != nil {
			if err := stays(r.Domain, b); err != nil {
				return r, err
			}
			if q := b.Recorded.Quorum; q != nil && q.Lower == lowerInline {
				again, err := replicated{}.Point(h, r.Domain, *b.Recorded)
				if err != nil {
					return r, err
				}
				changes = append(changes, again)
			}
			continue
		}
		change, entry, err := h.bind(doc, r.Domain, b)
		if err != nil {
			return r, err
		}
		changes, entries = append(changes, change), append(entries, entry)
	}
	r.After = doc
	if len(changes) > 0 {
		r.After, err = xmlrewrite.Apply(doc, append(h.together(changes), xmlrewrite.SetMetadata{Disks: entries})...)
	}
	if err != nil {
		return r, unlowered(r.Bound, fmt.Errorf("%s: %w", r.Domain, failure.Wrap(failure.Precondition, err)))
	}
	return r, nil
}

// mayBind refuses to bind a disk to a fresh copy where the guest's data is in
// the copy that the same disk had under another target.
func (h *Host) mayBind(d Domain, bound []Bound) error {
	isBound, anew := map[string]bool{}, false
	for _, b := range bound {
		isBound[b.Disk.Target] = b.Recorded != nil
		anew = anew || b.Recorded == nil
	}
	if !anew {
		return nil
	}
	if err := h.Vanished(d); err != nil {
		return err
	}
	return h.displaced(d, isBound)
}

func (h *Host) bind(doc *xmlrewrite.Document, d Domain, b Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error) {
	var entry xmlrewrite.BoundDisk
	if h.IsLocal(b.Disk.Path) {
		return nil, entry, noSource(d, b.Disk)
	}
	kind, err := kindOf(b.Binding.Kind)
	if err != nil {
		return nil, entry, err
	}
	change, entry, err := kind.Rewrite(h, d, b)
	if err != nil {
		return nil, entry, err
	}
	entry.Origin, err = doc.Origin(b.Disk.Target)
	return change, entry, err
}

// Place are the changes by which a VDSM hook makes a domain use its disks,
// once they are ready.
func (h *Host) Place(d Domain, bound []Bound) ([]xmlrewrite.Rewriter, error) {
	var all []xmlrewrite.Rewriter
	for _, b := range bound {
		kind, err := kindOf(b.Binding.Kind)
		if err != nil {
			return nil, err
		}
		change, err := kind.Place(h, d, b)
		if err != nil {
			return nil, err
		}
		all = append(all, change)
	}
	return all, nil
}

// stays refuses to bind a bound disk to something else: its data is there.
func stays(d Domain, b Bound) error {
	recorded, err := fromMetadata(d, b.Recorded)
	if err != nil {
		return err
	}
	// What is not recorded is the default, of which nothing is written.
	what := b.Binding.contradicts(recorded.withDefaults(Binding{Options: map[string]string{"template": templateNone, "image": "", "repo": ""}}))
	if b.Binding.From >= Metadata || what == "" {
		return nil
	}
	err = failure.New(failure.Conflict, "%s: disk %s is bound to %s already, %s differs", d, b.Disk.Target, recorded, what)
	return failure.Hint(err, "run `diskhook domain revert %s` first", d.NameArg())
}

func (d Domain) entries() []xmlrewrite.BoundDisk {
	if d.Metadata == nil {
		return nil
	}
	return slices.Clone(d.Metadata.Disks)
}

// Refresh accepts that disks have drifted: each bound disk is pointed at its
// own path again. A source that the operator gave it meanwhile becomes what
// the disk goes back to when it is reverted; the guest goes on with its copy.
// copies gives the UUID of each disk's copy by target, as the receipts say.
func (h *Host) Refresh(doc *xmlrewrite.Document, copies map[string]string) (*xmlrewrite.Document, error) {
	return h.reRecord(doc, func(kind Kind, d Domain, disk Disk, entry *xmlrewrite.BoundDisk) (outdated bool, err error) {
		if entry.Image != nil {
			if outdated, err = (image{}).refresh(h, d, disk, entry); err != nil {
				return false, err
			}
		}
		if entry.Local != nil {
			l := *entry.Local
			l.Copy = copies[entry.Target]
			entry.Local = &l
		}
		own, err := kind.Source(h, d, *entry)
		if err != nil || disk.At() == own || h.IsLocal(disk.Path) {
			return outdated, err
		}
		entry.OriginImage = nil // the operator's source is what a copy is made of
		entry.Origin, err = doc.Origin(entry.Target)
		return outdated, err
	})
}

// Rebind makes the bindings of a cloned definition its own: paths of its own,
// and no copy yet.
func (h *Host) Rebind(doc *xmlrewrite.Document) (*xmlrewrite.Document, error) {
	return h.reRecord(doc, func(kind Kind, d Domain, _ Disk, entry *xmlrewrite.BoundDisk) (outdated bool, err error) {
		return false, kind.Reassign(h, d, entry)
	})
}

// reRecord lets change edit each entry of the metadata, and points the disks
// at the paths that belong to this domain. A disk that is there already is left
// as it is, unless change says that the definition is outdated.
func (h *Host) reRecord(doc *xmlrewrite.Document, change func(Kind, Domain, Disk, *xmlrewrite.BoundDisk) (outdated bool, err error)) (*xmlrewrite.Document, error) {
	d, err := ReadDomain(doc)
	if err != nil {
		return nil, err
	}
	var entries []xmlrewrite.BoundDisk
	var changes []xmlrewrite.Rewriter
	for _, entry := range d.entries() {
		if _, err := fromMetadata(d, &entry); err != nil {
			return nil, err
		}
		disk, there := d.Disk(entry.Target)
		if !there {
			continue // the disk was taken out of the domain
		}
		kind, _, _ := recordedKind(entry)
		outdated, err := change(kind, d, disk, &entry)
		if err != nil {
			return nil, fmt.Errorf("%s: disk %s: %w", d, entry.Target, err)
		}
		if entry.Source, err = kind.Source(h, d, entry); err != nil {
			return nil, err
		}
		entry.Serial = disk.Serial
		if disk.At() != entry.Source || outdated {
			point, err := kind.Point(h, d, entry)
			if err != nil {
				return nil, err
			}
			changes = append(changes, point)
		}
		entries = append(entries, entry)
	}
	after, err := xmlrewrite.Apply(doc, append(h.together(changes), xmlrewrite.SetMetadata{Disks: entries})...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, failure.Wrap(failure.Precondition, err))
	}
	return after, nil
}
