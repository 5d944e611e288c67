// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/failpoint"
)

// endGrace is how long a daemon may take to write out what it holds.
const endGrace = 20 * time.Second

// close takes the socket away, flushes, ends the daemons and says of the marks
// that they are clean. They stay unclean without a flush that enough replicas
// confirmed and a daemon that went as it should, and where a suspect cannot be
// counted out of them.
func (ss *session) close() error {
	// SIGTERM has ended the context; this has to be done all the same.
	ctx, cancel := context.WithTimeout(context.Background(), ss.hangTimeout(ss.set)+endGrace)
	defer cancel()
	ss.hide(ss.set.Name)
	if ss.use.kind() == VhostUser {
		_ = ss.daemon.do(ctx, "block-export-del", args{"id": "vhost", "mode": "hard"}, nil)
	}
	ss.door.shut()
	var flushed error
	if ss.inner != nil { // else no guest could write either
		flushed = ss.inner.Flush(ctx)
		ss.settle(ctx)
		_ = ss.inner.Close()
	}
	for _, m := range ss.voters {
		ss.endMember(ctx, m)
	}
	gone := ss.daemon.end(endGrace)
	for _, m := range ss.voters {
		if m.remote == nil {
			continue
		}
		if err := m.remote.end(endGrace); err != nil && gone == nil {
			gone = err
		}
	}
	if flushed != nil || gone != nil || ss.unclean && !ss.gate.equal() {
		return ended(ss.set, flushed, gone)
	}
	if err := failpoint.Hit("quorum.flushed"); err != nil {
		return err
	}
	if err := ss.countOut(ctx); err != nil {
		ss.log.Error("suspects have the newest generation, so that it is not clean", "suspects", ss.counted(), "err", err)
	} else if err := ss.MarkClean(ctx, ss.set, ss.gen); err != nil {
		ss.log.Warn("not all marks are clean", "err", err)
	}
	ss.note(ss.set.Name, Event{Event: EventStopped, Generation: ss.gen.Number})
	_ = os.Remove(filepath.Join(runDir(ss.Layout, ss.set.Name), "daemon.json"))
	ss.log.Info("replica set is closed", "generation", ss.gen.Number)
	return nil
}

// settle takes in the events that came before the flush ended: a replica whose
// flush failed must not be called clean.
func (ss *session) settle(ctx context.Context) {
	for {
		select {
		case e, ok := <-ss.daemon.qmp.Events():
			if !ok {
				return
			}
			ss.event(ctx, e)
		case f := <-ss.work:
			f()
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

// abandon ends what is left of a session that failed. The marks stay unclean.
func (ss *session) abandon() {
	ss.hide(ss.set.Name)
	ss.door.shut()
	if ss.inner != nil {
		_ = ss.inner.Close()
	}
	if ss.daemon != nil {
		_ = ss.daemon.end(endGrace)
	}
	for _, m := range ss.voters {
		if m.look != nil {
			_ = m.look.Close()
		}
		if m.remote != nil {
			_ = m.remote.end(time.Second)
		}
	}
}
