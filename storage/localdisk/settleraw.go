// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// Pivot says in a receipt that the disk is going from an overlay to a raw copy,
// and names the one of the two that is not the disk: the raw copy while it is
// made, the overlay once it is over. Which one is the disk the receipt says
// with all its other words, which change in one write. Whatever the other one
// has, it may be thrown away.
type Pivot struct {
	Name string `json:"name"` // of volume or file
}

// rawSuffixOfName ends the name of a raw copy that takes an overlay's place.
const rawSuffixOfName = "_raw"

// Pivoting is the making of a raw copy of an overlay. While its domain runs
// QEMU makes it; who has libvirt asks for that, in this order:
//
//	Make → mirror, until both are the same → suspend → pivot → Mark →
//	redefine → Swap → resume → Clean
//
// Until Mark the overlay is the disk: the guest wrote to both, and nothing
// since it was suspended. From Mark on the raw copy is. A crash before it
// costs the raw copy, one after it only leaves to be done what follows. Between
// the pivot and Mark libvirt's definition says which of them is the disk.
//
// For a domain that does not run Convert is all up to and with Mark, without
// QEMU; what follows is the same.
type Pivoting struct {
	*Settling
	// Fill is Disk.Fill of the raw disk, for its receipt.
	Fill string
}

// Pivoting takes up the making of a raw copy, or the rest of one that was
// interrupted; the caller ends it with Release. ErrSettled: the disk is raw.
func (s *Service) Pivoting(domain, key string) (*Pivoting, error) {
	if err := validKey(domain, key); err != nil {
		return nil, err
	}
	r, err := ReadReceipt(s.Layout, domain, key)
	switch {
	case err != nil:
		return nil, err
	case r == nil || r.Discarding:
		return nil, failure.New(failure.NotFound, "%s: no local copy", s.known(domain, key))
	case r.Overlay == nil && r.Pivot == nil:
		return nil, fmt.Errorf("%s: %w: it is raw", r.Disk(), ErrSettled)
	case Saved(s.Layout, domain):
		return nil, s.MayGiveUp(*r, GiveUp{})
	}
	t, err := s.takeUp(*r)
	return &Pivoting{Settling: t}, err
}

// Marked says that the raw copy is the disk.
func (p *Pivoting) Marked() bool { return p.Receipt.Overlay == nil }

// other is the disk as if the copy that its receipt calls the other one were its own.
func (p *Pivoting) other(r *Receipt) Disk {
	d := r.Disk()
	d.Name, d.Copy = r.Pivot.Name, ""
	return d
}

// Other finds the copy that is not the disk: absent, updating or ready.
func (p *Pivoting) Other(ctx context.Context) (Copy, error) {
	if p.Receipt.Pivot == nil {
		return Copy{State: Absent}, nil
	}
	found, err := p.service.find(ctx, []Disk{p.other(&p.Receipt)})
	if err != nil {
		return Copy{}, err
	}
	return found[0], nil
}

// Make makes a raw copy, updating and with nothing in it, under the path at
// which QEMU may have it for good. What an earlier attempt left goes first;
// it must not be open.
func (p *Pivoting) Make(ctx context.Context) (raw Copy, err error) {
	return raw, p.locked(ctx, func(r *Receipt) error {
		if raw, err = p.make(ctx, r); err != nil {
			return err
		}
		// Beyond the disk's end, which is the volume's last extent, too.
		if err := zero(ctx, raw, r.Size); err != nil {
			return err
		}
		return failpoint.Hit("pivot.made")
	})
}

// Reserve gives the raw copy the room again that a mirror took from it: QEMU
// discards what reads as zeros. So its guest never meets a full file system
// ([local] sparse). The mirror may go on meanwhile; what it wrote stays. A
// file system without the room is a failure.NoSpace.
func (p *Pivoting) Reserve(ctx context.Context) error {
	raw, err := p.Other(ctx)
	if err != nil || !raw.file() || p.service.Config.Local.Sparse {
		return err
	}
	if err := raw.keepRoom(p.Receipt.Size); err != nil {
		return fmt.Errorf("%s: reserve its blocks: %w", raw, err)
	}
	return nil
}

