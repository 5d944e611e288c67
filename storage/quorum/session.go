// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/nbd"
)

// session is the life of one voting daemon. One goroutine, loop, changes it;
// others hand it work.
type session struct {
	*Service
	set  Set
	use  Use
	log  *slog.Logger
	held *os.File // the set's lock
	live *liveFile
	// restarted: guests of an earlier daemon wait for this one.
	restarted bool

	daemon   *daemon
	gen      Generation
	voters   map[string]*member   // children of the voting node
	suspects map[string]Reason    // since the session began
	evicted  map[string]time.Time // when a replica was, last
	inner    *nbd.Client          // our own connection to the export
	observed []Observed           // before it was opened
	work     chan func()
	released chan struct{}  // somebody says that the claim is gone
	jobs     chan resyncJob // for online
	unclean  bool           // its replicas may differ since an earlier session
	gate     *gate          // makes them equal; nil until then
	door     *door          // where guests connect; nil until it is open
}

// member is a replica that is open in the daemon.
type member struct {
	replica Replica
	remote  *remote     // nil: it is opened by the voting daemon itself
	look    *nbd.Client // reads this replica alone; nil until somebody did
}

// serve opens the set, serves it and closes it.
func (ss *session) serve(ctx context.Context) error {
	ss.voters, ss.suspects, ss.evicted = map[string]*member{}, map[string]Reason{}, map[string]time.Time{}
	ss.work, ss.jobs = make(chan func()), make(chan resyncJob, maxReplicas)
	ss.released = make(chan struct{}, 1)
	ss.Activate(ctx, ss.set)
	d, observed, err := ss.Decide(ctx, ss.set)
	if err != nil {
		return err
	}
	if d.Veto != nil {
		return d.Veto
	}
	// What goes on beside the loop ends with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ss.observed, ss.unclean = observed, d.Unclean
	if err := ss.open(ctx, d); err != nil {
		ss.abandon()
		return err
	}
	err = ss.offer(ctx, d)
	if err == nil {
		err = ss.loop(ctx)
	}
	cancel()
	if errors.Is(err, errDaemonGone) {
		ss.live.change(func(l *Live) { l.State = Starting }) // Serve has the next one
		ss.abandon()
		return err
	}
	ss.live.change(func(l *Live) { l.State = Stopping })
	// Not before a session that another one follows: systemd kills whoever says that
	// and is still there TimeoutStopSec later.
	notify("STOPPING=1")
	return errors.Join(err, ss.close())
}

// post hands work to the loop; it is dropped when the session ends.
func (ss *session) post(ctx context.Context, f func()) {
	select {
	case ss.work <- f:
	case <-ctx.Done():
	}
}

// call is post, and waits for the result.
func (ss *session) call(ctx context.Context, f func() error) error {
	result := make(chan error, 1)
	ss.post(ctx, func() { result <- f() })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// claimEvery is how often the claim is looked at. Whoever releases a set also
// says so; this is for one that died in between.
const claimEvery = 2 * time.Second

// loop serves until ctx ends, the claim is gone or the daemon is.
func (ss *session) loop(ctx context.Context) error {
	claim := time.NewTicker(claimEvery)
	defer claim.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-ss.daemon.qmp.Events():
			if !ok {
				return fmt.Errorf("%s: %w", &ss.set, errDaemonGone)
			}
			ss.event(ctx, e)
		case f := <-ss.work:
			f()
		case <-ss.released:
			if ss.unclaimed(ctx) {
				return nil
			}
		case <-claim.C:
			if ss.unclaimed(ctx) {
				return nil
			}
		}
	}
}

// unclaimed says that nobody uses the set any more, or somebody else would.
func (ss *session) unclaimed(ctx context.Context) bool {
	use, err := ss.Claim(ss.set.Name)
	if !errors.Is(err, failure.NotFound) && (err != nil || use.same(ss.use)) {
		return false
	}
	ss.log.InfoContext(ctx, "its claim is gone")
	return true
}
