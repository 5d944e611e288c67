// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"

	"diskhook/storage/thin/layout"
)

// journal is a guest on a volume of its own that writes record after record, each
// flushed before the next. How many were acknowledged it says outside the volume,
// on the board, so that it is known after a power cut.
type journal struct {
	volume string // that is made for it, empty
	places int64  // at which records lie; more records than that overwrite the first
}

const recordSize = 256 << 10

// size is the volume's, in bytes. Its end is never written to.
func (j journal) size() int64 { return (j.places + 16) * recordSize }

// notice is where the count of acknowledged records is pinned.
func (j journal) notice() string { return "records of " + j.volume }

// place is where a record lies, in bytes. Neighbours in time are none on the disk.
func (j journal) place(record int64) int64 { return record * 5 % j.places * recordSize }

func (j journal) record(n int64) []byte {
	line := fmt.Sprintf("%s: record %012d\n", j.volume, n)
	return bytes.Repeat([]byte(line), recordSize/len(line)+1)[:recordSize]
}

// writing is a journal being written, until the power goes.
type writing struct {
	acknowledged atomic.Int64 // records
	failed       chan error
}

// attachJournal makes the volume of a journal and attaches it.
func (m labMachine) attachJournal(j journal) {
	m.Helper()
	m.thin("create", j.volume, strconv.FormatInt(j.size(), 10))
	m.thin("attach", j.volume)
}

// writeJournal begins to write a journal whose volume is attached.
func (m labMachine) writeJournal(j journal) *writing {
	m.Helper()
	f, err := os.OpenFile(device(j.volume), os.O_RDWR, 0)
	m.must(err)
	w := &writing{failed: make(chan error, 1)}
	go func() { w.failed <- m.records(j, f, w) }()
	m.Cleanup(func() {
		// A write that waits for ever would keep this program from its end.
		if m.Failed() {
			_ = exec.CommandContext(context.WithoutCancel(m.Context()), "dmsetup", "wipe_table", "--noflush", device(j.volume)).Run()
		}
	})
	return w
}

func (m labMachine) records(j journal, f *os.File, w *writing) error {
	defer f.Close()
	board, err := layout.Open("/dev/vdc", true)
	if err != nil {
		return err
	}
	defer board.Close()
	at := m.lab.place(j.notice())
	for n := int64(0); ; n++ {
		if _, err := f.WriteAt(j.record(n), j.place(n)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		w.acknowledged.Store(n + 1)
		if err := pin(board, at, strconv.FormatInt(n+1, 10)); err != nil {
			return err
		}
	}
}

// more waits until so many more records were acknowledged than now.
func (m labMachine) more(w *writing, records int64) {
	m.Helper()
	from := w.acknowledged.Load()
	m.within(fmt.Sprintf("%d more records after %d", records, from), func() bool {
		select {
		case err := <-w.failed:
			m.Fatalf("the writer failed after %d records: %v", w.acknowledged.Load(), err)
		default:
		}
		return w.acknowledged.Load() >= from+records
	})
}

// acknowledged wants every record on the volume that was acknowledged, by what the
// board says, unless a later one took its place, and zeros where none was written.
func (m labMachine) acknowledged(j journal) {
	m.Helper()
	count, err := strconv.ParseInt(m.await(j.notice()), 10, 64)
	m.must(err)
	if count == 0 {
		m.Fatalf("%s: no record was acknowledged", j.volume)
	}
	last := map[int64]int64{} // record, by place
	for n := range count {
		last[j.place(n)] = n
	}
	f, err := os.Open(device(j.volume))
	m.must(err)
	defer f.Close()
	b := make([]byte, recordSize)
	for at := int64(0); at < j.size(); at += recordSize {
		_, err := f.ReadAt(b, at)
		m.must(err)
		want, known := make([]byte, recordSize), at == j.place(count)
		if n, written := last[at]; written {
			want = j.record(n)
		}
		if !known && !bytes.Equal(b, want) { // nobody knows of the one that was on its way
			m.Fatalf("%s: %d records were acknowledged; at %d is %q…, want %q…", j.volume, count, at, b[:40], want[:40])
		}
	}
	m.Logf("%s: all %d records that were acknowledged are there", j.volume, count)
}
