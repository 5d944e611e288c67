// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"diskhook/storage/nbd"
	"diskhook/storage/qmp"
)

// Report is the data of QEMU's QUORUM_REPORT_BAD and QUORUM_FAILURE
// (qapi/block-core.json). QEMU sends at most one of each kind a second and keeps
// the last, so that of two bad replicas one may go unreported for a while.
type Report struct {
	Node      string `json:"node-name"` // of QUORUM_REPORT_BAD: the replica's
	Type      string `json:"type"`      // "read", "write" or "flush"
	Error     string `json:"error"`
	Reference string `json:"reference"` // of QUORUM_FAILURE: the quorum's node
	Sector    int64  `json:"sector-num"`
	Sectors   int64  `json:"sectors-count"`
}

func (r Report) bytes() (at, length int64) { return r.Sector * sector, r.Sectors * sector }

// QEMU's names of the events.
const (
	ReportBad     = "QUORUM_REPORT_BAD"
	ReportFailure = "QUORUM_FAILURE"
)

// event takes in what the daemon tells.
func (ss *session) event(ctx context.Context, e qmp.Event) {
	var r Report
	_ = json.Unmarshal(e.Data, &r)
	at, length := r.bytes()
	switch e.Name {
	case ReportFailure:
		ss.log.ErrorContext(ctx, "no majority: the guest gets an I/O error", "offset", at, "length", length)
		ss.note(ss.set.Name, Event{Event: EventFailure, Offset: at, Length: length})
		ss.live.change(func(l *Live) { l.Failures++ })
	case ReportBad:
		m := ss.voters[r.Node]
		if m == nil {
			return // a placeholder, or one that is out already
		}
		ss.log.WarnContext(ctx, "a replica is bad", "replica", r.Node, "type", r.Type, "err", r.Error, "offset", at, "length", length)
		why := m.remote.reason(reasonOf(r))
		ss.note(ss.set.Name, Event{Event: EventBad, Replica: r.Node, Reason: why, Offset: at, Length: length, Text: r.Error})
		if why == Mismatch && !ss.differs(ctx, r.Node, at, length) {
			ss.log.InfoContext(ctx, "it is like the others: it was read while it was written", "replica", r.Node)
			ss.note(ss.set.Name, Event{Event: EventPassing, Replica: r.Node, Offset: at, Length: length})
			return
		}
		ss.suspect(ctx, r.Node, why, r.Error)
	}
}

func reasonOf(r Report) Reason {
	switch {
	case r.Error == "":
		return Mismatch
	case r.Type == "write":
		return WriteError
	case r.Type == "flush":
		return FlushError
	}
	return ReadError
}

// differs looks again at what a replica was outvoted on. A guest that reads what
// it is just writing makes QEMU see a difference which is none. What changes
// between two looks is being written; what stays differs.
func (ss *session) differs(ctx context.Context, id string, at, length int64) bool {
	const looks = 4
	length = min(length, nbd.MaxRequest, ss.set.Size-at)
	if at < 0 || length <= 0 {
		return true
	}
	for look := range looks {
		if look > 0 {
			time.Sleep(30 * time.Millisecond)
		}
		views, failed := ss.readAll(ctx, at, int(length))
		if failed[id] != nil {
			return true
		}
		if _, bad := vote(views, majority(ss.set, len(ss.voters))); !slices.Contains(bad, id) {
			return false
		}
	}
	return true
}

// suspect takes a replica's vote away. The generation rises on the others first,
// so that it is left out whatever happens next. Where too few others are left it
// stays in the node: QEMU then answers with errors, and never with its content
// alone.
func (ss *session) suspect(ctx context.Context, id string, why Reason, text string) {
	m := ss.voters[id]
	if m == nil {
		return
	}
	rest := slices.DeleteFunc(ss.voting(), func(other string) bool { return other == id })
	ss.log.ErrorContext(ctx, "replica is suspect", "replica", id, "reason", why, "err", text)
	ss.suspects[id] = why
	ss.note(ss.set.Name, Event{Event: EventSuspect, Replica: id, Reason: why, Text: text, Generation: ss.gen.Number})
	ss.live.replica(id, func(r *LiveReplica) { r.State, r.Why, r.Since = Suspected, string(why), time.Now().UTC() })
	if len(rest) < ss.set.Threshold {
		ss.log.ErrorContext(ctx, "it stays, as the others are too few without it", "replica", id, "threshold", ss.set.Threshold)
		if err := ss.noteKnown(ss.set, Known{Number: ss.gen.Number, Raise: ss.gen.Raise}, rest); err != nil {
			ss.log.WarnContext(ctx, "since when it is suspect is not written down", "replica", id, "err", err)
		}
		return
	}
	g, err := ss.Raise(ctx, ss.set, Origin{Number: ss.gen.Number, Raise: ss.gen.Raise}, ss.gen.Number+1, rest)
	if err != nil {
		ss.log.ErrorContext(ctx, "the generation does not rise", "err", err)
		return
	}
	ss.gen = g
	ss.live.change(func(l *Live) { l.Generation = g.Number })
	go ss.accuse(ctx, id, why) // it may hang, and is a service only
	ss.evict(ctx, id)
	for _, other := range rest {
		if !slices.Contains(g.With, other) {
			ss.suspect(ctx, other, WriteError, "it takes no mark")
		}
	}
}

