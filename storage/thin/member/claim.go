// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/request"
)

// Claim gives a volume to a domain, attaches it where it is not here yet, and returns
// the path of its device. From then on nobody takes it away from this host before the
// domain has given it back with Release. What another domain of this host has, and
// what somebody has open, is a failure.Conflict. It may be repeated.
func (c *Member) Claim(ctx context.Context, name, domain string) (string, error) {
	err := c.do(ctx, c.begin, func(s *session) error {
		if err := s.need(ctx); err != nil {
			return err
		}
		v, err := s.volume(name)
		if err == nil {
			err = s.fits(v)
		}
		if err != nil {
			return err
		}
		s.holder = domain
		return s.claim(ctx, v, domain)
	})
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", name, err)
	}
	return c.Path(name), nil
}

func (s *session) claim(ctx context.Context, v layout.VolumeRecord, domain string) error {
	last, err := s.claimable(ctx, v, domain)
	if err == nil {
		err = s.Labels.Labelled(v.Name)
	}
	if err == nil {
		err = s.attachable(v)
	}
	if err != nil {
		return err // before anything is noted
	}
	here := v.Host == s.header.Number
	came := last != nil && last.Volume == v.UUID && last.Attached || !here || v.State != layout.Attached
	if err := s.Claims.Set(v.Name, claim.Claim{Volume: v.UUID, Domain: domain, Attached: came}); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.claim.noted"); err != nil {
		return err
	}
	if here && v.State == layout.Attached {
		return nil // it has its device, as the session began with that
	}
	if err = s.fetch(ctx, v); err == nil {
		return nil
	}
	if errors.Is(err, request.ErrRefused) && !s.has(v.Number) { // there is nothing to be given back
		err = errors.Join(err, s.Claims.Drop(v.Name))
	}
	return err
}

// has says whether the map has a volume at this host. It may be so after a refusal: the
// master was asked for other things once it had begun to attach it.
func (s *session) has(number uint32) bool {
	return slices.ContainsFunc(s.here(layout.Attaching, layout.Attached, layout.Detaching), func(v layout.VolumeRecord) bool { return v.Number == number })
}

// claimable refuses a volume that somebody else uses here.
func (s *session) claimable(ctx context.Context, v layout.VolumeRecord, domain string) (*claim.Claim, error) {
	last, err := s.Claims.Last(v.Name)
	switch {
	case err != nil:
		return nil, err
	case !s.Claims.Holds(last):
		return last, s.unused(ctx, v)
	case last.Domain != domain:
		return nil, claim.Refuse(v.Name, last.Domain)
	}
	return last, nil
}

// attachable refuses what the master would, as far as the map tells; and what it may
// take away at any time, as this host has asked it to and has no answer.
func (s *session) attachable(v layout.VolumeRecord) error {
	if v.Host == s.header.Number && v.State.On() {
		if r, err := s.journaled(); err != nil || r == request.Request(request.BeginDetach{Volume: v.Number}) {
			return errors.Join(err, s.pending)
		}
		return nil
	}
	_, err := ledger.BeginAttach(s.m, v.Number, s.header.Number, layout.Mapping{})
	return err
}

// fetch attaches a volume; one that was on its way out goes all the way first.
func (s *session) fetch(ctx context.Context, v layout.VolumeRecord) error {
	if v.State == layout.Detaching {
		if err := s.detach(ctx, v); err != nil {
			return err
		}
		if err := s.Claims.Set(v.Name, claim.Claim{Volume: v.UUID, Domain: s.holder, Attached: true}); err != nil {
			return err
		}
	}
	return s.attach(ctx, v, AttachOptions{})
}

// Release gives back what a domain that has ended had of a volume: the claim, and
// the volume itself if it came to this host for a domain's sake. Without a claim
// of the domain there is nothing to be done. If the volume cannot be detached now the
// domain's claim ends all the same, and the monitor of this host tries again.
func (c *Member) Release(ctx context.Context, name, domain string) error {
	detach, err := c.endClaim(ctx, name, domain)
	if err != nil || !detach {
		return err
	}
	if err := failpoint.Hit("thin.release.ended"); err != nil {
		return err
	}
	err = c.do(ctx, c.begin, func(s *session) error { return s.giveBack(ctx, name) })
	if err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	return nil
}

// Disown ends the claim of a domain that has gone on a volume, on a host whose
// membership has ended: there is nothing to be detached, the volume is another's or is
// the master's to recover, but Stop would not take its device away. Neither the map nor
// the disk is asked. A device that somebody has open is a failure.Conflict; no claim is
// fine.
func (c *Member) Disown(ctx context.Context, name, domain string) error {
	l, err := c.locked(ctx)
	if err != nil {
		return err
	}
	defer l.Release()
	if err := c.unclaimed(name, domain); err != nil {
		return err
	}
	info, err := c.Mapper.Info(ctx, c.deviceName(name))
	switch {
	case err == nil && info.Open > 0:
		return c.inUse(name)
	case err != nil && !errors.Is(err, failure.NotFound):
		return err
	}
	return c.Claims.Drop(name)
}

// EndClaim is what Release does while the disk cannot be read: the domain has the volume
// no more, and the monitor of this host detaches it when it can.
func (c *Member) EndClaim(ctx context.Context, name, domain string) error {
	_, err := c.endClaim(ctx, name, domain)
	return err
}

