// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/nbd"
)

// open makes the voting node over the replicas that Decide chose, with a new
// generation on them.
func (ss *session) open(ctx context.Context, d Decision) error {
	var err error
	if ss.daemon, err = ss.startDaemon(ctx, ss.log, ss.held); err != nil {
		return err
	}
	var why []string
	for _, id := range d.Open {
		r, _ := ss.set.Replica(id)
		m, err := ss.bring(ctx, r)
		switch {
		case err == nil:
			ss.voters[id] = m
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case inUse(err):
			return ss.busy(r)
		}
		ss.log.WarnContext(ctx, "replica cannot be opened and is left out", "replica", id, "err", err)
		ss.left(id, ss.set.reason(id, err))
		why = append(why, id+": "+ss.set.reason(id, err))
	}
	for _, l := range d.Left {
		ss.left(l.ID, l.Why)
		why = append(why, l.ID+": "+l.Why)
	}
	if len(ss.voters) < ss.set.Threshold {
		err := failure.New(failure.Precondition, "%s: %d of its replicas can be opened, %d are needed (%s)", &ss.set, len(ss.voters), ss.set.Threshold, strings.Join(why, "; "))
		return failure.Hint(err, "bring a replica back; see `diskhook quorum status %s`", ss.set.Name)
	}
	if d.Unclean && len(ss.voters) < votersOfUnclean {
		err := failure.New(failure.Precondition, "%s: it was not closed cleanly, and %d replicas cannot outvote each other (%s)", &ss.set, len(ss.voters), strings.Join(why, "; "))
		return failure.Hint(err, "bring a replica back, or compare the others with `diskhook quorum resync %s`, which asks for one to believe only where they differ", ss.set.Name)
	}
	if err := ss.noteOpen(); err != nil {
		return err
	}
	if err := ss.begun(ss.set.Name, ss.use); err != nil {
		return err
	}
	if ss.gen, err = ss.Raise(ctx, ss.set, d.Base, d.Next, ss.voting()); err != nil {
		return err
	}
	for id := range ss.voters {
		if !slices.Contains(ss.gen.With, id) {
			ss.closeReplica(ctx, id)
			ss.left(id, "it takes no mark")
		}
	}
	err = ss.daemon.add(ctx, ss.hangTimeout(ss.set)+monitorTimeout, ss.set.Node(ss.voting()))
	if inUse(err) {
		return ss.whichInUse(ctx, err)
	}
	return err
}

// whichInUse names the replica whose image another process has open. QEMU takes
// its locks only when somebody is to write, here the voting node, and does not
// say on which; so each one is tried alone.
func (ss *session) whichInUse(ctx context.Context, err error) error {
	for _, id := range ss.voting() {
		alone := &Node{Driver: "quorum", NodeName: "try-" + id, Threshold: 1, Children: []any{id}}
		if inUse(ss.daemon.add(ctx, monitorTimeout, alone)) {
			return ss.busy(ss.voters[id].replica)
		}
	}
	return fmt.Errorf("%s: %w", &ss.set, err)
}

func (ss *session) busy(r Replica) error {
	err := failure.New(failure.Conflict, "%s: %s is in use by another process", &ss.set, r)
	return failure.Hint(err, "end what uses it (`fuser -v %s`), then start the domain again", r.Top().Path)
}

// voting are the ids of those that vote, in the order of the definition.
func (ss *session) voting() []string {
	ids := ss.set.IDs()
	return slices.DeleteFunc(ids, func(id string) bool { return ss.voters[id] == nil })
}

func (ss *session) left(id, why string) {
	ss.live.replica(id, func(r *LiveReplica) { r.State, r.Why = OutOfSet, failure.OneLine(why) })
}

// inUse says that QEMU met its image locks held by another process: "Failed to
// get "write" lock" (block/file-posix.c).
func inUse(err error) bool {
	return refusedByQEMU(err) && strings.Contains(err.Error(), "Failed to get ") && strings.HasSuffix(err.Error(), " lock")
}

