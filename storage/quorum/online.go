// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/nbd"
)

// resyncJob asks for a replica to be brought up to date while guests write.
type resyncJob struct {
	id   string
	done chan error // of one place; nil: nobody asked, and it is tried again
}

// stale are the replicas that are brought up to date without being asked: those
// that only missed something. One with errors of its own waits for somebody to
// say `resync`.
func (ss *session) stale(d Decision) []string {
	var ids []string
	for _, l := range d.Left {
		i := slices.IndexFunc(ss.observed, func(o Observed) bool { return o.ID == l.ID && o.Mark != nil })
		if l.Stale && i >= 0 && slices.Contains([]Reason{"", Gone, Hung, Unsynced}, ss.observed[i].Mark.Suspect) {
			ids = append(ids, l.ID)
		}
	}
	return ids
}

// online resyncs one replica after the other, those in first and then what is
// asked for, once the others are equal. One of those in first that fails is tried
// again.
func (ss *session) online(ctx context.Context, first []string) {
	for _, id := range first {
		ss.jobs <- resyncJob{id, nil}
	}
	if g := ss.gate; g != nil {
		select {
		case <-ctx.Done():
			return
		case <-g.ended:
		}
		if g.err != nil {
			ss.refuse(ctx, g.err)
			return
		}
	}
	failed := newRetries(ss.hangTimeout(ss.set))
	for {
		again, stop := failed.due(time.Now())
		select {
		case <-ctx.Done():
			stop()
			return
		case job := <-ss.jobs:
			ss.bringUp(ctx, job, failed)
		case id := <-again:
			ss.bringUp(ctx, resyncJob{id, nil}, failed)
		}
		stop()
	}
}

// refuse answers all jobs where the voters could not be made equal: what a replica
// would get is not decided everywhere.
func (ss *session) refuse(ctx context.Context, why error) {
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-ss.jobs:
			err := failure.New(failure.Precondition, "%s: those that vote could not be made equal: %w", &ss.set, why)
			err = failure.Hint(err, "shut the guest down, then run `diskhook quorum resync %s`", ss.set.Name)
			ss.live.replica(job.id, func(l *LiveReplica) { l.Why = failure.OneLine("resync: " + err.Error()) })
			if job.done != nil {
				job.done <- err
			}
		}
	}
}

// bringUp does one job, and sees to it that it is tried again where it has to be.
// Whoever asked for it is told, and asks again or does not.
func (ss *session) bringUp(ctx context.Context, job resyncJob, failed *retries) {
	err := ss.resync(ctx, job.id)
	switch {
	case err == nil:
		failed.forget(job.id)
	case ctx.Err() == nil:
		ss.log.ErrorContext(ctx, "replica is not resynced", "replica", job.id, "err", err)
		ss.note(ss.set.Name, Event{Event: EventNotSynced, Replica: job.id, Text: ss.set.reason(job.id, err)})
		if job.done == nil || failed.waits(job.id) {
			at := failed.failed(job.id, time.Now())
			ss.live.replica(job.id, func(l *LiveReplica) { l.Again = at.UTC() })
		}
	}
	if job.done != nil {
		job.done <- err
	}
}

// resync brings one replica up to date and gives it its vote back.
//
// The disk is mirrored to the replica (blockdev-mirror, each write of a guest to
// both), and at the end takes a place in the voting node. The place has to be
// there, as a mirror can only replace a child: a node that fails each request.
// The mark says until the end that the replica must not vote.
func (ss *session) resync(ctx context.Context, id string) error {
	r, ok := ss.set.Replica(id)
	if !ok {
		return noReplica(ss.set, id)
	}
	var was LiveReplica
	voting := false // an earlier job was for it, too
	err := ss.call(ctx, func() error {
		if voting = ss.voters[id] != nil; voting {
			return nil
		}
		return ss.MarkSuspect(ctx, ss.set, id, Unsynced)
	})
	if err != nil || voting {
		return err
	}
	ss.live.replica(id, func(l *LiveReplica) {
		was = *l
		l.State, l.Why, l.Again, l.Done, l.Total = InResync, "", time.Time{}, 0, ss.set.Size
	})
	ss.log.InfoContext(ctx, "replica is resynced", "replica", id)
	if err := ss.mirrored(ctx, r); err != nil {
		ss.live.replica(id, func(l *LiveReplica) { l.State, l.Why = was.State, failure.OneLine("resync: "+err.Error()) })
		return fmt.Errorf("%s: %w", r, err)
	}
	ss.log.InfoContext(ctx, "replica votes again", "replica", id)
	return nil
}

