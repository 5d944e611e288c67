// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/request"
)

// Answer does what a host's request says, once, and returns the reply. A refusal is
// a reply, and so is a failure that nobody knows to go away by itself, since the
// host has other requests to make: it is answered by what the map says then, as done
// or not. An error is none: this host is not the master any more (layout.ErrStale), or
// something failed that another try may not find; the request may have been done, and
// may be answered again.
func (m *Master) Answer(ctx context.Context, host uuid.UUID, msg layout.Message) (layout.Message, error) {
	var reply layout.Message
	err := m.change(ctx, func(s *session) error {
		if msg.Epoch > s.stamp.Epoch {
			return failure.New(failure.Conflict, "request %d of host %s: %w: it comes from epoch %d, this is the master of epoch %d",
				msg.Sequence, host, layout.ErrStale, msg.Epoch, s.stamp.Epoch)
		}
		done, err := s.answer(ctx, host, msg)
		switch {
		case err == nil:
		case ctx.Err() != nil && (failure.KindOf(err) == nil || errors.Is(err, context.DeadlineExceeded)):
			// Whoever asks on this host waited no longer, which refuses nothing.
			err = failure.Hint(failure.Wrap(failure.Temporary, err), "run the verb again; --deadline has it wait longer")
		case failure.KindOf(err) == nil:
			done, err = s.outcome(host, msg, err)
		}
		if err != nil && !final(err) {
			return err
		}
		reply = request.Answer(msg, s.stamp.Epoch, done, err)
		return nil
	})
	return reply, err
}

// outcome is what became of a request in which something failed that has no kind, be
// it a command of LVM or a write: the map on the disk says whether it was done. If
// the disk does not say, nobody knows.
func (s *session) outcome(id uuid.UUID, msg layout.Message, failed error) (request.Reply, error) {
	now, stamp, err := layout.ReadMap(s.dev, s.Cluster)
	if err == nil {
		err = s.reigns(now, stamp)
	}
	if err != nil {
		return request.Reply{}, failure.Wrap(failure.Temporary, errors.Join(failed, err))
	}
	s.m, s.stamp = now, stamp
	h, err := s.asking(id)
	if err == nil && h.Sequence == msg.Sequence {
		r, err := request.Decode(msg)
		s.Log.Warn("it was done, though something failed", "host", h.Name, "request", msg.Sequence, "error", failed)
		return s.reply(h.Number, r), err
	}
	s.Log.Warn("a request failed", "host", h.Name, "request", msg.Sequence, "error", failed)
	if failure.HintOf(failed) == "" {
		failed = failure.Hint(failed, "see `journalctl -u diskhook-thin-master@%s` on the master, then run the verb again", s.Name)
	}
	return request.Reply{}, failed
}

// final says whether an error is an answer: it would come again if the request were
// tried again at once, or nobody knows.
func final(err error) bool {
	kind := failure.KindOf(err)
	return kind != failure.Temporary && !errors.Is(err, layout.ErrStale) && !errors.Is(err, layout.ErrMoved) && !errors.Is(err, context.Canceled)
}

func (s *session) answer(ctx context.Context, id uuid.UUID, msg layout.Message) (request.Reply, error) {
	h, err := s.asking(id)
	if err != nil {
		return request.Reply{}, err
	}
	r, err := request.Decode(msg)
	if err != nil {
		return request.Reply{}, err
	}
	next, again, err := ledger.Answer(s.m, h.Number, msg.Sequence)
	if err == nil && !again {
		before := s.m
		if next, err = s.do(ctx, next, h.Number, r); err == nil {
			err = s.commit(ctx, next)
		}
		if err == nil {
			s.sweep(ctx, before)
		}
	}
	if err != nil {
		return request.Reply{}, fmt.Errorf("host %s: %s: %w", h.Name, request.Name(r), err)
	}
	return s.reply(h.Number, r), nil
}

// asking finds the host with a UUID that may ask: its latest record.
func (s *session) asking(id uuid.UUID) (layout.HostRecord, error) {
	for _, h := range slices.Backward(s.m.Hosts) {
		if h.UUID == id {
			return h, nil
		}
	}
	err := failure.New(failure.NotFound, "host %s: the cluster has none", id)
	return layout.HostRecord{}, failure.Hint(err, "run `diskhook thin init-host` on the master")
}

// do makes the map of what is asked, and writes what has to be there before that
// map is committed.
func (s *session) do(ctx context.Context, m layout.Map, from uint32, r request.Request) (layout.Map, error) {
	switch r := r.(type) {
	case request.Create:
		return s.create(ctx, m, r)
	case request.Delete:
		return remove(m, r)
	case request.Clone:
		return s.clone(ctx, m, r)
	case request.CloneAttached:
		return s.cloneAttached(ctx, m, from, r)
	case request.Resize:
		return ledger.Resize(m, r.Volume, r.Size)
	case request.BeginAttach:
		return s.beginAttach(ctx, m, from, r)
	case request.FinishAttach:
		return ledger.FinishAttach(m, r.Volume, from)
	case request.BeginDetach:
		return ledger.BeginDetach(m, r.Volume, from)
	case request.FinishDetach:
		return s.finishDetach(ctx, m, from, r)
	case request.Grant:
		return grant(m, from, r)
	case request.Return:
		return ledger.Return(m, from, r.Extents.Set())
	case request.Room:
		return m, s.room(ctx, m, from, r)
	case request.Leave:
		return leave(m, from)
	}
	return m, failure.New(failure.Usage, "nobody knows how to do it")
}

// reply says what the map has of a request that was done. It needs nothing else,
// so that one who asks again gets the same answer.
func (s *session) reply(from uint32, r request.Request) request.Reply {
	reply := request.Reply{Blocks: s.m.Owned(layout.Owner{Kind: layout.OfHost, Number: from}).Blocks()}
	for _, v := range s.m.Volumes {
		if about(r, v) {
			reply.Number, reply.Generation = v.Number, v.Generation
		}
	}
	return reply
}

// about says whether a volume is the one that a request made or changed.
func about(r request.Request, v layout.VolumeRecord) bool {
	switch r := r.(type) {
	case request.Create:
		return v.UUID == r.ID
	case request.Clone:
		return v.UUID == r.ID
	case request.CloneAttached:
		return v.UUID == r.ID
	case request.Resize:
		return v.Number == r.Volume
	case request.BeginAttach:
		return v.Number == r.Volume
	case request.FinishAttach:
		return v.Number == r.Volume
	case request.BeginDetach:
		return v.Number == r.Volume
	case request.FinishDetach:
		return v.Number == r.Volume
	}
	return false
}

// Channel is the way to this master for the host that it runs on.
func (m *Master) Channel(host uuid.UUID) request.Channel { return direct{m, host} }

type direct struct {
	*Master
	host uuid.UUID
}

// Ask is request.Channel's.
func (d direct) Ask(ctx context.Context, sequence uint64, r request.Request) (request.Reply, error) {
	msg, err := request.Encode(sequence, 0, r)
	if err != nil {
		return request.Reply{}, err
	}
	reply, err := d.Answer(ctx, d.host, msg)
	if err != nil {
		return request.Reply{}, err
	}
	return request.Result(reply)
}
