// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// lockPatience is how long a verb waits for another one on the same domain.
const lockPatience = time.Second

// hold takes the lock of a domain, which one verb at a time has while it works
// on definition and copies. Hooks do not take it: they never wait for a verb.
func (s *Service) hold(ctx context.Context, d bindings.Domain) (release func(), err error) {
	release, err = s.lock(ctx, "domain-"+d.UUID)
	if errors.Is(err, lock.ErrHeld) {
		err := failure.New(failure.Temporary, "%s: another diskhook works on its definition or its copies", d)
		return nil, failure.Hint(err, "wait for its end (`diskhook local status --watch %s` shows copies that are being made), then run this again", d.NameArg())
	}
	return release, onDomain(d, err)
}

// bindLock is the lock that one verb at a time has while it binds disks, of whichever
// domain of the host.
const bindLock = "bind"

// holdBindings takes it for a verb on d.
func (s *Service) holdBindings(ctx context.Context, d bindings.Domain) (release func(), err error) {
	release, err = s.lock(ctx, bindLock)
	if errors.Is(err, lock.ErrHeld) {
		err := failure.New(failure.Temporary, "%s: another diskhook binds disks of a domain of this host, be it this one or another", d)
		if h, known := lock.HolderOf(s.Host.Layout.Locks(), bindLock); known {
			err = fmt.Errorf("%w: process %d, %q", err, h.PID, strings.Join(h.Argv, " "))
		}
		return nil, failure.Hint(err, "wait for its end, then run this again")
	}
	return release, onDomain(d, err)
}

func onDomain(d bindings.Domain, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", d, err)
	}
	return err
}

// lock takes a lock of the host. One that somebody has is a lock.ErrHeld.
func (s *Service) lock(ctx context.Context, name string) (release func(), err error) {
	if err := atomicfile.MkdirAll(s.Host.Layout.Locks(), 0o755); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Host.Layout.Locks(), err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	l, err := lock.Acquire(ctx, s.Host.Layout.Locks(), name)
	if err != nil {
		return nil, err
	}
	return l.Release, nil
}

// begin takes the domain's lock for a plan, which was made without it, and
// refuses one that was made for another definition than there is now.
func (s *Service) begin(ctx context.Context, p *Plan) (release func(), err error) {
	release, err = s.hold(ctx, p.Domain.Domain)
	if err != nil {
		return nil, err
	}
	now, err := s.Look(ctx, p.Domain.UUID)
	if now.Doc != nil { // else the error of damaged metadata, which the plan knows
		err = nil
	}
	if err == nil {
		err = p.stillFor(now)
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// stillFor refuses a domain that is not any more what the plan was made for.
func (p *Plan) stillFor(now Domain) error {
	if bytes.Equal(now.Doc.Bytes(), p.Domain.Doc.Bytes()) {
		return nil
	}
	err := failure.New(failure.Temporary, "%s: its definition changed while this worked on it", p.Domain)
	return failure.Hint(err, "run this again")
}
