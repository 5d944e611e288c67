// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
	"diskhook/storage/thin/request"
)

// AttachOptions are for volumes that are not as they should be.
type AttachOptions struct {
	// Suspect attaches a volume too whose last writes may be lost.
	Suspect bool
}

// Attach takes a volume to this host and returns the path of its device. Guests of
// other volumes are held back for a moment. A volume that is here already is only
// made sure of; one of another host is a failure.Conflict.
func (c *Member) Attach(ctx context.Context, name string, o AttachOptions) (string, error) {
	err := c.do(ctx, c.begin, func(s *session) error {
		if err := s.need(ctx); err != nil {
			return err
		}
		v, err := s.volume(name)
		if err == nil {
			err = s.fits(v)
		}
		if err == nil {
			err = s.stays(v)
		}
		if err != nil {
			return err
		}
		if v.State == layout.Attached && v.Host == s.header.Number {
			return nil // it has its device, as the session began with that
		}
		if v.State == layout.Detaching && v.Host == s.header.Number {
			err := failure.New(failure.Conflict, "volume %s: it is being detached from this host", name)
			return failure.Hint(err, "run `diskhook thin detach %s`, then attach it again", name)
		}
		return s.attach(ctx, v, o)
	})
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", name, err)
	}
	return c.Path(name), nil
}

func (s *session) attach(ctx context.Context, v layout.VolumeRecord, o AttachOptions) error {
	if _, err := s.ask(ctx, request.BeginAttach{Volume: v.Number, Suspect: o.Suspect}); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.attach.begun"); err != nil {
		return err
	}
	v, err := s.volume(v.Name)
	if err != nil {
		return err
	}
	m, err := s.stored(ctx, v)
	if err != nil {
		return err
	}
	m.Size = v.Size // it may have grown since
	if err := s.handOver(ctx, s.header.Blocks, handover.Attached{Volume: v, Mapping: m}); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.attach.handed"); err != nil {
		return err
	}
	_, err = s.ask(ctx, request.FinishAttach{Volume: v.Number})
	return err
}

// Detach takes a volume away from this host: its mapping is stored, and the volume
// offline. No guest of another volume waits for it. One that is offline is fine;
// one that somebody has open, that a domain has, or that is a local copy, is a
// failure.Conflict.
func (c *Member) Detach(ctx context.Context, name string) error { return c.DetachFrom(ctx, name, "") }

// DetachFrom is Detach of a volume that a domain has by its claim, though it has gone.
// On a host that is no member any more, or has what a former membership left, that is
// Disown.
func (c *Member) DetachFrom(ctx context.Context, name, domain string) error {
	err := c.do(ctx, c.begin, func(s *session) error {
		s.holder = domain
		v, err := s.volume(name)
		if err != nil {
			return err
		}
		if !v.State.On() {
			return s.stays(v) // nothing of it does, not even a claim
		}
		if v.Host != s.header.Number {
			err := failure.New(failure.Conflict, "it is at host %s", s.hostName(v.Host))
			return failure.Hint(err, "run `diskhook thin detach %s` on %s", name, s.hostName(v.Host))
		}
		if err := s.Labels.Labelled(name); err != nil {
			return err
		}
		return s.detach(ctx, v)
	})
	if domain != "" && (errors.Is(err, errGone) || errors.Is(err, errFormer)) {
		err = c.Disown(ctx, name, domain)
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	return nil
}

func (s *session) hostName(number uint32) string {
	for _, h := range s.m.Hosts {
		if h.Number == number {
			return h.Name
		}
	}
	return fmt.Sprint(number)
}

// detach goes on wherever a detach before it stopped.
func (s *session) detach(ctx context.Context, v layout.VolumeRecord) error {
	if v.State != layout.Detaching { // which nobody can use any more
		if err := s.unclaimed(v.Name, s.holder); err != nil {
			return err
		}
	}
	// The device first: from here on nobody changes the mapping.
	if err := s.removeDevice(ctx, v); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.detach.removed"); err != nil {
		return err
	}
	if v.State == layout.Attached {
		if _, err := s.ask(ctx, request.BeginDetach{Volume: v.Number}); err != nil {
			return err
		}
	} else if s.pending != nil {
		return s.pending
	}
	m, err := s.leaving(ctx, v)
	if err != nil {
		return err
	}
	if err := s.store(ctx, v, m); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.detach.stored"); err != nil {
		return err
	}
	if _, err = s.ask(ctx, request.FinishDetach{Volume: v.Number}); err != nil {
		return err
	}
	return s.Claims.Drop(v.Name) // nobody else's, as was asked above
}

// leaving is what a volume maps that is going: as the metadata have it, or, where
// an attach did not come so far, as it was stored before.
func (s *session) leaving(ctx context.Context, v layout.VolumeRecord) (layout.Mapping, error) {
	var m layout.Mapping
	here := false
	err := s.read(ctx, func(r *metadata.Reader) (err error) {
		if here, err = has(r, v); here && err == nil {
			m, err = handover.Mapping(r, s.m, v)
		}
		return err
	})
	if err != nil || here {
		return m, err
	}
	if v.State == layout.Attached {
		err := failure.New(failure.Problems, "this host's metadata do not have it with generation %d", v.Generation)
		return m, failure.Hint(err, "run `diskhook thin check`")
	}
	m, err = s.stored(ctx, v)
	m.Size = v.Size
	return m, err
}

// store writes a volume's mapping beside the one that counts, as the next one.
func (s *session) store(ctx context.Context, v layout.VolumeRecord, m layout.Mapping) error {
	var size uint64
	write := func(dev group.Volume) error {
		size = uint64(dev.Size())
		return layout.WriteMapping(dev, s.Cluster, v.UUID, v.Stored(), v.Generation+1, s.epoch, m)
	}
	name := layout.Thin.Name(v.UUID)
	err := group.With(ctx, s.Group, name, true, write)
	if !errors.Is(err, failure.NoSpace) {
		return err
	}
	if _, err := s.ask(ctx, request.Room{Volume: v.Number, Bytes: size + m.Length()}); err != nil {
		return err
	}
	return group.With(ctx, s.Group, name, true, write)
}

// finishDetaches detaches what was being detached when this host went down: it has
// no device, and only the mapping is missing elsewhere.
func (s *session) finishDetaches(ctx context.Context) error {
	for _, v := range s.here(layout.Detaching) {
		if err := s.detach(ctx, v); err != nil {
			if s.pending == nil {
				return fmt.Errorf("volume %s: %w", v.Name, err)
			}
			s.Log.Warn("the volume is still being detached", "cluster", s.Name, "volume", v.Name, "error", err)
		}
	}
	return nil
}
