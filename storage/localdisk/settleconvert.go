// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
	"diskhook/storage/transfer"
)

// Convert makes the raw copy of a domain that does not run, with all that the
// overlay has and takes from its source, and makes it the disk. The disk's lock
// is held from before the first byte is read until that is durable, so that no
// start gets the overlay meanwhile; one that waits for it stops this. Whatever
// stops it before then, the overlay is the disk, and the raw copy goes.
//
// ErrOpen: somebody has the disk open, or it is fulfilled for a start.
func (p *Pivoting) Convert(ctx context.Context, rate int64, notify progress.Func) error {
	err := p.underLock(ctx, func(r *Receipt, held *lock.Lock) error { return p.convert(ctx, r, held, rate, notify) })
	if err != nil {
		return err
	}
	p.Disk = p.Receipt.Disk()
	return failpoint.Hit("pivot.marked")
}

func (p *Pivoting) convert(ctx context.Context, r *Receipt, held *lock.Lock, rate int64, notify progress.Func) (err error) {
	s, b := p.service, p.service.backend(r.Disk())
	if r.Overlay == nil {
		return failure.New(failure.Conflict, "it is raw already")
	}
	c, err := p.whatItSays(ctx, r)
	if err != nil {
		return err
	}
	if s.linked(*r) { // by a start that is through here, and has not opened it yet
		err := fmt.Errorf("%s: %w: %s leads to it", c, ErrOpen, link(s.Layout, r.Disk()))
		return failure.Hint(err, "run this again once the domain runs; if it does not, start it and shut it off first")
	}
	if c.Active && !s.asFileOpen(c).closed() {
		return fmt.Errorf("%s: %w", c, ErrOpen)
	}
	p.Receipt = *r
	o, err := s.foundBy(ctx, *r)
	if err != nil {
		return err
	}
	if err := b.activate(ctx, o.nodes()); err != nil {
		return err
	}
	defer s.deactivateIdle(&group{backend: b, copies: []Copy{c}})
	if err := p.readable(ctx, c); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.takeBack()
		}
	}()
	raw, err := p.make(ctx, r)
	if err != nil {
		return err
	}
	defer p.rest(p.other(r))
	if err := p.fill(ctx, r, c, raw, held, rate, notify); err != nil {
		return err
	}
	if err := failpoint.Hit("pivot.converted"); err != nil {
		return err
	}
	// What is left takes no time.
	return p.mark(context.WithoutCancel(ctx), r, raw)
}

// fill copies what a guest would find on the overlay.
func (p *Pivoting) fill(ctx context.Context, r *Receipt, c, raw Copy, held *lock.Lock, rate int64, notify progress.Func) error {
	s := p.service
	if err := raw.awaitNode(ctx); err != nil {
		return err
	}
	source, err := p.open(ctx, r, c)
	if err != nil {
		return err
	}
	defer source.Close()
	engine := &transfer.Engine{Run: s.Run, Log: s.Log}
	_, err = engine.Copy(ctx, from(source, raw), raw.target(), transfer.Options{
		Rate: rate, Locks: []*os.File{held.File(), p.lock.File()}, IOClass: s.ioClass(),
		Progress: func(done, total int64) {
			p.Advance(done, total)
			if notify != nil {
				notify(done, total)
			}
		},
	})
	return err
}

// open opens the overlay and its template, which are ours, and a source below it,
// which must lie where sources may.
func (p *Pivoting) open(ctx context.Context, r *Receipt, c Copy) (*imagecheck.Opened, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	allowed := func(path string) (string, error) {
		if path == c.Path || r.OnTemplate() && path == r.Overlay.Template.Path {
			return filepath.EvalSymlinks(path)
		}
		return p.service.Config.Paths.Allowed(path)
	}
	return imagecheck.Checker{Allowed: allowed, User: p.service.reader(p.Disk)}.Open(ctx, r.layers(c))
}

// takeBack removes a raw copy that came to nothing, so that it takes no room.
// It is called under the disk's lock. What the receipt says now counts: one that
// could not be written may be there all the same.
func (p *Pivoting) takeBack() {
	s := p.service
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := ReadReceipt(s.Layout, p.Disk.Domain, p.Disk.Key())
	if err != nil || r == nil || r.Overlay == nil || r.Pivot == nil {
		return
	}
	if err = p.removeOther(ctx, r); err == nil {
		r.Pivot = nil
		err = r.write(s.Layout, r.Key())
	}
	if err != nil { // the next settling does it
		s.Log.Warn("take an unfinished raw copy back", "disk", p.Disk.String(), "err", err)
	}
}

// rest deactivates the volume of a disk that does not run.
func (p *Pivoting) rest(d Disk) {
	s := p.service
	found, err := s.find(context.Background(), []Disk{d})
	if err != nil || found[0].State == Absent {
		return
	}
	found[0].Active = false // it was not, before this
	s.deactivateIdle(&group{backend: s.backend(d), copies: found})
}
