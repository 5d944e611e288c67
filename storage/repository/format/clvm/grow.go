// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"errors"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/repository/format"
)

// A volume of documents is active on many hosts, so that it cannot be made larger: another
// one is added, with room for as many documents as there are. It has buckets of its own,
// and a document is in any of them, where there was room when it was made. The header of the
// first names it last: until then it is nobody's, and who finds one that was begun, by a
// host that died maybe, makes it anew. One that such a host still has active is passed over.

// errFull says that a document's buckets have no slot left.
var errFull = errors.New("no slot is left for another document")

const (
	// maxParts bounds how many volumes are added: each costs whoever looks for a document.
	maxParts = 8
	// mostBuckets bounds what is added at once, in 512 MiB: it is zeroed before.
	mostBuckets = 4096
)

// growLock is held by who adds a volume, for as long as that takes.
const growLock = "grow"

// grow adds a volume of documents, unless there are more than so many parts already. Without
// room for that it is a failure.NoSpace. The fence is asked before it can be seen.
func (p *place) grow(ctx context.Context, fence format.Fence, parts int) error {
	l, err := p.lock(ctx, growLock, true)
	if err != nil {
		return err
	}
	defer l.Release()
	if err := p.follow(ctx); err != nil || len(p.area.all()) > parts {
		return err // somebody else did
	}
	m, err := p.add(ctx)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("clvm.grow.formatted"); err != nil {
		return err
	}
	err = p.changing(ctx, fence, func(check func() error) error {
		now := &area{dev: p.area.dev, name: p.area.name}
		if err := now.readHeader(); err != nil {
			return err
		}
		h := now.header
		h.V, h.More = headerV2, append(h.More, m)
		if err := errors.Join(check(), l.Check()); err != nil {
			return err
		}
		return now.writeHeader(h)
	})
	if err == nil {
		err = failpoint.Hit("clvm.grow.named")
	}
	return err
}

// add makes a volume of no documents, which nothing names yet.
func (p *place) add(ctx context.Context) (further, error) {
	report, err := p.report(ctx)
	if err != nil {
		return further{}, err
	}
	now := &area{dev: p.area.dev, name: p.area.name}
	if err := now.readHeader(); err != nil {
		return further{}, err
	}
	total := now.Buckets
	for _, m := range now.More {
		total += m.Buckets
	}
	if len(now.More) >= maxParts {
		err := failure.New(failure.NoSpace, "lv %s: %w, and %d volumes were added already", p.area.name, errFull, maxParts)
		return further{}, failure.Hint(err, "remove images and `diskhook repo fix --all` it, or make another repository on another volume group, with --set documents=%d", 2*bucketSlots*total)
	}
	for number := 1; number <= maxNumber; number++ {
		m := further{Number: number, Buckets: min(total, mostBuckets)}
		lv, exists := report.LV(m.name())
		named := slices.ContainsFunc(now.More, func(other further) bool { return other.Number == number })
		if named || exists && (!slices.ContainsFunc(lv.Tags, isOurs) || lv.Size < size(1)) {
			continue
		}
		err := p.begin(ctx, &m, now.header, lv, report)
		if errors.Is(err, lvm.ErrElsewhere) {
			continue // who had begun it may live
		}
		return m, err
	}
	return further{}, failure.New(failure.Conflict, "vg %s: other volumes have all names from %s_1 to %s_%d", p.vg, documentsLV, documentsLV, maxNumber)
}

// begin makes the volume, or goes on with one that was made before, of another size maybe.
func (p *place) begin(ctx context.Context, m *further, h header, lv lvm.LV, report lvm.Report) error {
	if lv.Name != "" {
		m.Buckets = min(int((lv.Size-bucketsAt)/bucketSize), maxBuckets)
	} else {
		least := max(1, m.Buckets/4) // less is not worth the time that each volume costs
		for m.Buckets > least && size(m.Buckets) > report.VG.Free {
			m.Buckets /= 2
		}
		if err := p.allot(ctx, report, m.name(), size(m.Buckets)); err != nil {
			if errors.Is(err, failure.NoSpace) {
				err = failure.Hint(failure.New(failure.NoSpace, "lv %s: %w, and none for more slots: %w", p.area.name, errFull, err),
					"extend the group with `vgextend %s DEVICE`, or remove images and `diskhook repo fix --all` it", p.vg)
			}
			return err
		}
		if err := failpoint.Hit("clvm.grow.made"); err != nil {
			return err
		}
	}
	h.Buckets, h.V, h.More = m.Buckets, headerV1, nil
	if err := p.format(ctx, m.name(), h); err != nil {
		return err
	}
	return p.host.LVM.Deactivate(ctx, p.vg, m.name()) // whoever follows has it as all hosts do
}