// bring makes the node of one replica in the voting daemon.
func (ss *session) bring(ctx context.Context, r Replica) (*member, error) {
	m := &member{replica: r}
	most := ss.hangTimeout(ss.set)
	node, err := ss.set.ReplicaNode(r, Opening{Direct: directIO(ctx, r)})
	if err != nil {
		return nil, err
	}
	looking, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if isRemote(looking, r) {
		m.remote, err = ss.openRemote(ctx, ss.log.With("replica", r.ID), ss.set, r, ss.held, func(err error) {
			ss.post(ctx, func() { ss.suspect(ctx, r.ID, hangReason(err), err.Error()) })
		})
		if err != nil {
			return nil, err
		}
		node = ss.set.ProxyNode(r.ID, ss.private(ss.set.Name, r.ID+".relay"))
	}
	if err := ss.daemon.add(ctx, most+monitorTimeout, node); err != nil {
		if m.remote != nil {
			_ = m.remote.end(0)
		}
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return m, nil
}

func hangReason(err error) Reason {
	if errors.Is(err, errHung) {
		return Hung
	}
	return Gone
}

// closeReplica lets go of a replica that the voting node does not have.
func (ss *session) closeReplica(ctx context.Context, id string) {
	m := ss.voters[id]
	delete(ss.voters, id)
	ss.endMember(ctx, m)
	if err := ss.daemon.remove(ctx, id); err != nil {
		ss.log.WarnContext(ctx, "image is not closed", "replica", id, "err", err)
	}
	ss.endRemote(m)
}

// noteOpen writes down which daemons have replicas open.
func (ss *session) noteOpen() error {
	daemons := []*daemon{ss.daemon}
	for _, m := range ss.voters {
		if m.remote != nil {
			daemons = append(daemons, m.remote.daemon)
		}
	}
	return ss.noteDaemons(ss.set.Name, daemons)
}

const daemonSocket = "daemon.sock"

// offer makes the exports and shows the socket.
func (ss *session) offer(ctx context.Context, d Decision) error {
	name := ss.set.Name
	through := slices.ContainsFunc(slices.Collect(maps.Values(ss.voters)), func(m *member) bool { return m.replica.writesBehind() })
	socket := ss.private(name, daemonSocket)
	_ = os.Remove(socket)
	err := ss.daemon.listen(ctx, socket)
	if err == nil {
		err = ss.daemon.export(ctx, export{ID: "guest", Type: NBDExport, Node: QuorumNode, Writable: true, WriteThrough: through, Name: name})
	}
	if err != nil {
		return err
	}
	opening, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	if ss.inner, err = nbd.Dial(opening, socket, name); err != nil {
		return err
	}
	ss.live.change(func(l *Live) { l.Generation = ss.gen.Number })
	for id := range ss.voters {
		ss.live.replica(id, func(r *LiveReplica) { r.State, r.Why = Voting, "" })
	}
	// What another one asks about this set is answered from now on.
	if err := ss.listenControl(ctx); err != nil {
		return err
	}
	if d.Unclean {
		err = ss.equalise(ctx, d, through)
	} else {
		err = ss.ready(ctx, through)
	}
	go ss.online(ctx, ss.stale(d))
	return err
}

// ready shows the socket to guests.
func (ss *session) ready(ctx context.Context, through bool) error {
	name := ss.set.Name
	if ss.use.kind() == VhostUser {
		path := VhostPath(ss.Layout, name)
		_ = os.Remove(path)
		err := ss.daemon.export(ctx, export{ID: "vhost", Type: "vhost-user-blk", Node: QuorumNode, Writable: true, WriteThrough: through, Addr: args{"type": "unix", "path": path}, Queues: 1})
		if err == nil {
			err = ss.own(name, path)
		}
		if err != nil {
			return err
		}
	} else {
		err := ss.openDoor(ctx)
		if err == nil {
			err = ss.publish(name, doorSocket)
		}
		if err != nil {
			return err
		}
	}
	ss.note(name, Event{Event: EventServed, Generation: ss.gen.Number})
	ss.live.change(func(l *Live) { l.State = Serving })
	notify("READY=1")
	ss.log.InfoContext(ctx, "replica set is served", "generation", ss.gen.Number, "replicas", ss.voting(), "use", ss.use.String())
	if ss.Resumer != nil {
		go ss.resumeGuests(ctx)
	}
	return nil
}

// Resumer resumes the domains that were paused for an I/O error on a set's disk.
type Resumer interface {
	Resume(ctx context.Context, set string) error
}

func (ss *session) resumeGuests(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := ss.Resumer.Resume(ctx, ss.set.Name); err != nil {
		ss.log.WarnContext(ctx, "paused domains are not resumed", "err", err)
	}
}
