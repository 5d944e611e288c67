// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

const (
	// startTimeout is how long the unit may take to say anything.
	startTimeout = 15 * time.Second
	// stopTimeout is how long a set may take to be closed.
	stopTimeout = 45 * time.Second
	pollEvery   = 50 * time.Millisecond
)

// Start claims a set for use, has it served, and waits until the export is
// there, for at most deadline (0: as long as it takes). Called again with the
// same use it finds the set served. A set that another disk uses is a
// failure.Conflict; what keeps it from being served is the error that Serve had,
// and the claim is gone again.
func (s *Service) Start(ctx context.Context, name string, use Use, deadline time.Duration) (Endpoint, error) {
	if _, err := s.Load(name); err != nil {
		return Endpoint{}, err
	}
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	if err := s.makeRunDir(name); err != nil {
		return Endpoint{}, err
	}
	mine, err := s.claim(ctx, name, use)
	if err != nil {
		return Endpoint{}, err
	}
	if err := s.served(ctx, name, use); err != nil {
		if mine { // one that was there before has a guest, perhaps
			_ = s.Stop(context.WithoutCancel(ctx), name, use)
		}
		return Endpoint{}, err
	}
	return s.endpoint(name, use), nil
}

// claim notes the use; mine says that it was not noted before.
func (s *Service) claim(ctx context.Context, name string, use Use) (mine bool, err error) {
	l, err := s.lockClaim(ctx, name)
	if err != nil {
		return false, err
	}
	defer l.Release()
	had, err := s.Claim(name)
	there := err == nil && had.same(use) && had.kind() == use.kind()
	if there && use.Fingerprint == "" && had.isDisk(use) {
		use.Fingerprint = had.Fingerprint
	}
	switch {
	case there && had == use:
		return false, nil
	case err == nil && !had.same(use):
		err := failure.New(failure.Conflict, "replica set %s: it is in use by %s", name, had)
		return false, failure.Hint(err, "shut that domain down first; see `diskhook quorum status %s`", name)
	case err != nil && !errors.Is(err, failure.NotFound):
		return false, err
	}
	if err := writeVolatileJSON(s.runFile(name, "claim.json"), use); err != nil {
		return false, fmt.Errorf("replica set %s: %w", name, err)
	}
	return !there, failpoint.Hit("quorum.claimed")
}

