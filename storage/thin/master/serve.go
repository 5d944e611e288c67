// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// Pace is how often Serve looks; the zero value is what it does on a real cluster.
type Pace struct {
	Slots time.Duration // at the slots; 0 is a quarter of a second
	Map   time.Duration // at the map, for hosts that joined and masters that follow; 0 is five seconds
}

// Serve answers what hosts ask in their slots until ctx ends, which is no error, or
// another host is master: layout.ErrStale. What fails on the way is logged and
// tried again.
func (m *Master) Serve(ctx context.Context, pace Pace) error {
	if pace.Slots <= 0 {
		pace.Slots = time.Second / 4
	}
	if pace.Map <= 0 {
		pace.Map = 5 * time.Second
	}
	s := &service{Master: m, ears: map[uint32]*ear{}}
	defer s.close()
	tick := time.NewTicker(pace.Slots)
	defer tick.Stop()
	for next := time.Now(); ; {
		if now := time.Now(); !now.Before(next) {
			next = now.Add(pace.Map)
			if err := s.look(ctx); errors.Is(err, layout.ErrStale) {
				return err
			}
		}
		if err := s.listen(ctx); errors.Is(err, layout.ErrStale) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// service is a Serve that runs.
type service struct {
	*Master
	ears map[uint32]*ear // by number: a host that joins again counts its requests anew
	said string          // what was logged last about the map
}

// ear is where a host's requests are heard.
type ear struct {
	id       uuid.UUID
	name     string
	dev      group.Volume
	answered uint64 // sequence
	said     string // what was logged last
}

// look follows the map: whose slots to listen to. It fails once this host is not
// the master any more.
func (s *service) look(ctx context.Context) error {
	err := s.watch(ctx, func(now *session) error {
		there := map[uint32]bool{}
		for _, h := range now.m.Hosts {
			if h.State != layout.Member {
				continue
			}
			there[h.Number] = true
			if s.ears[h.Number] == nil {
				s.ears[h.Number] = &ear{id: h.UUID, name: h.Name}
			}
		}
		for number, e := range s.ears {
			if !there[number] {
				e.close()
				delete(s.ears, number)
			}
		}
		return nil
	})
	s.note(&s.said, "map", err)
	return err
}

// note logs an error once, however often it comes.
func (s *service) note(said *string, about string, err error) {
	text := ""
	if err != nil {
		text = failure.Line(err)
	}
	if text != "" && text != *said {
		s.Log.Warn("cannot serve for now", "about", about, "error", text)
	}
	*said = text
}

// listen looks into each slot once.
func (s *service) listen(ctx context.Context) error {
	for _, e := range s.ears {
		if ctx.Err() != nil {
			return nil
		}
		err := s.hear(ctx, e)
		if errors.Is(err, layout.ErrStale) {
			return err
		}
		s.note(&e.said, "host "+e.name, err)
	}
	return nil
}

// hear answers a host's request, if it has one that has no reply.
func (s *service) hear(ctx context.Context, e *ear) (err error) {
	if e.dev == nil {
		if e.dev, err = s.Group.Open(ctx, layout.Host.Name(e.id), true); err != nil {
			e.dev = nil
			return err
		}
	}
	msg, err := layout.ReadRequest(e.dev, s.Cluster, e.id)
	switch {
	case errors.Is(err, layout.ErrEmpty), errors.Is(err, layout.ErrDamaged):
		return nil // none, or one that is being written
	case err != nil:
		e.close() // its device may have changed
		return err
	case msg.Sequence <= e.answered:
		return nil
	}
	// Pending is none; one of a later sequence says that this one is done with.
	if _, err := layout.ReadReply(e.dev, s.Cluster, e.id, msg.Sequence); err == nil || errors.Is(err, layout.ErrMoved) {
		e.answered = msg.Sequence
		return nil
	}
	reply, err := s.Answer(ctx, e.id, msg)
	if err == nil {
		err = layout.WriteReply(e.dev, s.Cluster, e.id, reply)
	}
	if err == nil {
		e.answered = msg.Sequence
		s.Log.Info("answered", "host", e.name, "request", msg.Sequence, "outcome", reply.Code)
	}
	return err
}

func (e *ear) close() {
	if e.dev != nil {
		_ = e.dev.Close() // it was only read, or what was written is flushed
		e.dev = nil
	}
}

// close lets go of the hosts' volumes: a follower that is to remove one, in a group
// of lvmlockd, needs it active nowhere else.
func (s *service) close() {
	for _, e := range s.ears {
		e.close()
	}
	// Serve's own context has ended, or says nothing of how long this may take.
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	s.Release(ctx)
}

// releaseTimeout is how long a service that ends may take to let go of the hosts'
// volumes. Its unit gives it longer than that.
const releaseTimeout = time.Minute

// Release takes the devices of the hosts' volumes away from this host, which opened
// them as the master; not those that somebody here has open. What cannot be is logged:
// the volumes are only in the way where a follower removes or extends them.
func (m *Master) Release(ctx context.Context) {
	list, err := m.Group.List(ctx)
	for _, lv := range list {
		_, suffix, _ := layout.ParseName(lv.Name)
		if suffix != layout.Host || lv.Foreign || lv.Active != nil && !*lv.Active {
			continue
		}
		if gone := m.Group.Deactivate(ctx, lv.Name); !errors.Is(gone, failure.Conflict) {
			err = errors.Join(err, gone)
		}
	}
	if err != nil {
		m.Log.Warn("volumes of hosts stay active on this host", "error", failure.Line(err))
	}
}
