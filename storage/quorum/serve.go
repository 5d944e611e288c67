// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// Serve is the main process of a set's unit, `diskhook quorum serve SET`. It
// holds the set's lock, decides who votes, raises the generation, and owns the
// qemu-storage-daemon that votes and exports, until ctx ends (SIGTERM) or the
// set's claim is gone; then everything is flushed, the marks become clean, and
// it returns nil.
//
// A daemon that goes by itself is started anew: guests wait for it to come back.
// A veto is what Decide says, a set that no domain uses a failure.Precondition.
func (s *Service) Serve(ctx context.Context, name string) error {
	set, err := s.Load(name)
	if err != nil {
		return err
	}
	if err := s.makeRunDir(name); err != nil {
		return err
	}
	use, err := s.Claim(name)
	if err != nil {
		return failure.Wrap(failure.Precondition, err)
	}
	log := s.Log.With("set", name)
	live := s.newLive(set, use)
	held, err := s.takeOver(ctx, set)
	if err != nil {
		return err // whoever serves it keeps its status
	}
	defer held.Release()
	live.change(func(l *Live) { l.State, l.PID = Starting, os.Getpid() })
	if use.kind() == Inline {
		err := s.attend(ctx, set, use, held, live)
		live.end(err)
		return err
	}

	for restarts := 0; ; restarts++ {
		began := time.Now()
		ss := &session{Service: s, set: set, use: use, log: log, held: held.File(), live: live, restarted: restarts > 0}
		err = ss.serve(ctx)
		if !errors.Is(err, errDaemonGone) || ctx.Err() != nil {
			break
		}
		log.ErrorContext(ctx, "qemu-storage-daemon has gone and is started anew", "err", err)
		s.note(set.Name, Event{Event: EventRestarted, Text: failure.OneLine(err.Error())})
		if time.Since(began) < time.Second { // it cannot stay: not faster than this
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	live.end(err)
	return err
}

// errDaemonGone ends a session whose daemon went by itself.
var errDaemonGone = failure.Wrap(failure.Temporary, errors.New("qemu-storage-daemon ended by itself"))

// takeOver takes the set's lock. A daemon whose `quorum serve` was killed still
// has it while it writes out what it holds; one that does not go is killed.
func (s *Service) takeOver(ctx context.Context, set Set) (*lock.Lock, error) {
	const grace = 5 * time.Second
	killed := false
	for began := time.Now(); ; {
		l, err := s.Lock(set.Name)
		if err == nil || !errors.Is(err, failure.Conflict) {
			return l, err
		}
		orphans := s.orphans(set.Name)
		if len(orphans) == 0 && time.Since(began) > grace || killed && time.Since(began) > 2*grace {
			return nil, err
		}
		if len(orphans) > 0 && !killed && time.Since(began) > grace {
			for _, p := range orphans {
				s.Log.WarnContext(ctx, "killing a daemon that does not end", "set", set.Name, "pid", p.PID)
				p.kill()
			}
			killed = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// process is one that may outlive us. Its start, in ticks since the boot, tells
// it from another that got its number.
type process struct {
	PID    int    `json:"pid"`
	Start  string `json:"start"`
	Parent int    `json:"parent"`
}

// noteDaemons writes down the daemons that have replicas open.
func (s *Service) noteDaemons(name string, daemons []*daemon) error {
	var list []process
	for _, d := range daemons {
		list = append(list, process{d.PID(), startOf(d.PID()), os.Getpid()})
	}
	return writeVolatileJSON(s.runFile(name, "daemon.json"), list)
}

// orphans are the daemons of a `quorum serve` that is dead. A live one's are its own.
func (s *Service) orphans(name string) []process {
	var list []process
	if err := readRun(s.runFile(name, "daemon.json"), &list); err != nil {
		return nil
	}
	return slices.DeleteFunc(list, func(p process) bool {
		return p.Start == "" || startOf(p.PID) != p.Start || parentOf(p.PID) == p.Parent
	})
}

func (p process) kill() {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if startOf(p.PID) == p.Start {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// note records an event; that it cannot be written keeps nobody from the disk.
func (s *Service) note(name string, e Event) {
	if err := s.record(name, e); err != nil {
		s.Log.Error("event is not recorded", "set", name, "event", e.Event, "err", err)
	}
}

// publish makes a socket in private/ the one that guests connect to. It replaces
// an earlier one in one step: who is connected stays so.
func (s *Service) publish(name, file string) error {
	tmp := s.private(name, "publish")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(s.private(name, file), tmp); err != nil {
		return err
	}
	if err := s.own(name, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, SocketPath(s.Layout, name))
}

// hide takes the sockets away that guests connect to.
func (s *Service) hide(name string) {
	for _, path := range []string{SocketPath(s.Layout, name), VhostPath(s.Layout, name)} {
		_ = atomicfile.Remove(path)
	}
}

// notify tells systemd (sd_notify(3)), if it listens.
func notify(state string) { _, _ = sd.SdNotify(false, state) }

// endpoint is what a guest connects to.
func (s *Service) endpoint(name string, u Use) Endpoint {
	return Endpoint{Kind: u.kind(), Socket: socketPath(s.Layout, name, u.kind()), Export: name}
}

// Endpoint is where a set's disk is to be had.
type Endpoint struct {
	Kind   string // NBDExport or VhostUser
	Socket string
	Export string // of NBDExport
}

// ended joins what went wrong at the end of a session.
func ended(set Set, errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	return nil
}