func (s *Service) lockClaim(ctx context.Context, name string) (*lock.Lock, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	for _, dir := range []string{s.Layout.Run(), s.Layout.Locks()} {
		if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return lock.Acquire(ctx, s.Layout.Locks(), "quorum-claim-"+name)
}

// served sees to it that a claimed set is served.
func (s *Service) served(ctx context.Context, name string, use Use) error {
	if s.ask(ctx, name, request{Verb: verbReleased}) != nil { // nobody there
		if err := s.refuseVerb(name); err != nil {
			return err
		}
		if err := s.launch(ctx, name); err != nil {
			return fmt.Errorf("replica set %s: start its unit: %w", name, err)
		}
	}
	return s.await(ctx, name, use)
}

// refuseVerb says that a verb works on the set, which takes as long as it takes:
// nobody waits for it. A daemon that is on its way out has the lock, too, and is
// waited for by the unit; one that was killed goes in a moment.
func (s *Service) refuseVerb(name string) error {
	for began := time.Now(); ; time.Sleep(pollEvery) {
		locked, err := s.Locked(name)
		if err != nil || !locked {
			return err
		}
		live, err := s.Live(name)
		if err == nil && startOf(live.PID) != "" || len(s.orphans(name)) > 0 {
			return nil
		}
		if time.Since(began) > time.Second {
			return s.inUse(name)
		}
	}
}

// launch starts the unit. systemd restarts it when it is killed; elsewhere it
// runs in a session of its own.
func (s *Service) launch(ctx context.Context, name string) error {
	if err := os.Remove(s.runFile(name, "status.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := failpoint.Hit("quorum.launch"); err != nil {
		return err
	}
	if s.unitInstalled() {
		_, err := s.Run.Run(ctx, command.Cmd{Name: "systemctl", Args: []string{"start", "--no-block", "--", "diskhook-quorum@" + name + ".service"}})
		return err
	}
	return command.Detach(ctx, s.Run, s.process(name))
}

// unitInstalled says whether systemd knows contrib/systemd's unit.
func (s *Service) unitInstalled() bool {
	if s.Layout.Root != "" {
		return false
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return false
	}
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if _, err := os.Stat(filepath.Join(dir, "diskhook-quorum@.service")); err == nil {
			return true
		}
	}
	return false
}

func (s *Service) process(name string) command.Detached {
	var env []string
	if s.Layout.Root != "" {
		env = []string{"DISKHOOK_ROOT=" + s.Layout.Root}
	}
	return command.Detached{
		Unit:        "diskhook-quorum-" + name,
		Description: "diskhook: replica set " + name,
		Argv:        []string{s.Program, "quorum", "serve", name},
		Env:         env,
		// As in contrib/systemd/diskhook-quorum@.service.
		Properties: []string{
			"Restart=on-failure", "RestartSec=200ms", "RestartPreventExitStatus=2 3 7", "OOMScoreAdjust=-900",
			"StartLimitIntervalSec=60", "StartLimitBurst=100",
		},
		Log: s.runFile(name, "serve.log"),
	}
}

// await waits until the set is served, or the unit says why it is not.
func (s *Service) await(ctx context.Context, name string, use Use) error {
	began := time.Now()
	for ; ; time.Sleep(pollEvery) {
		live, err := s.Live(name)
		switch {
		case err != nil && !errors.Is(err, failure.NotFound):
			return err
		case err == nil && live.State == Serving && live.Use.same(use):
			return nil
		case err == nil && live.State == Stopped: // what was closing when we came
			if err := s.launch(ctx, name); err != nil {
				return err
			}
		case err == nil && live.State == Failed:
			return answer{live.Error, live.Code, live.Hint}.err()
		case err != nil && time.Since(began) > startTimeout:
			if err := s.refuseVerb(name); err != nil {
				return err // it came in between
			}
			err := failure.New(failure.Temporary, "replica set %s: its unit says nothing", name)
			return failure.Hint(err, "see `%s`", s.process(name).LogCommand())
		}
		if ctx.Err() != nil {
			return s.notYet(name, live)
		}
	}
}

// notYet is why a start gives up waiting.
func (s *Service) notYet(name string, live Live) error {
	if live.Equalising && live.Total > 0 {
		err := failure.New(failure.Temporary, "replica set %s: it was not closed cleanly; its replicas are made equal, %d %% done", name, 100*live.Done/live.Total)
		return failure.Hint(err, "give it time with `diskhook quorum resync %s`, then start the domain again", name)
	}
	err := failure.New(failure.Temporary, "replica set %s: not served in time", name)
	return failure.Hint(err, "see `diskhook quorum status %s`, then start the domain again", name)
}

// Stop releases a set and waits until it is closed: everything is flushed, its
// marks are clean, nobody has its replicas open. A set that use has no claim on
// is left alone without an error.
func (s *Service) Stop(ctx context.Context, name string, use Use) error {
	released, err := s.release(ctx, name, use)
	if err != nil || !released {
		return err
	}
	// Also who cannot be asked looks at the claim, every few seconds.
	asking, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	_ = s.ask(asking, name, request{Verb: verbReleased})
	ctx, cancel = context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for ; ; time.Sleep(pollEvery) {
		locked, err := s.Locked(name)
		if err != nil || !locked || s.refuseVerb(name) != nil { // a verb has it now
			return err
		}
		if ctx.Err() != nil {
			err := failure.New(failure.Temporary, "replica set %s: it does not close", name)
			return failure.Hint(err, "see `diskhook quorum status %s` and `%s`", name, s.process(name).LogCommand())
		}
	}
}

// release takes the claim away, if it is of use; true also when it was gone.
func (s *Service) release(ctx context.Context, name string, use Use) (bool, error) {
	l, err := s.lockClaim(ctx, name)
	if err != nil {
		return false, err
	}
	defer l.Release()
	had, err := s.Claim(name)
	switch {
	case errors.Is(err, failure.NotFound):
		// A stop that was cut short may have left the daemon on its way out.
		live, err := s.Live(name)
		return err == nil && startOf(live.PID) != "", nil
	case err != nil:
		return false, err
	case !had.same(use):
		return false, nil
	}
	for _, file := range []string{attendedFile, "owner.json", "claim.json"} {
		if err := os.Remove(s.runFile(name, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("replica set %s: %w", name, err)
		}
	}
	return true, failpoint.Hit("quorum.released")
}
