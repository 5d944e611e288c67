// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// journal is what a host's header keeps of a request until it has an answer: the
// message that is asked under the header's sequence. Code 0 is none.
type journal struct {
	Code uint16          `json:"code,omitempty"`
	Body json.RawMessage `json:"body,omitempty"`
	// Volume is the one that a Delete is of: the map does not have it afterwards.
	Volume *named `json:"volume,omitempty"`
	// Copy is what a Clone or a CloneAttached makes.
	Copy *Made `json:"copy,omitempty"`
	untold
}

// note has the header keep a journal.
func (s *session) note(j journal) error {
	var entry []byte
	if j.Code != 0 || j.untold != (untold{}) {
		var err error
		if entry, err = json.Marshal(j); err != nil {
			return err
		}
	}
	return s.commit(func(h *layout.HostHeader) { h.Journal = entry })
}

// journal is what the header keeps.
func (s *session) journal() (journal, error) {
	var j journal
	if len(s.header.Journal) == 0 {
		return j, nil
	}
	return j, json.Unmarshal(s.header.Journal, &j)
}

// ask has the master do something. The request is in the header before it is on its
// way, and stays there until there is an answer, so that it is asked again under
// its sequence by whatever verb comes next: the master may have done it.
func (s *session) ask(ctx context.Context, r request.Request) (request.Reply, error) {
	reply, err := s.send(ctx, r)
	if err != nil && !errors.Is(err, request.ErrRefused) {
		return reply, err
	}
	return reply, errors.Join(err, s.refresh(ctx))
}

// wasDone says that an earlier verb's request, whose answer came after the verb had
// given up, is what this one is about to ask for: a verb that is run again, as it is
// told to, does not do it twice. It counts once.
func wasDone[R request.Request](s *session, same func(R) bool) bool {
	r, ok := s.late.(R)
	if !ok || !same(r) {
		return false
	}
	s.late = nil
	return true
}

// send is ask for a host that need not be a member afterwards.
func (s *session) send(ctx context.Context, r request.Request) (request.Reply, error) {
	if s.pending != nil {
		return request.Reply{}, s.pending
	}
	sequence := s.header.Sequence + 1
	m, err := request.Encode(sequence, s.epoch, r)
	if err != nil {
		return request.Reply{}, err
	}
	before, err := s.journal()
	if err != nil {
		return request.Reply{}, err
	}
	entry, err := json.Marshal(journal{m.Code, m.Body, s.goes(r), s.comes(r), before.untold})
	if err != nil {
		return request.Reply{}, err
	}
	if err := s.commit(func(h *layout.HostHeader) { h.Sequence, h.Journal = sequence, entry }); err != nil {
		return request.Reply{}, err
	}
	if err := failpoint.Hit("thin.member.journaled"); err != nil {
		return request.Reply{}, err
	}
	return s.conclude(ctx, r, before.untold)
}

// conclude waits for the answer to the request that is in the journal. When it is done
// the journal keeps what is given, and when it is refused what it kept before.
func (s *session) conclude(ctx context.Context, r request.Request, done untold) (request.Reply, error) {
	wait, cancel := context.WithTimeout(ctx, s.Deadline)
	defer cancel()
	reply, err := s.Channel(s.own, s.epoch).Ask(wait, s.header.Sequence, r)
	if err != nil && !errors.Is(err, request.ErrRefused) {
		s.pending = fmt.Errorf("thin cluster %s: request %q of this host: %w", s.Name, request.Name(r), err)
		return reply, s.pending
	}
	if err := failpoint.Hit("thin.member.answered"); err != nil {
		return reply, err
	}
	if err != nil {
		before, failed := s.journal()
		if failed != nil {
			return reply, errors.Join(err, failed)
		}
		done = before.untold
	}
	if failed := s.note(journal{untold: done}); failed != nil {
		return reply, errors.Join(err, failed)
	}
	return reply, err
}

// settle finishes what verbs before this one left undone: devices that are not as
// they are to be, guests' first of all, then a request without an answer.
func (s *session) settle(ctx context.Context) error {
	runs, err := s.running(ctx)
	if err != nil {
		return err
	}
	if !runs {
		return s.answer(ctx)
	}
	if err := s.sweep(ctx); err != nil {
		return err
	}
	volumes, err := s.mapped(ctx)
	if err == nil {
		err = s.converge(ctx, volumes)
	}
	if err == nil {
		err = s.answer(ctx)
	}
	if err == nil {
		err = s.finishAttaches(ctx, volumes)
	}
	return err
}

// journaled is the request that has no answer yet, nil if there is none.
func (s *session) journaled() (request.Request, error) {
	entry, err := s.journal()
	if err != nil || entry.Code == 0 {
		return nil, err
	}
	return request.Decode(layout.Message{Sequence: s.header.Sequence, Code: entry.Code, Body: entry.Body})
}

// answer asks again what is in the journal. A master that does not answer is for
// those to complain of who need it.
func (s *session) answer(ctx context.Context) error {
	r, err := s.journaled()
	if err != nil {
		err = failure.New(failure.Problems, "%s: its journal cannot be read: %w", s.own.Name(), err)
		return failure.Hint(err, "install the diskhook that wrote it, or have the host recovered with `diskhook thin recover %s`", s.header.Name)
	}
	if r == nil {
		return nil
	}
	entry, err := s.journal()
	if err != nil {
		return err
	}
	if _, err = s.conclude(ctx, r, entry.late()); err == nil {
		s.late = r
		return s.refresh(ctx)
	}
	switch {
	case s.pending != nil:
		s.Log.Warn("the master did not answer a request of before", "cluster", s.Name, "request", request.Name(r), "error", err)
		return nil
	case errors.Is(err, request.ErrRefused):
		s.Log.Info("the master refused a request of before", "cluster", s.Name, "request", request.Name(r), "error", err)
		return nil
	}
	return err
}

// finishAttaches tells the master of volumes that this host's metadata have by now.
func (s *session) finishAttaches(ctx context.Context, mapped []layout.VolumeRecord) error {
	for _, v := range s.here(layout.Attaching) {
		has := slices.ContainsFunc(mapped, func(m layout.VolumeRecord) bool { return m.Number == v.Number })
		if !has || s.pending != nil {
			continue
		}
		if _, err := s.ask(ctx, request.FinishAttach{Volume: v.Number}); err != nil && s.pending == nil {
			return err
		}
	}
	return nil
}

// sweep takes away devices of verbs that were killed, and of a volume that goes.
func (s *session) sweep(ctx context.Context) error {
	for _, v := range s.here(layout.Detaching) {
		if err := s.removeDevice(ctx, v); err != nil {
			return err
		}
	}
	for _, name := range []string{s.reservedName(), s.balloonName()} {
		info, err := s.present(ctx, name)
		if err == nil && info != nil {
			err = s.Mapper.Remove(ctx, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// extendOwn has UUID.host made at least so long.
func (s *session) extendOwn(ctx context.Context, bytes uint64) error {
	if _, err := s.ask(ctx, request.Room{Bytes: min(bytes, request.MaxRoom)}); err != nil {
		return err
	}
	return s.reopen(ctx)
}