// mirrored is resync with the image open.
func (ss *session) mirrored(ctx context.Context, r Replica) (err error) {
	m, err := ss.bring(ctx, r)
	if err != nil {
		return err
	}
	place := "place-" + r.ID
	undo := []func(){func() {
		_ = ss.daemon.remove(ctx, r.ID)
		ss.endRemote(m)
	}}
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			undo[i]()
		}
	}()
	if err := ss.takesWrites(ctx, r); err != nil {
		return err
	}
	if err := ss.daemon.doFor(ctx, monitorTimeout, "blockdev-add", failing(place, ss.set.Size), nil); err != nil {
		return err
	}
	undo = append(undo, func() { _ = ss.daemon.remove(ctx, place) })
	if err := ss.call(ctx, func() error { return ss.daemon.attach(ctx, place) }); err != nil {
		return err
	}
	undo[len(undo)-1] = func() {
		_ = ss.call(ctx, func() error { return ss.daemon.detach(ctx, ss.hangTimeout(ss.set)+monitorTimeout, place) })
	}
	job := "resync-" + r.ID
	if err := ss.daemon.do(ctx, "blockdev-mirror", args{
		"job-id": job, "device": QuorumNode, "target": r.ID, "sync": "full", "replaces": place,
		"copy-mode": "write-blocking", "on-source-error": "report", "on-target-error": "report", "auto-dismiss": false,
	}, nil); err != nil {
		return err
	}
	undo = append(undo, func() { ss.cancelJob(ctx, job) })
	if err := ss.follow(ctx, job, r.ID); err != nil {
		return err
	}
	if err := ss.outlastReports(ctx, r.ID); err != nil {
		return err
	}
	return ss.call(ctx, func() error { return ss.rejoin(ctx, m, job, place) })
}

// reportsLast is for how long QEMU may keep a report back, a second, and some time
// to hand it on.
const reportsLast = 2 * time.Second

// outlastReports waits until nothing can be reported any more of a replica as it
// was before it was evicted, which would be held against it as it is now.
func (ss *session) outlastReports(ctx context.Context, id string) error {
	var rest time.Duration
	err := ss.call(ctx, func() error {
		rest = reportsLast - time.Since(ss.evicted[id])
		return nil
	})
	if err != nil || rest <= 0 {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rest):
		return nil
	}
}

// takesWrites writes what it reads at the beginning of a replica. QEMU (7.2) may
// crash when a guest's write fails on the target of a mirror, which would take the
// set away from the guest; so one that takes no writes does not become a target.
func (ss *session) takesWrites(ctx context.Context, r Replica) error {
	ctx, cancel := context.WithTimeout(ctx, ss.hangTimeout(ss.set)+monitorTimeout)
	defer cancel()
	id := "try-" + r.ID
	if err := ss.daemon.export(ctx, export{ID: id, Type: NBDExport, Node: r.ID, Writable: true, Name: id}); err != nil {
		return err
	}
	defer ss.daemon.unexport(context.WithoutCancel(ctx), id)
	client, err := nbd.Dial(ctx, ss.private(ss.set.Name, daemonSocket), id)
	if err != nil {
		return err
	}
	defer client.Close()
	b, err := client.ReadAt(ctx, 0, sector)
	if ioError(err) {
		return nil // a bad block, which the mirror writes anew
	}
	if err == nil {
		err = client.WriteAt(ctx, 0, b)
	}
	if err == nil {
		err = client.Flush(ctx)
	}
	return err
}

