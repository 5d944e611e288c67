// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// Watch is how a monitor watches. The zero value of Every is what a host does.
type Watch struct {
	// Quantum is how many blocks it asks for at a time; fewer will do where the
	// cluster has no more.
	Quantum uint64
	// Every is how often it looks when the kernel reports nothing; 0 is 10 seconds.
	Every time.Duration
	// Round is called after each look with what it did or could not do; nil is fine.
	Round func(error)
}

// Monitor keeps this host's pool supplied until ctx ends, which is no error: it asks
// for blocks below the low-water mark, uses what was granted, ends what verbs that
// were killed left, and detaches what domains that have ended could not give back. A master that does not answer, or a cluster without
// blocks, is logged and tried again; guests' writes wait meanwhile. It fails when
// the host is no member any more.
func (c *Member) Monitor(ctx context.Context, w Watch) error {
	if w.Every <= 0 {
		w.Every = 10 * time.Second
	}
	m := monitor{Member: c, Watch: w}
	for {
		events, name := m.events(ctx)
		err := m.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if w.Round != nil {
			w.Round(err)
		}
		if errors.Is(err, errGone) {
			return err
		}
		if err != nil && err.Error() != m.said {
			m.Log.Warn("the pool of this host is not as it should be", "cluster", c.Name, "error", err, "hint", failure.HintOf(err))
			m.said = err.Error()
		} else if err == nil {
			m.said = ""
		}
		m.pause(ctx, name, events, err != nil)
	}
}

// monitor is what a monitor remembers from one look to the next.
type monitor struct {
	*Member
	Watch
	owned uint64 // blocks that the host had when it used them last
	used  bool   // it did once
	said  string // the complaint that was logged last
	anew  uint64 // the image that was written as the one before ailed
}

// events is the event number of the pool that runs, "" if there is none.
func (m *monitor) events(ctx context.Context) (uint32, string) {
	if info := m.pool(ctx); info != nil {
		return info.Events, info.Name
	}
	return 0, ""
}

// pool is the pool that runs, nil if there is none.
func (c *Member) pool(ctx context.Context) *devmapper.Info {
	for i := range 2 {
		if info, err := c.Mapper.Info(ctx, c.poolName(i)); err == nil {
			return &info
		}
	}
	return nil
}

// pause waits for an event of the pool, but not after a failure: what it failed of
// takes time to go away.
func (m *monitor) pause(ctx context.Context, pool string, events uint32, failed bool) {
	wait, cancel := context.WithTimeout(ctx, m.Every)
	defer cancel()
	if pool != "" && !failed {
		if _, err := m.Mapper.Wait(wait, pool, events); err == nil {
			return
		}
	}
	<-wait.Done()
}

// round looks, and does what is to be done. It takes the lock for that only.
func (m *monitor) round(ctx context.Context) error {
	s, err := m.Status(ctx)
	if err != nil {
		return err
	}
	if s.State != layout.Member {
		return gone(s.Host, m.Name)
	}
	if s.Pool == nil {
		if s.suspended() { // a hand-over was killed before its pool was there
			return m.Member.do(ctx, m.begin, func(*session) error { return nil })
		}
		return nil
	}
	// Whatever ails the metadata, guests need space.
	return errors.Join(m.heal(ctx, s), m.serve(ctx, s))
}

// serve does what is to be done for guests, and for domains that have ended.
func (m *monitor) serve(ctx context.Context, s Status) error {
	ended, err := m.ended()
	if err != nil {
		return err
	}
	low := s.Pool.Free() <= m.LowWater || s.Pool.Mode == devmapper.OutOfDataSpace
	if low || s.Pending != "" || s.suspended() || !m.used || m.owned != s.Owned {
		if err := m.Member.do(ctx, m.begin, func(s *session) error { return m.supply(ctx, s) }); err != nil {
			return err
		}
	}
	// One after the other, so that guests' space does not wait for them.
	for _, name := range ended {
		if err := m.Member.do(ctx, m.begin, func(s *session) error { return s.giveBack(ctx, name) }); err != nil {
			return fmt.Errorf("volume %s, whose domain has ended: %w", name, err)
		}
	}
	return nil
}

func (s Status) suspended() bool {
	for _, v := range s.Volumes {
		if v.Suspended {
			return true
		}
	}
	return false
}

// supply uses what is there, and asks for more where that is not enough. What only a
// rebuild makes free is worth one before anybody is asked.
func (m *monitor) supply(ctx context.Context, s *session) error {
	if err := s.need(ctx); err != nil {
		return nil //nolint:nilerr // it was stopped meanwhile
	}
	slack, err := s.use(ctx)
	if err != nil {
		return err
	}
	m.used, m.owned = true, s.m.Owned(s.owner()).Blocks()
	if slack.Free > m.LowWater {
		return nil
	}
	if slack.Parked >= m.Quantum && s.pending == nil {
		m.Log.Info("blocks that only a rebuild makes free are needed", "cluster", m.Name, "blocks", slack.Parked)
		return s.handOver(ctx, s.header.Blocks)
	}
	if _, err := s.ask(ctx, request.Grant{Blocks: m.Quantum, Least: 1}); err != nil {
		return err
	}
	if _, err = s.use(ctx); err == nil {
		m.owned = s.m.Owned(s.owner()).Blocks()
	}
	return err
}
