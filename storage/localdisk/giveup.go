// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// GiveUp says what is to become of a guest's writes in a copy that goes away.
// Once a guest has used the copy one of both is required.
type GiveUp struct {
	Export           string // write the disk to this new file first
	Rate             int64  // bytes per second that the export reads at most; 0 is unlimited
	DiscardGuestData bool
}

// Remove gives a copy up: the intent, the copy, the receipt, in that order.
// It refuses while the domain has saved memory, while the copy is open, and
// when g does not say what becomes of the guest's writes. Of a copy that failed
// it forgets the failure. Nothing there to remove is a failure.NotFound.
func (s *Service) Remove(ctx context.Context, domain, key string, g GiveUp) error {
	l, err := s.lockOne(ctx, domain, key)
	if err != nil {
		return err
	}
	defer l.Release()
	r, err := ReadReceipt(s.Layout, domain, key)
	if err != nil {
		return err
	}
	if r == nil {
		err := s.removeUnclaimed(ctx, domain, key)
		switch {
		case err == nil:
			s.removeStatus(domain, key)
		case errors.Is(err, failure.NotFound) && s.forgetFailure(domain, key):
			return nil // that it failed was all there was
		}
		return err
	}
	if err := s.MayGiveUp(*r, g); err != nil {
		return err
	}
	if g.Export != "" {
		if err := s.export(ctx, l, *r, ExportOptions{To: g.Export, Format: exportFormat(g.Export), Rate: g.Rate}); err != nil {
			return err
		}
	}
	if err := s.giveUp(ctx, *r); err != nil {
		return err
	}
	s.removeStatus(domain, key)
	return nil
}

// removeStatus takes away what tells how the copy of a disk was made, after the
// copy; and the domain's folder, if nothing is left in it. It is called under
// the disk's lock. A job stays: it is of a copy process that is about to begin.
func (s *Service) removeStatus(domain, key string) {
	path := s.statusPath(domain, key)
	for _, file := range []string{path, s.logPath(domain, key), s.cancelPath(domain, key)} {
		_ = os.Remove(file) // what stays is for gc
	}
	_ = os.Remove(filepath.Dir(path))
}

// Recreate gives the copy of d up as Remove does, then fills a new one.
func (s *Service) Recreate(ctx context.Context, d Disk, g GiveUp, w Waiting) error {
	switch err := s.Remove(ctx, d.Domain, d.Key(), g); {
	case errors.Is(err, failure.NotFound):
		if d.Copy != "" && !g.DiscardGuestData {
			return forgotten(Observed{Disk: d})
		}
	case err != nil:
		return err
	}
	d.Copy = "" // whatever the metadata name, it was given up
	return s.Prestage(ctx, []Disk{d}, w)
}

// MayGiveUp says whether Remove would refuse, and why.
func (s *Service) MayGiveUp(r Receipt, g GiveUp) error {
	d := r.Disk()
	switch {
	case Saved(s.Layout, r.Domain):
		err := failure.New(failure.Conflict, "%s: the domain has saved memory that needs this disk", d)
		return failure.Hint(err, "start the domain and shut it down; if its memory was dropped, say so with `rm %s`", savedMark(s.Layout, r.Domain))
	case r.Used && !r.Discarding && g.Export == "" && !g.DiscardGuestData:
		err := failure.New(failure.Conflict, "%s: the guest has written to its local copy, and nowhere else", d)
		return failure.Hint(err, "keep the data with `diskhook local remove --export FILE %[1]s`, or give it up with `diskhook local remove --discard-guest-data %[1]s`", d.args())
	}
	return nil
}

