// SPDX-License-Identifier: Apache-2.0

package nfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format/heartbeat"
	"github.com/google/uuid"
)

// record is what stands in a lock's file: who has it, and how often that was
// renewed. It is written by the holder only.
type record struct {
	Host  string `json:"host"`
	Boot  string `json:"boot"`
	Nonce string `json:"nonce"` // of this holding
	Beat  uint64 `json:"beat"`
	// Released says that the holder gave it up. Without it the holder died, or
	// its host fell silent and the server took the lock from it.
	Released bool `json:"released"`
}

// recordSize is written at once, padded with blanks.
const recordSize = 512

// Times in beats. A holder that could not renew its record for mostBeats
// (Format.Silence) does nothing more: a server gives a silent host's lock to others after 90 s (Linux,
// nfsv4leasetime), and a host that slept finds out by the clock.
const (
	judgeBeats = 3
	mostBeats  = 10
)

type held struct {
	lock  *lock.Lock
	heart *heartbeat.Heart
	every time.Duration
	taken bool
	mine  record // the heart's
}

// take makes a lock that we have ours. It looks whether the one who had it
// goes on, for as long as that takes, only where that one was another host, and gave nothing up.
func (p *place) take(ctx context.Context, l *lock.Lock) (*held, error) {
	was, err := readRecord(l.File())
	if err != nil {
		return nil, err
	}
	h := &held{lock: l, every: p.host.Beat, mine: record{Host: p.host.HostID, Boot: p.host.BootID, Nonce: uuid.NewString()}}
	h.heart = heartbeat.New(l.File().Name(), p.host.Beat, p.host.Silence, h.beat)
	ended := was.Host == p.host.HostID && was.Boot == p.host.BootID // the kernel gave the lock up
	if was.Nonce != "" && !was.Released && !ended {
		if err := h.silent(ctx, was); err != nil {
			return nil, err
		}
		// A boot of our own that has ended writes no more.
		h.taken = was.Host != p.host.HostID
	}
	err = h.heart.Beat()
	for errors.Is(err, failure.NoSpace) && p.GiveUpSpare() {
		err = h.heart.Beat() // else nothing could be removed where there is no room
	}
	if err != nil {
		return nil, err
	}
	h.heart.Start()
	return h, nil
}

// silent waits for a sign of life of the last holder, which must not come:
// we have the lock.
func (h *held) silent(ctx context.Context, was record) error {
	for range judgeBeats {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", lock.ErrHeld, ctx.Err())
		case <-time.After(h.every):
		}
		now, err := readRecord(h.lock.File())
		if err != nil {
			return err
		}
		if now != was {
			err := failure.New(failure.Precondition, "lock %s: host %s goes on with it, though this host has it: locks exclude nobody here", h.lock.File().Name(), was.Host)
			return failure.Hint(err, "mount it such that locks are the server's, on all hosts; see nfs(5), local_lock")
		}
	}
	return nil
}

// readRecord reads what is there; nothing, or what is no record, is the zero
// value: the file of a lock is made before its record.
func readRecord(f *os.File) (record, error) {
	b := make([]byte, recordSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return record{}, err
	}
	var r record
	if json.Unmarshal(b[:n], &r) != nil {
		return record{}, nil
	}
	return r, nil
}

// beat writes the record with a new count.
func (h *held) beat() error {
	h.mine.Beat++
	return h.write()
}

// write writes the record, durably: past the cache of this host.
func (h *held) write() error {
	b, err := json.Marshal(h.mine)
	if err == nil && len(b) > recordSize {
		err = failure.New(failure.Usage, "lock: host id %q is too long", h.mine.Host)
	}
	if err == nil {
		_, err = h.lock.File().WriteAt([]byte(string(b)+strings.Repeat(" ", recordSize-len(b))), 0)
	}
	if err == nil {
		err = h.lock.File().Sync()
	}
	if err != nil {
		return fmt.Errorf("lock %s: renew: %w", h.lock.File().Name(), failure.Full(err))
	}
	return nil
}

// Check implements format.Lock.
func (h *held) Check() error { return h.heart.Check() }

// TakenOver implements format.Lock.
func (h *held) TakenOver() bool { return h.taken }

// File implements format.Lock.
func (h *held) File() *os.File { return h.lock.File() }

// Release implements format.Lock. A record that cannot be written has the next
// holder take us for one that was not seen to end, which is safe. Storage that
// hangs is left to the kernel, which gives the lock up with the process.
func (h *held) Release() {
	h.heart.Stop(func() {
		h.mine.Released = true
		_ = h.write()
		h.lock.Release()
	})
}

// Discard implements format.Lock. The file stays: another host may have it open,
// and wait for it.
func (h *held) Discard() { h.Release() }