// accuse notes on a suspect itself that it is one.
func (ss *session) accuse(ctx context.Context, id string, why Reason) {
	if err := ss.MarkSuspect(ctx, ss.set, id, why); err != nil {
		ss.log.WarnContext(ctx, "the suspect has no mark of it", "replica", id, "err", err)
	}
}

// counted are the suspects that the newest generation has, in the order of the
// definition: it did not rise without them.
func (ss *session) counted() []string {
	return slices.DeleteFunc(ss.set.IDs(), func(id string) bool {
		return ss.suspects[id] == "" || !slices.Contains(ss.gen.With, id)
	})
}

// countOut raises the generation without those suspects, at the end of a session:
// what it has when it is clean votes the next time.
func (ss *session) countOut(ctx context.Context) error {
	suspects := ss.counted()
	if len(suspects) == 0 {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(ss.gen.With), func(id string) bool { return slices.Contains(suspects, id) })
	g, err := ss.Raise(ctx, ss.set, Origin{Number: ss.gen.Number, Raise: ss.gen.Raise}, ss.gen.Number+1, rest)
	if err != nil {
		return err
	}
	ss.gen = g
	accused := make(chan struct{})
	go func() {
		defer close(accused)
		for _, id := range suspects {
			ss.accuse(ctx, id, ss.suspects[id])
		}
	}()
	select {
	case <-accused:
	case <-time.After(ss.hangTimeout(ss.set)): // the generation leaves them out all the same
	}
	return nil
}

// evict takes a replica out of the voting node.
func (ss *session) evict(ctx context.Context, id string) {
	m := ss.voters[id]
	delete(ss.voters, id)
	defer func() { ss.evicted[id] = time.Now() }()
	if m.remote != nil {
		m.remote.cut()
	}
	ss.endMember(ctx, m)
	if err := ss.daemon.detach(ctx, ss.hangTimeout(ss.set)+monitorTimeout, id); err != nil {
		// It goes on to be outvoted.
		ss.log.ErrorContext(ctx, "suspect is still in the voting node", "replica", id, "err", err)
	}
	ss.endRemote(m)
}

func (ss *session) endRemote(m *member) {
	if m.remote != nil {
		go func() { _ = m.remote.end(time.Second) }()
	}
}

// endMember ends the connection that reads a replica alone.
func (ss *session) endMember(ctx context.Context, m *member) {
	if m.look == nil {
		return
	}
	_ = m.look.Close()
	m.look = nil
	ss.daemon.unexport(ctx, "look-"+m.replica.ID)
}

// looking is the connection that reads a replica alone, past the vote. The loop
// calls it, or who has stopped the loop from changing voters.
func (ss *session) looking(ctx context.Context, m *member) (*nbd.Client, error) {
	if m.look != nil {
		return m.look, nil
	}
	id := "look-" + m.replica.ID
	if err := ss.daemon.export(ctx, export{ID: id, Type: NBDExport, Node: m.replica.ID, Name: id}); err != nil {
		return nil, err
	}
	client, err := nbd.Dial(ctx, ss.private(ss.set.Name, daemonSocket), id)
	if err != nil {
		_ = ss.daemon.do(ctx, "block-export-del", args{"id": id, "mode": "hard"}, nil)
		return nil, fmt.Errorf("%s: %w", m.replica, err)
	}
	m.look = client
	return client, nil
}

// readAll reads a piece of each voting replica alone, each for at most the hang
// timeout.
func (ss *session) readAll(ctx context.Context, at int64, length int) (views map[string][]byte, failed map[string]error) {
	clients := map[string]*nbd.Client{}
	failed = map[string]error{}
	for id, m := range ss.voters {
		client, err := ss.looking(ctx, m)
		if err != nil {
			failed[id] = err
			continue
		}
		clients[id] = client
	}
	views, more := readViews(ctx, clients, at, length, ss.hangTimeout(ss.set))
	for id, err := range more {
		failed[id] = err
	}
	return views, failed
}
