// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// request is one line to the process that serves a set, over its control socket,
// which only root can open. It is answered by one answer.
type request struct {
	Verb    string `json:"verb"`              // verbResync, or verbReleased: look at the claim
	Replica string `json:"replica,omitempty"` // of verbResync; "" is all that do not vote
}

const verbReleased = "released"

type answer struct {
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"` // failure.Kind.Code
	Hint  string `json:"hint,omitempty"`
}

const maxRequest = 4096

func (ss *session) listenControl(ctx context.Context) error {
	path := ss.runFile(ss.set.Name, "control.sock")
	_ = os.Remove(path)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go ss.control(ctx, conn)
		}
	}()
	return nil
}

// control answers one caller.
func (ss *session) control(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	var r request
	_ = conn.SetReadDeadline(time.Now().Add(monitorTimeout))
	if err := json.NewDecoder(io.LimitReader(conn, maxRequest)).Decode(&r); err != nil {
		return
	}
	err := failure.New(failure.Usage, "no verb %q", clip(r.Verb))
	switch r.Verb {
	case verbReleased:
		err = nil
		select {
		case ss.released <- struct{}{}:
		default:
		}
	case verbResync:
		err = ss.resyncAsked(ctx, r.Replica)
	}
	var a answer
	if err != nil {
		a = answer{Error: failure.OneLine(err.Error()), Hint: failure.HintOf(err)}
		if kind := failure.KindOf(err); kind != nil {
			a.Code = kind.Code
		}
	}
	_ = json.NewEncoder(conn).Encode(a)
}

// resyncAsked queues one replica, or all that do not vote, and waits for them.
func (ss *session) resyncAsked(ctx context.Context, id string) error {
	var ids []string
	err := ss.call(ctx, func() error {
		if err := ss.settleSuspects(ctx, id); err != nil {
			return err
		}
		ids = slices.DeleteFunc(ss.set.IDs(), func(other string) bool { return ss.voters[other] != nil || id != "" && id != other })
		if _, ok := ss.set.Replica(id); id != "" && !ok {
			return noReplica(ss.set, id)
		}
		return nil
	})
	var errs []error
	for _, id := range ids {
		job := resyncJob{id, make(chan error, 1)}
		select {
		case ss.jobs <- job:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case err := <-job.done:
			errs = append(errs, err)
		case <-ctx.Done():
			return failure.New(failure.Temporary, "%s: it is closed", &ss.set)
		}
	}
	return errors.Join(append(errs, err)...)
}

// settleSuspects tries once more to take the vote of suspects that kept it. It
// refuses to pass one for brought up to date that has to keep it: what it holds
// is part of what the guest reads.
func (ss *session) settleSuspects(ctx context.Context, only string) error {
	var kept []string
	for _, id := range ss.counted() {
		why := ss.suspects[id]
		if ss.voters[id] != nil {
			ss.suspect(ctx, id, why, "")
		}
		if ss.voters[id] != nil && (only == "" || only == id) {
			kept = append(kept, fmt.Sprintf("%s is suspect (%s)", id, why))
		}
	}
	if len(kept) == 0 {
		return nil
	}
	err := failure.New(failure.Precondition, "%s: %s, and votes: the others are too few without it, or take no mark", &ss.set, strings.Join(kept, ", "))
	return failure.Hint(err, "shut the guest down, then run `diskhook quorum resync %s`, or replace what is broken with `diskhook quorum replace`", ss.set.Name)
}

// ask sends one request to the process that serves a set and waits for the
// answer. Where nobody serves it the error is a failure.NotFound.
func (s *Service) ask(ctx context.Context, name string, r request) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", s.runFile(name, "control.sock"))
	if err != nil {
		return failure.New(failure.NotFound, "replica set %s: nobody serves it: %w", name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return failure.Wrap(failure.Temporary, fmt.Errorf("replica set %s: %w", name, err))
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxDefinition)).ReadBytes('\n')
	if ctx.Err() != nil {
		return fmt.Errorf("replica set %s: no longer waiting: %w", name, context.Cause(ctx))
	}
	var a answer
	if err != nil || json.Unmarshal(line, &a) != nil {
		return failure.New(failure.Temporary, "replica set %s: who serves it went before it answered", name)
	}
	return a.err()
}

func (a answer) err() error {
	if a.Error == "" {
		return nil
	}
	err := errors.New(a.Error)
	for _, kind := range failure.Kinds() {
		if kind.Code == a.Code {
			err = failure.Wrap(kind, err)
		}
	}
	if a.Hint != "" {
		err = failure.Hint(err, "%s", a.Hint)
	}
	return err
}

// Behind are the replicas of a set that is served which do not vote. A set that
// nobody serves, or whose guest opens the replicas itself, is not served.
func (s *Service) Behind(name string) (ids []string, served bool, err error) {
	locked, err := s.Locked(name)
	if err != nil || !locked {
		return nil, false, err
	}
	live, err := s.Live(name)
	if errors.Is(err, failure.NotFound) {
		return nil, false, nil // a verb has the lock
	}
	if err != nil || live.State != Serving || live.Use.kind() == Inline || startOf(live.PID) == "" {
		return nil, false, err
	}
	for _, r := range live.Replicas {
		if r.State != Voting {
			ids = append(ids, r.ID)
		}
	}
	return ids, true, nil
}

// ResyncServed brings replicas of a set up to date while it is served, from the
// majority: the one called id, or all that do not vote. It waits for the end; a
// caller who goes does not stop it. A set that nobody serves is a
// failure.NotFound: Resync is for that.
func (s *Service) ResyncServed(ctx context.Context, name, id string, told progress.Func) error {
	if err := checkName(name); err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() { result <- s.ask(ctx, name, request{Verb: verbResync, Replica: id}) }()
	for {
		select {
		case err := <-result:
			return err
		case <-time.After(200 * time.Millisecond):
		}
		if live, err := s.Live(name); err == nil && told != nil {
			for _, r := range live.Replicas {
				if r.State == InResync && r.Total > 0 {
					told(r.Done, r.Total)
				}
			}
		}
	}
}
