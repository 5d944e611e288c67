// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// session holds what a copy has open, and lets it be left behind.
//
// A read from dead storage, or a write to a dead disk, hangs in the kernel and
// cannot be interrupted. So everything that may hang is done with do, which
// returns soon after the context has ended all the same. What is left behind
// starts no further write, and it keeps the descriptors open that it uses,
// with own duplicates of the caller's locks among them: while a write may
// still reach the target, its lock is not free.
type session struct {
	pending sync.WaitGroup
	left    bool     // something was left behind
	closers []func() // in reverse order
}

// patience is how long do waits for what was told to stop.
const patience = 500 * time.Millisecond

// do runs work on a thread of its own, which has the I/O class and ends with
// it. After ctx has ended it returns within patience.
func (s *session) do(ctx context.Context, object string, class IOClass, work func() error) error {
	done := make(chan error, 1)
	s.pending.Go(func() {
		runtime.LockOSThread() // and never unlocked
		if err := class.set(); err != nil {
			done <- err
			return
		}
		done <- work()
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
	}
	s.left = true
	err := failure.New(failure.Temporary, "%s: its storage does not answer: %w", object, ctx.Err())
	return failure.Hint(err, "check the storage (`journalctl -k`), then start it again")
}

// keep closes what, in the end.
func (s *session) keep(what func()) { s.closers = append(s.closers, what) }

// close closes everything, now or when what was left behind has come back.
func (s *session) close() {
	all := func() {
		for i := len(s.closers) - 1; i >= 0; i-- {
			s.closers[i]()
		}
	}
	if !s.left {
		s.pending.Wait()
		all()
		return
	}
	go func() {
		s.pending.Wait()
		all()
	}()
}

// own duplicates descriptors for as long as the session lasts.
func (s *session) own(files []*os.File) ([]*os.File, error) {
	var duplicates []*os.File
	for _, f := range files {
		d, err := duplicate(f)
		if err != nil {
			return nil, err
		}
		s.keep(func() { _ = d.Close() })
		duplicates = append(duplicates, d)
	}
	return duplicates, nil
}

// duplicate is another descriptor of the same description.
func duplicate(f *os.File) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	err = conn.Control(func(from uintptr) { fd, failed = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, fmt.Errorf("%s: duplicate: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// IOClass is the I/O scheduling class of a copy, ioprio_set(2).
type IOClass string

// The classes. A disk's scheduler has to honour them, as bfq does.
const (
	IODefault    IOClass = ""            // as the process has it
	IOBestEffort IOClass = "best-effort" // the lowest of the normal priorities
	IOIdle       IOClass = "idle"        // only when nobody else wants the disk
)

// ioprios are the values of ioprio_set(2): the class in the bits from 13 on,
// the priority below, of which 7 is the lowest.
var ioprios = map[IOClass]uintptr{IODefault: 0, IOBestEffort: 2<<13 | 7, IOIdle: 3 << 13}

func (c IOClass) check() error {
	if _, ok := ioprios[c]; !ok {
		return failure.New(failure.Usage, "I/O class %q: it is one of %q and %q", c, IOBestEffort, IOIdle)
	}
	return nil
}

// set gives it to this thread, and so to the programs that the thread starts.
func (c IOClass) set() error {
	if c == IODefault {
		return nil
	}
	const whoProcess, thisThread = 1, 0
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, thisThread, ioprios[c]); errno != 0 {
		return fmt.Errorf("I/O class %s: %w", c, errno)
	}
	return nil
}