// make is Make under the disk's lock. The tail of the copy is as it was.
func (p *Pivoting) make(ctx context.Context, r *Receipt) (raw Copy, err error) {
	s := p.service
	if r.Overlay == nil {
		return raw, failure.New(failure.Conflict, "it is raw already")
	}
	if err := p.removeOther(ctx, r); err != nil {
		return raw, err
	}
	r.Pivot = &Pivot{Name: r.Name + rawSuffixOfName}
	d, b := p.other(r), s.backend(r.Disk())
	d.InPlace = true
	if err := b.room(ctx, []int64{r.Size}); err != nil {
		return raw, err
	}
	if err := r.write(s.Layout, r.Key()); err != nil {
		return raw, err
	}
	if err := failpoint.Hit("pivot.intent"); err != nil {
		return raw, err
	}
	if err := b.announce(d); err != nil {
		return raw, err
	}
	return b.create(ctx, d, r.Size)
}

// removeOther removes the copy that is not the disk, if there is one.
func (p *Pivoting) removeOther(ctx context.Context, r *Receipt) error {
	if r.Pivot == nil {
		return nil
	}
	s := p.service
	found, err := s.find(ctx, []Disk{p.other(r)})
	if err != nil || found[0].State == Absent {
		return err
	}
	if found[0].UUID == r.Copy {
		return failure.New(failure.Conflict, "%s is the disk, and not what is left of another copy", found[0])
	}
	return s.backend(r.Disk()).remove(ctx, found[0])
}

// Mark makes the raw copy the disk, durably, once the domain runs on nothing
// else and is suspended: what was written has reached the disk, the mark
// UPDATING goes, and then the receipt says so.
func (p *Pivoting) Mark(ctx context.Context) error {
	s := p.service
	raw, err := p.Other(ctx)
	if err != nil {
		return err
	}
	err = p.locked(ctx, func(r *Receipt) error {
		if raw.State == Absent || raw.Size < r.Size {
			return failure.New(failure.Conflict, "%s is not the disk's raw copy", raw)
		}
		if !raw.Active { // the domain has stopped since
			b := s.backend(r.Disk())
			if err := b.activate(ctx, []Copy{raw}); err != nil {
				return err
			}
			defer s.deactivateIdle(&group{backend: b, copies: []Copy{raw}})
			if err := raw.awaitNode(ctx); err != nil {
				return err
			}
		}
		return p.mark(ctx, r, raw)
	})
	if err != nil {
		return err
	}
	p.Disk = p.Receipt.Disk()
	return failpoint.Hit("pivot.marked")
}

// mark is Mark under the disk's lock, of a raw copy that is active.
func (p *Pivoting) mark(ctx context.Context, r *Receipt, raw Copy) error {
	s := p.service
	if err := raw.flush(); err != nil {
		return err
	}
	if err := failpoint.Hit("pivot.flushed"); err != nil {
		return err
	}
	if raw.State == Updating {
		machine, err := s.Layout.MachineID()
		if err != nil {
			return err
		}
		if err := s.backend(r.Disk()).finish(ctx, p.other(r), raw, machine); err != nil {
			return err
		}
		if err := failpoint.Hit("pivot.finished"); err != nil {
			return err
		}
	}
	marked := *r
	marked.Name, marked.Copy, marked.Overlay = r.Pivot.Name, raw.UUID, nil
	marked.Pivot, marked.Fill = &Pivot{Name: r.Name}, p.Fill
	if err := marked.write(s.Layout, r.Key()); err != nil {
		return err
	}
	*r = marked
	return nil
}

// Swap points the stable path of a running domain at the copy that is the disk.
func (p *Pivoting) Swap(ctx context.Context) error {
	return p.locked(ctx, func(r *Receipt) error {
		c, err := p.service.copyOf(ctx, *r)
		if err != nil {
			return err
		}
		_, err = p.service.publish(Observed{Disk: r.Disk(), Copy: c, Receipt: r})
		return err
	})
}

// Clean removes the copy that is not the disk, and ends the change.
func (p *Pivoting) Clean(ctx context.Context) error {
	return p.locked(ctx, func(r *Receipt) error {
		if err := p.removeOther(ctx, r); err != nil {
			return err
		}
		if err := failpoint.Hit("pivot.cleaned"); err != nil {
			return err
		}
		r.Pivot, r.Suspended = nil, ""
		return r.write(p.service.Layout, r.Key())
	})
}

// RawPath is where the raw copy of a disk is, by its receipt; "" where there is
// none.
func (p *Pivoting) RawPath(ctx context.Context) (string, error) {
	find := p.Other
	if p.Marked() {
		find = func(ctx context.Context) (Copy, error) { return p.service.copyOf(ctx, p.Receipt) }
	}
	c, err := find(ctx)
	if err != nil || c.State == Absent || c.Format != imagecheck.Raw {
		return "", err
	}
	return c.Path, nil
}
