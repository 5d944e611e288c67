// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// Inline is the kind of a use whose QEMU opens the replicas itself. What it
// reports of a replica is heard (watch.go), but nobody sees that it flushed
// everything at its end. So the set is never closed cleanly: it counts as
// unclean, and before the next use all replicas are made equal by majority;
// two that differ have none. A replica that went wrong meanwhile is out-voted,
// as long as it is one of a minority, and repaired then. QEMU's arguments name
// every replica, so that none can be left out.
const Inline = "inline"

// Open claims a set for such a use, and returns when its replicas are equal and
// counted in a new generation, or when the deadline is over (0: as long as it
// takes). Called again with the same use it looks whether that still holds.
func (s *Service) Open(ctx context.Context, name string, use Use, deadline time.Duration) error {
	use.Kind = Inline
	set, err := s.Load(name)
	if err != nil {
		return err
	}
	for _, r := range set.Replicas {
		if r.Top().Type == Block {
			err := failure.New(failure.Precondition, "%s: %s is a device, which QEMU does not get as an argument", &set, r)
			return failure.Hint(err, "use lower=export")
		}
	}
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	if err := s.makeRunDir(name); err != nil {
		return err
	}
	mine, err := s.claim(ctx, name, use)
	if err != nil {
		return err
	}
	live, err := s.Live(name)
	if err == nil && live.State == Serving && live.Use.same(use) && startOf(live.PID) != "" {
		return nil
	}
	if err = s.refuseVerb(name); err == nil {
		err = s.launch(ctx, name)
	}
	if err == nil {
		err = s.await(ctx, name, use)
	}
	if err != nil && mine {
		_ = s.Stop(context.WithoutCancel(ctx), name, use)
	}
	return err
}

