// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
)

// Settling is the making whole of one overlay: all that it takes from its
// source is read into it, after which the source is not needed any more. While
// the domain runs QEMU does it, and who has libvirt asks for that; while it is
// stopped, Offline does.
//
// There is no state of a copy for it. Whatever stops it, the overlay is the
// disk, its allocated clusters say how far it got, and its receipt says that
// the source is needed until Finish has said otherwise.
type Settling struct {
	Disk    Disk
	Receipt Receipt

	service *Service
	lock    *lock.Lock
	status  *progress.Writer
}

// ErrSettled says that there is nothing to settle. It is a failure.NotFound.
var ErrSettled = failure.Wrap(failure.NotFound, errors.New("nothing of it is in its source"))

// settleLock is held by who settles a disk. It is not the disk's lock: a start
// need not wait while QEMU reads the source in, nor a stop.
func settleLock(domain, key string) string { return "settle-" + domain + "-" + key }

// settleJob begins the id of a status that tells of a settling.
const settleJob = "settle-"

// Settle takes up the settling of a disk. Of those who do, the second gets a
// failure.Temporary; the caller ends it with Release. ErrSettled: there is
// nothing to do.
func (s *Service) Settle(domain, key string) (*Settling, error) {
	if err := validKey(domain, key); err != nil {
		return nil, err
	}
	r, err := s.toSettle(domain, key)
	if err != nil {
		return nil, err
	}
	return s.takeUp(*r)
}

// takeUp takes the lock of who settles a disk.
func (s *Service) takeUp(r Receipt) (*Settling, error) {
	if err := s.runDirs(); err != nil {
		return nil, err
	}
	d := r.Disk()
	l, err := lock.Try(s.Layout.Locks(), settleLock(r.Domain, r.Key()))
	if errors.Is(err, lock.ErrHeld) {
		err = failure.Hint(fmt.Errorf("%s: it is being settled: %w", d, err),
			"watch it with `diskhook local status --watch %s`, or stop it with `diskhook local cancel %s`", d.NameArg(), d.args())
	}
	if err != nil {
		return nil, err
	}
	status := progress.NewWriter(s.statusPath(r.Domain, r.Key()), settleJob+d.Key(), d.DomainName, d.String())
	return &Settling{Disk: d, Receipt: r, service: s, lock: l, status: status}, nil
}

// toSettle is the receipt of an overlay that can be settled.
func (s *Service) toSettle(domain, key string) (*Receipt, error) {
	r, err := s.unsettled(domain, key)
	if err == nil && Saved(s.Layout, domain) {
		err = s.MayGiveUp(*r, GiveUp{})
	}
	return r, err
}

// unsettled is the receipt of an overlay that is not settled.
func (s *Service) unsettled(domain, key string) (*Receipt, error) {
	r, err := ReadReceipt(s.Layout, domain, key)
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, failure.New(failure.NotFound, "%s: no local copy", s.known(domain, key))
	case !r.Unsettled():
		return nil, fmt.Errorf("%s: %w", r.Disk(), ErrSettled)
	}
	return r, nil
}

// Release gives the settling up, whether it came to an end or not; err says
// how it did.
func (t *Settling) Release(err error) {
	defer t.lock.Release()
	if err == nil {
		t.status.Set(progress.Ready)
		return
	}
	code := ""
	if k := failure.KindOf(err); k != nil {
		code = k.Code
	}
	t.status.Fail(failure.OneLine(err.Error()), code, failure.HintOf(err))
}

// Advance tells how far it is, to whoever asks for the disk's status.
func (t *Settling) Advance(done, total int64) {
	t.status.Set(progress.Copying)
	t.status.Advance(done, total)
}

// Copy finds the overlay as it is now, and refuses another one.
func (t *Settling) Copy(ctx context.Context) (Copy, error) {
	s := t.service
	r, err := s.toSettle(t.Receipt.Domain, t.Receipt.Key())
	if err != nil {
		return Copy{}, err
	}
	if r.Copy != t.Receipt.Copy {
		return Copy{}, failure.New(failure.Conflict, "%s: its copy was made anew meanwhile", t.Disk)
	}
	c, err := t.whatItSays(ctx, r)
	if err == nil {
		t.Receipt = *r
	}
	return c, err
}

// whatItSays is the copy that a receipt says is the disk, and no other.
func (t *Settling) whatItSays(ctx context.Context, r *Receipt) (Copy, error) {
	o, err := t.service.foundBy(ctx, *r)
	c := o.Copy
	switch {
	case err != nil:
		return c, err
	case c.State == Absent:
		return c, lost(Observed{Disk: t.Disk, Receipt: r})
	case c.State != Ready:
		return c, spoiled(Observed{Disk: t.Disk, Copy: c, Receipt: r})
	case c.UUID != r.Copy:
		return c, foreign(Observed{Disk: t.Disk, Copy: c, Receipt: r})
	}
	return c, o.Below
}

// Whole says whether the overlay lies on nothing any more, by its header. That
// alone does not settle it: see Finish.
func (t *Settling) Whole(ctx context.Context) (bool, error) {
	c, err := t.Copy(ctx)
	if err != nil {
		return false, err
	}
	h, err := c.header()
	return err == nil && h.BackingFile == "", err
}

// ErrOpen says that the disk cannot be settled offline, as somebody has it
// open. It is a failure.Conflict.
var ErrOpen = failure.Wrap(failure.Conflict, errors.New("it is open, or may be"))