// endClaim ends a domain's claim. It needs nothing but this host. detach says that
// the volume is still to be detached.
func (c *Member) endClaim(ctx context.Context, name, domain string) (detach bool, err error) {
	if last, err := c.Claims.Last(name); err != nil || last == nil || last.Domain != domain {
		return false, err
	}
	l, err := c.locked(ctx)
	if err != nil {
		return false, err
	}
	defer l.Release()
	last, err := c.Claims.Last(name)
	switch {
	case err != nil || last == nil || last.Domain != domain || last.Boot != c.Claims.Boot:
		return false, err
	case !last.Attached:
		return false, c.Claims.Drop(name)
	}
	last.Ended = true
	return true, c.Claims.Set(name, *last)
}

// giveBack detaches a volume whose domain has ended. One that another domain has by
// now, or the same one again, is left alone; so is one that somebody has open: the
// monitor comes back to it.
func (s *session) giveBack(ctx context.Context, name string) error {
	last, err := s.Claims.Last(name)
	if err != nil || last == nil || !last.Ended {
		return err
	}
	v, err := s.volume(name)
	switch {
	case errors.Is(err, failure.NotFound), err == nil && (v.UUID != last.Volume || !v.State.On() || v.Host != s.header.Number):
		if s.pending != nil {
			return s.pending // it may be on its way here
		}
		return s.Claims.Drop(name)
	case err != nil:
		return err
	}
	return s.detach(ctx, v)
}

// stays has a volume that somebody attaches by hand not be detached for a domain that
// has ended.
func (s *session) stays(v layout.VolumeRecord) error {
	last, err := s.Claims.Last(v.Name)
	if err != nil || last == nil || s.Claims.Holds(last) && last.Domain != s.holder {
		return err
	}
	return s.Claims.Drop(v.Name)
}

// ended are the volumes whose domains have ended and that are still to be detached, in
// an earlier boot, too: what a start that was refused then has asked the master for may
// be done only now.
func (c *Member) ended() ([]string, error) {
	names, err := c.Claims.Volumes()
	if err != nil {
		return nil, err
	}
	var ended []string
	for _, name := range names {
		last, err := c.Claims.Last(name)
		if err != nil {
			return nil, err
		}
		if last != nil && last.Ended {
			ended = append(ended, name)
		}
	}
	return ended, nil
}

// Reclaim gives a volume that is attached to this host back to a domain that runs on
// it, should the claim have got lost. It waits for nobody but other verbs of this host.
func (c *Member) Reclaim(ctx context.Context, name, domain string) error {
	return c.do(ctx, c.open, func(s *session) error {
		v, err := s.volume(name)
		if err != nil {
			return err
		}
		if v.State != layout.Attached || v.Host != s.header.Number {
			err := failure.New(failure.Conflict, "volume %s: it was detached while the domain runs on it, and may be changed by others", name)
			return failure.Hint(err, "shut the domain down and start it again")
		}
		s.holder = domain
		if err := s.unclaimed(v.Name, s.holder); err != nil {
			return err
		}
		if last, err := s.Claims.Last(name); err != nil || s.Claims.Holds(last) {
			return err
		}
		return s.Claims.Set(name, claim.Claim{Volume: v.UUID, Domain: domain, Attached: true})
	})
}

// unclaimed refuses a volume that another domain of this host has than holder; "" is
// none.
func (c *Member) unclaimed(volume, holder string) error {
	domain, err := c.Claims.Holder(volume)
	if err != nil || domain == "" || domain == holder {
		return err
	}
	return claim.Refuse(volume, domain)
}

// locked takes the cluster's lock on this host.
func (c *Member) locked(ctx context.Context) (*lock.Lock, error) {
	if err := atomicfile.MkdirAll(c.Locks, 0o755); err != nil {
		return nil, failure.Denied(err)
	}
	l, err := lock.Acquire(ctx, c.Locks, "thin-"+c.Name)
	if err != nil {
		return nil, fmt.Errorf("thin cluster %s: %w", c.Name, err)
	}
	return l, nil
}

// Preview is what a Claim of a domain would find.
type Preview struct {
	Here bool // the volume is attached to this host
	Held bool // and the domain has it
}

// Preview refuses what Claim would, as far as that can be told without a lock and
// without asking the master. It changes nothing.
func (c *Member) Preview(ctx context.Context, name, domain string) (Preview, error) {
	s := &session{Member: c, holder: domain}
	err := s.reopen(ctx)
	if err == nil {
		err = s.peek(ctx)
	}
	if err == nil {
		err = s.belongs()
	}
	if err == nil {
		err = s.former(ctx)
	}
	var p Preview
	if err == nil {
		p, err = s.preview(ctx, name, domain)
	}
	if err = errors.Join(err, s.close()); err != nil {
		err = fmt.Errorf("attach %s: %w", name, err)
	}
	return p, err
}

func (s *session) preview(ctx context.Context, name, domain string) (Preview, error) {
	v, err := s.volume(name)
	if err == nil {
		err = s.fits(v)
	}
	if err != nil {
		return Preview{}, err
	}
	if s.pool(ctx) == nil {
		return Preview{}, s.stopped()
	}
	last, err := s.Claims.Last(name)
	if err == nil {
		err = s.unclaimed(v.Name, s.holder)
	}
	if err == nil {
		err = s.Labels.Labelled(v.Name)
	}
	if err == nil {
		err = s.attachable(v)
	}
	p := Preview{Here: v.State == layout.Attached && v.Host == s.header.Number}
	if p.Held = p.Here && s.Claims.Holds(last); err != nil || p.Held {
		return p, err
	}
	info, err := s.Mapper.Info(ctx, s.deviceName(name))
	switch {
	case errors.Is(err, failure.NotFound):
		return p, nil
	case err != nil:
		return p, err
	}
	return p, s.released(ctx, info, v.Name)
}