// failing is a node that fails each request at once.
func failing(name string, size int64) any {
	return args{
		"driver": "blkdebug", "node-name": name, "image": args{"driver": "null-co", "size": size},
		"inject-error": []args{{"event": "none", "errno": 5, "immediately": true}},
	}
}

// jobInfo is a JobInfo.
type jobInfo struct {
	ID     string
	Status string
	Done   int64  `json:"current-progress"`
	Total  int64  `json:"total-progress"`
	Error  string `json:"error"`
}

func (ss *session) job(ctx context.Context, id string) (jobInfo, error) {
	var jobs []jobInfo
	if err := ss.daemon.do(ctx, "query-jobs", nil, &jobs); err != nil {
		return jobInfo{}, err
	}
	i := slices.IndexFunc(jobs, func(j jobInfo) bool { return j.ID == id })
	if i < 0 {
		return jobInfo{}, failure.New(failure.NotFound, "job %s is gone", id)
	}
	return jobs[i], nil
}

// follow waits until the mirror has caught up.
func (ss *session) follow(ctx context.Context, id, replica string) error {
	for {
		j, err := ss.job(ctx, id)
		if err != nil {
			return err
		}
		ss.live.replica(replica, func(l *LiveReplica) { l.Done, l.Total = j.Done, j.Total })
		switch j.Status {
		case "ready":
			return nil
		case "aborting", "concluded":
			return errors.New(failure.OneLine("the mirror ended: " + j.Error))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// rejoin ends the mirror, so that the replica is in the voting node, and raises
// the generation with it. Until then its mark keeps it from voting elsewhere.
func (ss *session) rejoin(ctx context.Context, m *member, job, place string) error {
	id := m.replica.ID
	if err := ss.daemon.do(ctx, "job-complete", args{"id": job}, nil); err != nil {
		return err
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		j, err := ss.job(ctx, job)
		if err != nil {
			return err
		}
		if j.Status == "concluded" {
			_ = ss.daemon.do(ctx, "job-dismiss", args{"id": job}, nil)
			if j.Error != "" {
				return errors.New(failure.OneLine("the mirror ended: " + j.Error))
			}
			break
		}
		if time.Since(began) > ss.hangTimeout(ss.set)+monitorTimeout {
			return failure.New(failure.Temporary, "the mirror does not end")
		}
	}
	if err := ss.daemon.remove(ctx, place); err != nil {
		ss.log.WarnContext(ctx, "placeholder stays", "err", err)
	}
	ss.voters[id] = m
	delete(ss.suspects, id)
	g, err := ss.Raise(ctx, ss.set, Origin{Number: ss.gen.Number, Raise: ss.gen.Raise}, ss.gen.Number+1, ss.voting())
	if err != nil {
		ss.log.ErrorContext(ctx, "the generation does not rise", "err", err)
		ss.suspect(ctx, id, Unsynced, err.Error())
		return nil
	}
	ss.gen = g
	ss.live.change(func(l *Live) { l.Generation = g.Number })
	for _, other := range ss.voting() {
		if !slices.Contains(g.With, other) {
			ss.suspect(ctx, other, WriteError, "it takes no mark")
		}
	}
	if ss.voters[id] != nil {
		ss.note(ss.set.Name, Event{Event: EventResynced, Replica: id, Generation: g.Number})
		ss.live.replica(id, func(l *LiveReplica) { l.State, l.Why = Voting, "" })
	}
	return errors.Join(ss.noteOpen())
}

// cancelJob ends a mirror that does not come to its end.
func (ss *session) cancelJob(ctx context.Context, id string) {
	_ = ss.daemon.do(ctx, "block-job-cancel", args{"device": id, "force": true}, nil)
	for range 100 {
		j, err := ss.job(ctx, id)
		if err != nil {
			return
		}
		if j.Status == "concluded" {
			_ = ss.daemon.do(ctx, "job-dismiss", args{"id": id}, nil)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