// Offline reads the source into the overlay of a domain that does not run, and
// marks it as settled. It holds the disk's lock meanwhile. A start of the
// domain stops it; what was read stays.
func (t *Settling) Offline(ctx context.Context, rate int64, notify progress.Func) error {
	s := t.service
	held, err := s.lockOne(ctx, t.Disk.Domain, t.Disk.Key())
	if err != nil {
		return err
	}
	defer held.Release()
	c, err := t.Copy(ctx)
	if err != nil {
		return err
	}
	if c.Active && !s.asFileOpen(c).closed() {
		return fmt.Errorf("%s: %s: %w", t.Disk, c, ErrOpen)
	}
	b := s.backend(t.Disk)
	if err := b.activate(ctx, []Copy{c}); err != nil {
		return fmt.Errorf("%s: %w", t.Disk, err)
	}
	defer s.deactivateIdle(&group{backend: b, copies: []Copy{c}})
	if err := t.flatten(ctx, c, rate, notify, held); err != nil {
		return during(t.Disk, "settle", err)
	}
	return t.mark(ctx, c)
}

// readable makes sure, before all of an overlay is read, that it lies on what
// its receipt says, also where its header forgot.
func (t *Settling) readable(ctx context.Context, c Copy) error {
	s := t.service
	if err := c.awaitNode(ctx); err != nil {
		return err
	}
	// With a look at the source even if no guest used the overlay yet.
	used := t.Receipt
	used.Used = true
	below := []Observed{{Disk: t.Disk, Receipt: &used, Copy: c}}
	if s.lookBelow(ctx, below); below[0].Below != nil {
		return below[0].Below
	}
	return s.fit(ctx, Observed{Disk: t.Disk, Receipt: &t.Receipt, Copy: c})
}

func (t *Settling) flatten(ctx context.Context, c Copy, rate int64, notify progress.Func, held *lock.Lock) error {
	s, r := t.service, t.Receipt
	if err := t.readable(ctx, c); err != nil {
		return err
	}
	if err := failpoint.Hit("settle.begun"); err != nil {
		return err
	}
	img := qemuimg.QemuImg{Run: s.Run}
	t.status.Set(progress.Copying)
	err := img.Flatten(ctx, qemuimg.FlattenOptions{
		Chain: r.layers(c), Rate: rate, Size: r.Size, Locks: []*os.File{held.File(), t.lock.File()},
		Progress: func(done, total int64) {
			t.status.Advance(done, total)
			if notify != nil {
				notify(done, total)
			}
		},
	})
	if err != nil {
		return err
	}
	if err := failpoint.Hit("settle.flattened"); err != nil {
		return err
	}
	if err := img.RemoveBacking(ctx, c.Path); err != nil {
		return err
	}
	return failpoint.Hit("settle.whole")
}

// locked calls act under the disk's lock, with the receipt as it is now. A disk
// that somebody gave up meanwhile, or made anew, is a failure.Conflict.
func (t *Settling) locked(ctx context.Context, act func(*Receipt) error) error {
	return t.underLock(ctx, func(r *Receipt, _ *lock.Lock) error { return act(r) })
}

// underLock is locked for who passes the lock on to what writes for it.
func (t *Settling) underLock(ctx context.Context, act func(*Receipt, *lock.Lock) error) error {
	s := t.service
	l, err := s.lockOne(ctx, t.Disk.Domain, t.Disk.Key())
	if err != nil {
		return err
	}
	defer l.Release()
	r, err := ReadReceipt(s.Layout, t.Disk.Domain, t.Disk.Key())
	if err != nil {
		return err
	}
	if r == nil || r.Discarding || r.Copy != t.Receipt.Copy {
		return failure.New(failure.Conflict, "%s: its copy was given up or made anew meanwhile", t.Disk)
	}
	if err := act(r, l); err != nil {
		return fmt.Errorf("%s: %w", t.Disk, err)
	}
	t.Receipt = *r
	return nil
}

// Suspending notes durably, before it is done, which run of the domain is
// suspended for this; "" notes after it that none is any more.
func (t *Settling) Suspending(ctx context.Context, run string) error {
	return t.locked(ctx, func(r *Receipt) error {
		r.Suspended = run
		if err := r.write(t.service.Layout, r.Key()); err != nil {
			return err
		}
		return failpoint.Hit("settle.noted")
	})
}

// Finish marks the overlay as settled, durably, once QEMU has read the source
// into it and has flushed what it knows of it. That its header says so, too,
// is looked at again here.
func (t *Settling) Finish(ctx context.Context) error {
	held, err := t.service.lockOne(ctx, t.Disk.Domain, t.Disk.Key())
	if err != nil {
		return err
	}
	defer held.Release()
	c, err := t.Copy(ctx)
	if err != nil {
		return err
	}
	return t.mark(ctx, c)
}

// mark is called under the disk's lock.
func (t *Settling) mark(_ context.Context, c Copy) error {
	h, err := c.header()
	if err != nil {
		return fmt.Errorf("%s: %w", t.Disk, err)
	}
	if h.BackingFile != "" {
		return failure.New(failure.Problems, "%s: %s lies on %s still", t.Disk, c, failure.OneLine(h.BackingFile))
	}
	if err := c.flush(); err != nil {
		return fmt.Errorf("%s: %w", t.Disk, err)
	}
	if err := failpoint.Hit("settle.flushed"); err != nil {
		return err
	}
	r := t.Receipt
	overlay := *r.Overlay
	overlay.Settled = time.Now().UTC()
	r.Overlay, r.Suspended = &overlay, ""
	if err := r.write(t.service.Layout, r.Key()); err != nil {
		return fmt.Errorf("%s: %w", t.Disk, err)
	}
	return failpoint.Hit("settle.marked")
}

// settling says whether somebody settles the disk.
func (s *Service) settling(domain, key string) bool {
	held, err := lock.Held(s.Layout.Locks(), settleLock(domain, key))
	return err == nil && held
}
