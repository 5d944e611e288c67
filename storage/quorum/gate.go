// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"diskhook/storage/nbd"
)

// gate stands between guests and the export of a set that was not closed
// cleanly, while its replicas are made equal by majority.
//
// What was in flight at the crash may differ, and cut short in the middle of a
// request, so that QEMU, which compares whole requests, would answer with an
// error. And what differs cannot be repaired beside a guest that writes: it
// would lose a write that comes between looking and repairing. So guests' requests
// come through here, chunk by chunk in turn with the repair: a read waits until
// its chunk is equal, a write until nobody repairs its chunk. When all chunks
// are done, new connections are passed on as they are; old ones have nothing to
// wait for any more.
type gate struct {
	ss      *session
	clients map[string]*nbd.Client // of the replicas alone
	// need is how many of them must agree (Decision.outvotes), which may be fewer
	// than the set asks of a read. A write that was under way when the host went is
	// on some of them, and was never answered: either content is right, but one has
	// to be everywhere, or the guest's next read finds no threshold. Where what was
	// answered might lose, nothing is written, and a read of it fails.
	need int

	ended chan struct{} // closed when nothing is made equal any more
	err   error         // then: why not all was

	over     atomic.Bool // all chunks were looked at
	repaired atomic.Int64
	torn     atomic.Int64

	mu   sync.Mutex
	free *sync.Cond
	busy map[int64]int // by chunk: how many requests, or -1: it is repaired
	done map[int64]bool
}

// chunk is what is compared at a time, in bytes.
const chunk = 1 << 20

// mostNoted bounds the events of one equalising.
const mostNoted = 100

// equalise offers the set through a gate, and makes it equal meanwhile. A
// vhost-user guest shares memory with the daemon and cannot pass through us: it
// has to wait until that is done.
func (ss *session) equalise(ctx context.Context, d Decision, through bool) error {
	g := &gate{ss: ss, clients: map[string]*nbd.Client{}, need: d.outvotes(ss.set, len(ss.voters)), ended: make(chan struct{}), busy: map[int64]int{}, done: map[int64]bool{}}
	g.free = sync.NewCond(&g.mu)
	for id, m := range ss.voters {
		client, err := ss.looking(ctx, m)
		if err != nil {
			return err
		}
		g.clients[id] = client
	}
	ss.gate = g
	ss.log.WarnContext(ctx, "it was not closed cleanly: replicas are made equal by majority")
	ss.live.change(func(l *Live) { l.Equalising, l.Total = true, ss.set.Size })
	go func() {
		err := g.run(ctx)
		ss.post(ctx, func() { ss.equalised(ctx, err, through) })
	}()
	if ss.use.kind() == VhostUser {
		return nil
	}
	return ss.ready(ctx, through)
}

// equalised ends the gate.
func (ss *session) equalised(ctx context.Context, err error, through bool) {
	g := ss.gate
	ss.live.change(func(l *Live) {
		l.Equalising, l.Done, l.Repaired, l.Torn = false, l.Total, g.repaired.Load(), g.torn.Load()
	})
	if err != nil {
		ss.log.ErrorContext(ctx, "replicas are not made equal", "err", err)
	} else {
		g.over.Store(true)
		ss.log.InfoContext(ctx, "replicas are equal", "repaired", g.repaired.Load(), "without majority", g.torn.Load())
	}
	g.err = err
	close(g.ended)
	if ss.use.kind() != VhostUser {
		return
	}
	if err := ss.ready(ctx, through); err != nil {
		ss.log.ErrorContext(ctx, "the socket is not shown", "err", err)
	}
}

// equal says that all replicas were found equal or made so.
func (g *gate) equal() bool { return g != nil && g.over.Load() && g.torn.Load() == 0 }

// do runs a guest's request in turn with the repair.
func (g *gate) do(ctx context.Context, r nbd.Request) ([]byte, error) {
	if g.over.Load() || r.Command == nbd.Flush || r.Length == 0 {
		return g.ss.inner.Do(ctx, r)
	}
	first, last := int64(r.Offset)/chunk, (int64(r.Offset)+int64(r.Length)-1)/chunk
	if r.Command == nbd.Read {
		for c := first; c <= last; c++ {
			if err := g.fix(ctx, c); err != nil {
				break // the vote decides, as it always does
			}
		}
	}
	g.enter(first, last)
	defer g.leave(first, last)
	return g.ss.inner.Do(ctx, r)
}

// enter waits until no chunk of the range is repaired.
func (g *gate) enter(first, last int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := first; c <= last; c++ {
		for g.busy[c] < 0 {
			g.free.Wait()
		}
		g.busy[c]++
	}
}

func (g *gate) leave(first, last int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := first; c <= last; c++ {
		if g.busy[c]--; g.busy[c] == 0 {
			delete(g.busy, c)
		}
	}
	g.free.Broadcast()
}

// alone waits until nobody uses a chunk, and takes it; false: it is equal already.
func (g *gate) alone(c int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.done[c] && g.busy[c] != 0 {
		g.free.Wait()
	}
	if g.done[c] {
		return false
	}
	g.busy[c] = -1
	return true
}

func (g *gate) giveBack(c int64, done bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.busy, c)
	if done {
		g.done[c] = true
	}
	g.free.Broadcast()
}

// fix makes one chunk equal, unless it is.
func (g *gate) fix(ctx context.Context, c int64) error {
	if !g.alone(c) {
		return nil
	}
	err := g.repair(ctx, c*chunk, int(min(chunk, g.ss.inner.Size-c*chunk)))
	g.giveBack(c, err == nil)
	return err
}

// repair writes what the majority has to all replicas, where they differ.
func (g *gate) repair(ctx context.Context, at int64, length int) error {
	views, failed := readViews(ctx, g.clients, at, length, g.ss.hangTimeout(g.ss.set))
	for id, err := range failed {
		if ioError(err) {
			go g.ss.post(ctx, func() { g.ss.suspect(ctx, id, ReadError, err.Error()) })
		}
	}
	if len(views) < g.need {
		return fmt.Errorf("%d of the replicas can be read, %d are needed: %w", len(views), g.need, errors.Join(slices.Collect(maps.Values(failed))...))
	}
	differ, _ := vote(views, g.need)
	for _, p := range differ {
		e := Event{Event: EventRepaired, Offset: at + int64(p.at), Length: int64(p.length)}
		if p.data == nil {
			e.Event = EventTorn
			g.torn.Add(e.Length)
		} else if err := g.ss.inner.WriteAt(ctx, e.Offset, p.data); err != nil {
			return err
		} else {
			g.repaired.Add(e.Length)
		}
		if (g.repaired.Load()+g.torn.Load())/sector <= mostNoted {
			g.ss.note(g.ss.set.Name, e)
		}
	}
	return nil
}

// run goes through all chunks, and flushes.
func (g *gate) run(ctx context.Context) error {
	var said time.Time
	for c := int64(0); c*chunk < g.ss.inner.Size; c++ {
		if err := g.fix(ctx, c); err != nil {
			return err
		}
		if time.Since(said) > time.Second/2 {
			said = time.Now()
			g.ss.live.change(func(l *Live) { l.Done, l.Repaired, l.Torn = c*chunk, g.repaired.Load(), g.torn.Load() })
		}
	}
	return g.ss.inner.Flush(ctx)
}