// giveUp writes the intent and finishes it. It is called under the lock.
func (s *Service) giveUp(ctx context.Context, r Receipt) error {
	c, err := s.copyOf(ctx, r)
	if err != nil {
		return err
	}
	switch {
	case c.State == Absent:
	case c.State == Ready && c.UUID != r.Copy:
		return foreign(Observed{Disk: r.Disk(), Copy: c, Receipt: &r})
	case c.UUID == r.Copy && !s.asFileOpen(c).closed():
		return fmt.Errorf("%s: %w", r.Disk(), inUse(c))
	}
	r.Discarding = true
	if err := r.write(s.Layout, r.Key()); err != nil {
		return fmt.Errorf("%s: %w", r.Disk(), err)
	}
	if err := failpoint.Hit("discard.intent"); err != nil {
		return err
	}
	return s.finishGivingUp(ctx, r)
}

// finishGivingUp removes the copy that r names, if it is still that one, and
// then r. It is where every crash in between converges.
func (s *Service) finishGivingUp(ctx context.Context, r Receipt) error {
	c, err := s.copyOf(ctx, r)
	if err != nil {
		return err
	}
	if c.State != Absent && c.UUID == r.Copy {
		if err := s.remove(ctx, r.Disk(), c); err != nil {
			return fmt.Errorf("%s: %w", r.Disk(), err)
		}
		if err := failpoint.Hit("discard.removed"); err != nil {
			return err
		}
	}
	if err := (&Pivoting{Settling: &Settling{Disk: r.Disk(), service: s}}).removeOther(ctx, &r); err != nil {
		return fmt.Errorf("%s: %w", r.Disk(), err)
	}
	if err := removeLink(s.Layout, r.Disk()); err != nil {
		return fmt.Errorf("%s: %w", r.Disk(), err)
	}
	if err := removeReceipt(s.Layout, r.Domain, r.Key()); err != nil {
		return fmt.Errorf("%s: %w", r.Disk(), err)
	}
	return failpoint.Hit("discard.done")
}

// copyOf finds the copy that a receipt names, by the receipt's own words.
func (s *Service) copyOf(ctx context.Context, r Receipt) (Copy, error) {
	found, err := s.find(ctx, []Disk{r.Disk()})
	if err != nil {
		return Copy{}, err
	}
	return found[0], nil
}

// foundBy is the copy that a receipt names, with the template that it lies on
// and what is wrong with that.
func (s *Service) foundBy(ctx context.Context, r Receipt) (Observed, error) {
	o := Observed{Disk: r.Disk(), Receipt: &r}
	all, err := s.look(ctx, []Disk{o.Disk})
	if err != nil {
		return o, err
	}
	s.seen(&o, all)
	return o, nil
}

// asFileOpen asks for files what a volume's report says by itself.
func (s *Service) asFileOpen(c Copy) Copy {
	if c.Open == nil && c.file() {
		return refreshOpen(c)
	}
	return c
}

// removeUnclaimed removes an unfinished copy that no receipt names. A complete
// one without a receipt is not ours to judge.
func (s *Service) removeUnclaimed(ctx context.Context, domain, key string) error {
	d := Disk{Domain: domain, Target: key, OnStop: Keep}
	theirs := func(c Copy) bool {
		return c.Name == d.CopyName() || c.has(tagVM+domain) && c.has(tagImage+key)
	}
	places, err := s.places()
	if err != nil {
		return err
	}
	for _, p := range places {
		d.Backend, d.Home = p.kind, p.home
		copies, err := s.in(ctx, p)
		if errors.Is(err, failure.Precondition) {
			continue // no such volume group on this host, or one that is away
		}
		if err != nil {
			return err
		}
		for _, c := range copies {
			switch {
			case !theirs(c):
			case c.State == Updating:
				return s.remove(ctx, d, c)
			default:
				return unclaimedReady(d, c)
			}
		}
	}
	return failure.New(failure.NotFound, "%s: no local copy", s.known(domain, key))
}

func unclaimedReady(d Disk, c Copy) error { return adopt(Observed{Disk: d, Copy: c}).Err }

