// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"

	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/layout"
)

// further is a volume of documents that was added when those before it were full.
type further struct {
	Number  int `json:"n"` // in its name
	Buckets int `json:"buckets"`
}

// maxNumber bounds the numbers of further volumes: one that cannot be used is passed over.
const maxNumber = 99

func (f further) name() string { return fmt.Sprintf("%s_%d", documentsLV, f.Number) }

// part is one of the volumes of documents. Slots are told by where they lie in all of them
// together: each begins where the one before it ends.
type part struct {
	dev     *layout.Volume
	name    string // VG/LV, for messages
	first   int64
	buckets int
}

// parts are those that were added. There will be more of them, and none less.
type parts struct {
	mu       sync.Mutex
	sequence uint64 // of the header that named them
	more     []part
}

// all are the volumes of documents, in the order in which they were added.
func (a *area) all() []part {
	one := []part{{dev: a.dev, name: a.name, buckets: a.Buckets}}
	if a.parts == nil {
		return one
	}
	a.parts.mu.Lock()
	defer a.parts.mu.Unlock()
	return append(one, a.parts.more...)
}

// part is the one that has a slot, and where that is in it.
func (a *area) part(at int64) (part, int64) {
	for _, p := range slices.Backward(a.all()) {
		if at >= p.first {
			return p, at - p.first
		}
	}
	return part{dev: a.dev, name: a.name}, at // a header is not known yet
}

// names are the logical volumes that are open.
func (a *area) names() []string {
	var names []string
	for _, one := range a.all() {
		names = append(names, path.Base(one.name))
	}
	return names
}

// close closes what was added.
func (p *parts) close() error {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	for _, one := range p.more {
		err = errors.Join(err, one.dev.Close())
	}
	p.more = nil
	return err
}

// follow opens the volumes that were added since this place looked last, by whatever host:
// a document may be in any. It asks the disk.
func (p *place) follow(ctx context.Context) error {
	all, err := p.area.slots(0, 1)
	if err != nil {
		return err
	}
	p.area.parts.mu.Lock()
	known := p.area.parts.sequence
	p.area.parts.mu.Unlock()
	if all[0].health == whole && all[0].newest.sequence == known {
		return nil
	}
	now := &area{dev: p.area.dev, name: p.area.name}
	if err := now.readHeader(); err != nil {
		return err
	}
	report, err := p.report(ctx)
	if err != nil {
		return err
	}
	return p.join(ctx, now, report)
}

// join opens the volumes that the header names as it was read last.
func (p *place) join(ctx context.Context, now *area, report lvm.Report) error {
	if p.area.parts == nil {
		p.area.parts = &parts{}
	}
	known := p.area.parts
	known.mu.Lock()
	defer known.mu.Unlock()
	if now.slot.newest.sequence <= known.sequence && known.sequence > 0 {
		return nil // another goroutine was here with a later one
	}
	first := size(now.Buckets)
	for i, m := range now.More {
		if i >= len(known.more) {
			one, err := p.openPart(ctx, m, report)
			if err != nil {
				return err
			}
			one.first = first
			known.more = append(known.more, one)
		}
		first += size(m.Buckets)
	}
	known.sequence = now.slot.newest.sequence
	return nil
}

// openPart opens one that was added, and looks whether it is that.
func (p *place) openPart(ctx context.Context, m further, report lvm.Report) (part, error) {
	lv, ok := report.LV(m.name())
	if !ok {
		err := failure.New(failure.Problems, "lv %s/%s: it does not exist: documents were in it", p.vg, m.name())
		return part{}, failure.Hint(err, "bring it back, as with `vgcfgrestore %s`", p.vg)
	}
	if err := p.activate(ctx, lv, false); err != nil {
		return part{}, err
	}
	one, err := openArea(p.node(m.name()), p.vg+"/"+m.name(), p.writable() == nil)
	if err != nil {
		return part{}, err
	}
	if one.Area != p.area.Area || one.Buckets != m.Buckets {
		err := failure.New(failure.Problems, "lv %s: it is of another repository, or not the one that was added", one.name)
		return part{}, errors.Join(err, one.dev.Close())
	}
	return part{dev: one.dev, name: one.name, buckets: m.Buckets}, nil
}