// attend is Serve for an inline use: it holds the set's lock, so that no verb
// writes to the replicas, until the claim is gone or ctx ends.
func (s *Service) attend(ctx context.Context, set Set, use Use, held *lock.Lock, live *liveFile) error {
	s.Activate(ctx, set)
	g, again := s.attended(set, use)
	if !again {
		var err error
		if g, err = s.countIn(ctx, set, use, held, live); err != nil {
			return err
		}
		s.note(set.Name, Event{Event: EventServed, Generation: g.Number})
	}
	live.change(func(l *Live) {
		l.State, l.Generation, l.Equalising = Serving, g.Number, false
		for i := range l.Replicas {
			l.Replicas[i].State = Voting
		}
	})
	notify("READY=1")
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { s.watch(watching, set, use, g, live, again) })
	defer func() { stop(); watch.Wait() }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := s.Claim(set.Name)
		if errors.Is(err, failure.NotFound) || err == nil && !now.same(use) || ctx.Err() != nil {
			s.note(set.Name, Event{Event: EventStopped, Generation: g.Number})
			return s.giveBack(set)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// countIn makes the replicas equal and counts them in a new generation.
func (s *Service) countIn(ctx context.Context, set Set, use Use, held *lock.Lock, live *liveFile) (Generation, error) {
	d, err := s.equal(ctx, set, held.File(), live)
	if err != nil {
		return Generation{}, err
	}
	if err := s.begun(set.Name, use); err != nil {
		return Generation{}, err
	}
	g, err := s.Raise(ctx, set, d.Base, d.Next, d.Open)
	if err == nil && len(g.With) < len(set.Replicas) {
		err = failure.New(failure.Temporary, "%s: not all of its replicas take a mark", &set)
	}
	if err != nil {
		return Generation{}, err
	}
	return g, writeVolatileJSON(s.runFile(set.Name, attendedFile), attendance{set.UUID, use, g})
}

// attendance is kept while the set is claimed, for a process that comes after
// one that was killed: the guest has the replicas then, and they cannot be made
// equal under it.
type attendance struct {
	Set        string     `json:"set"` // UUID
	Use        Use        `json:"use"`
	Generation Generation `json:"generation"`
}

const attendedFile = "attended.json"

// attended says that use has the replicas already, in which generation. A verb
// that has worked on the set since has raised another.
func (s *Service) attended(set Set, use Use) (Generation, bool) {
	var a attendance
	if err := readRun(s.runFile(set.Name, attendedFile), &a); err != nil || a.Set != set.UUID || !a.Use.same(use) {
		return Generation{}, false
	}
	known, err := s.Known(set)
	return a.Generation, err == nil && known.Raise == a.Generation.Raise
}

// equal decides who votes, which has to be everybody. Nothing is written where
// somebody is left out that cannot be brought up to date.
func (s *Service) equal(ctx context.Context, set Set, held *os.File, live *liveFile) (Decision, error) {
	d, _, err := s.Decide(ctx, set)
	if errors.Is(d.Veto, errUnclean) { // two that turn out to be equal need no third
		d.Veto = nil
	}
	if err != nil || d.Veto != nil {
		return d, errors.Join(err, d.Veto)
	}
	if err := leavesOut(set, d, func(l LeftOut) bool { return !l.Stale }); err != nil {
		return d, err
	}
	if d.Unclean || len(d.Left) > 0 {
		live.change(func(l *Live) { l.Equalising = true })
		report := func(done, total int64) { live.change(func(l *Live) { l.Done, l.Total = done, total }) }
		if _, err := s.resync(ctx, set, Resyncing{Progress: report}, held); err != nil {
			return d, err
		}
		if d, _, err = s.Decide(ctx, set); err != nil || d.Veto != nil {
			return d, errors.Join(err, d.Veto)
		}
	}
	return d, leavesOut(set, d, func(LeftOut) bool { return true })
}

// leavesOut refuses a decision that leaves a replica out of those that count.
func leavesOut(set Set, d Decision, counts func(LeftOut) bool) error {
	i := slices.IndexFunc(d.Left, counts)
	if i < 0 {
		return nil
	}
	l := d.Left[i]
	err := failure.New(failure.Precondition, "%s: lower=inline needs all of its replicas, and %s is left out: %s", &set, l.ID, l.Why)
	return failure.Hint(err, "bring it back, replace it with `diskhook quorum replace %s %s REPLICA`, or use lower=export, which starts without it", set.Name, l.ID)
}

// formerOwner is whose a file was before a QEMU got it.
type formerOwner struct {
	Path string `json:"path"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

// OwnReplicas gives the files of all replicas but the first to owner, until the
// set is released: libvirt labels only the first, which is a disk to it.
func (s *Service) OwnReplicas(name string, owner Owner) error {
	set, err := s.Load(name)
	if err != nil {
		return err
	}
	var before []formerOwner
	for _, r := range set.Replicas[1:] {
		for _, l := range r.Chain {
			if l.Type != File {
				continue
			}
			var st unix.Stat_t
			if err := unix.Lstat(l.Path, &st); err != nil {
				return fmt.Errorf("%s: %s: %w", &set, l.Path, err)
			}
			before = append(before, formerOwner{l.Path, int(st.Uid), int(st.Gid)})
		}
	}
	if err := s.makeRunDir(name); err != nil {
		return err
	}
	if _, err := os.Lstat(s.runFile(name, "replicas.json")); errors.Is(err, fs.ErrNotExist) {
		if err := writeVolatileJSON(s.runFile(name, "replicas.json"), before); err != nil {
			return fmt.Errorf("%s: %w", &set, err)
		}
	}
	for _, f := range before {
		if err := os.Lchown(f.Path, owner.UID, owner.GID); err != nil {
			return fmt.Errorf("%s: %w", &set, err)
		}
		if owner.SELinux == "" {
			continue
		}
		if err := unix.Lsetxattr(f.Path, "security.selinux", append([]byte(owner.SELinux), 0), 0); err != nil {
			return fmt.Errorf("%s: label %s: %w", &set, f.Path, err)
		}
	}
	return nil
}

// giveBack undoes OwnReplicas; the label stays, as libvirt's own do on most files.
func (s *Service) giveBack(set Set) error {
	path := s.runFile(set.Name, "replicas.json")
	var before []formerOwner
	err := readRun(path, &before)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, f := range before {
		err = errors.Join(err, os.Lchown(f.Path, f.UID, f.GID))
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("%s: owners of its replicas: %w", &set, err)
	}
	return nil
}
