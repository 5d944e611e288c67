// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"hash"
	"sync"
	"time"

	"diskhook/storage/progress"
)

// ledger keeps the account of a copy whose units are done side by side: how
// much of each sort, and up to where everything is done.
type ledger struct {
	mu     sync.Mutex
	result Result
	mark   int64 // everything below is done
	ahead  map[int64]finished
	outer  hash.Hash // over the chunks below mark; nil if no digest is wanted

	told     int64
	total    int64
	progress progress.Func
}

// finished is a unit above the mark.
type finished struct {
	end  int64
	sums []chunkSum
}

func newLedger(mark, total int64, outer hash.Hash, tell progress.Func) *ledger {
	return &ledger{mark: mark, ahead: map[int64]finished{}, outer: outer, told: mark, total: total, progress: tell, result: Result{Resumed: mark}}
}

// add counts bytes that were dealt with.
func (l *ledger) add(copied, zeroed, skipped int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Copied += copied
	l.result.Zeroed += zeroed
	l.result.Skipped += skipped
	l.told += copied + zeroed + skipped
	if l.progress != nil {
		l.progress(l.told, l.total)
	}
}

// finish says that [from, end) is in the target.
func (l *ledger) finish(from, end int64, sums []chunkSum) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead[from] = finished{end, sums}
	for {
		next, ok := l.ahead[l.mark]
		if !ok {
			return
		}
		delete(l.ahead, l.mark)
		l.mark = next.end
		if l.outer != nil {
			for _, sum := range next.sums {
				_, _ = l.outer.Write(sum[:])
			}
		}
	}
}

// at is the mark, with the state of the digest there.
func (l *ledger) at() (mark int64, digest []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.outer != nil {
		digest = saveDigest(l.outer)
	}
	return l.mark, digest
}

// limiter spreads bytes evenly over time; nil is unlimited.
type limiter struct {
	rate int64 // bytes per second
	mu   sync.Mutex
	next time.Time
}

func newLimiter(rate int64) *limiter {
	if rate <= 0 {
		return nil
	}
	return &limiter{rate: rate}
}

// wait returns when n more bytes may go.
func (l *limiter) wait(ctx context.Context, n int64) error {
	if l == nil {
		return ctx.Err()
	}
	l.mu.Lock()
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	pause := l.next.Sub(now)
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	l.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