// Removable refuses what Remove would refuse, as far as can be told from what
// List says of the copy.
func (s *Service) Removable(e Entry, g GiveUp) error {
	switch {
	case e.Receipt != nil:
		return s.MayGiveUp(*e.Receipt, g)
	case e.Copy.State == Ready:
		return unclaimedReady(Disk{Domain: e.Domain, DomainName: e.DomainName, Target: e.Key}, e.Copy)
	}
	return nil
}

// RemoveUnfinished removes the copy of a disk if it was interrupted and no
// receipt names it, with what tells how far it got. Nothing else is touched, nor
// is a copy that somebody works on.
func (s *Service) RemoveUnfinished(ctx context.Context, d Disk) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if err := s.runDirs(); err != nil {
		return err
	}
	l, err := lock.Try(s.Layout.Locks(), lockName(d.Domain, d.Key()))
	if errors.Is(err, lock.ErrHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Release()
	r, err := ReadReceipt(s.Layout, d.Domain, d.Key())
	if err != nil || r != nil {
		return err
	}
	o := Observed{Disk: d}
	all, err := s.look(ctx, []Disk{d})
	if err != nil {
		return err
	}
	if s.seen(&o, all); o.Copy.State == Absent {
		if err := s.leftBehind(ctx, &o); err != nil {
			return err
		}
	}
	c := o.Copy
	if c.State == Absent {
		s.forgetFailure(d.Domain, d.Key())
		return nil
	}
	if owner := tagged(c, tagVM); c.State != Updating || owner != "" && owner != d.Domain {
		return nil
	}
	if err := s.remove(ctx, o.Disk, c); err != nil {
		return fmt.Errorf("%s: remove its unfinished copy: %w", d, err)
	}
	s.removeStatus(d.Domain, d.Key())
	return nil
}

// patience is how long a verb waits for a lock: a start holds it for a moment,
// and a copy process that has said how it ended gives it back in the next.
const patience = 2 * time.Second

// lockOne takes a disk's lock or says that somebody is busy.
func (s *Service) lockOne(ctx context.Context, domain, key string) (*lock.Lock, error) {
	if err := validKey(domain, key); err != nil {
		return nil, err
	}
	if err := s.runDirs(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, err := lock.Acquire(ctx, s.Layout.Locks(), lockName(domain, key))
	if errors.Is(err, lock.ErrHeld) {
		return nil, s.worked(domain, key)
	}
	return l, err
}

func (s *Service) worked(domain, key string) error {
	d, what := s.known(domain, key), "somebody works on its copy"
	if s.Exporting(domain, key) {
		what = "it is being exported"
	}
	err := failure.New(failure.Temporary, "%s: %s", d, what)
	return failure.Hint(err, "wait for it (`diskhook local status %s`), or stop it with `diskhook local cancel %s`", d.NameArg(), d.args())
}

// during says of which disk an error is, and what was done, unless the error says
// of which itself.
func during(d Disk, what string, err error) error {
	if strings.HasPrefix(err.Error(), d.String()+": ") {
		return err
	}
	return fmt.Errorf("%s: %s: %w", d, what, err)
}

// known is a disk as those who work on it call it, for messages.
func (s *Service) known(domain, key string) Disk {
	if r, err := ReadReceipt(s.Layout, domain, key); err == nil && r != nil {
		return r.Disk()
	}
	d := Disk{Domain: domain, Target: key}
	if others, err := Receipts(s.Layout, domain); err == nil && len(others) > 0 {
		d.DomainName = others[0].DomainName
	}
	if st, mine := s.status(d, ""); mine {
		d.DomainName, d.Target = st.Owner, targetOf(st)
	}
	return d
}

// Idle refuses, as a verb that needs the copy for itself would, while somebody
// works on it. It touches nothing.
func (s *Service) Idle(ctx context.Context, domain, key string) error {
	if err := validKey(domain, key); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for ; ; time.Sleep(pollEvery) {
		held, err := lock.Held(s.Layout.Locks(), lockName(domain, key))
		switch {
		case err != nil || !held:
			return err
		case ctx.Err() != nil:
			return s.worked(domain, key)
		}
	}
}
