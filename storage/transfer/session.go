// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
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
// keeps the descriptors open that it uses, and ends when the kernel lets go.
//
// Everything that changes the target is done within writing. A session that
// was left lets nobody in any more. While somebody is still inside, a write may
// reach the target yet, and so long the session keeps the target's locks, own
// duplicates of the caller's among them. A read that hangs keeps none.
type session struct {
	pending sync.WaitGroup
	left    bool     // something was left behind
	closers []func() // in reverse order

	mu     sync.Mutex
	shut   bool // nobody enters writing
	inside int
	locks  []func() // give up what keeps others from the target
}

// errLeft ends what was left behind, when it comes back.
var errLeft = errors.New("it was left behind")

// writing does what changes the target.
func (s *session) writing(work func() error) error {
	s.mu.Lock()
	if s.shut {
		s.mu.Unlock()
		return errLeft
	}
	s.inside++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inside--; s.shut && s.inside == 0 {
			s.unlock()
		}
	}()
	return work()
}

// locked adds a lock of the target; from within writing or before anything is
// left behind.
func (s *session) locked(giveUp func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locks = append(s.locks, giveUp)
}

func (s *session) unlock() {
	for _, giveUp := range s.locks {
		giveUp()
	}
	s.locks = nil
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

// close gives everything up, what is in use by what was left behind later.
func (s *session) close() {
	if !s.left {
		s.pending.Wait()
	}
	s.mu.Lock()
	if s.shut = true; s.inside == 0 {
		s.unlock()
	}
	s.mu.Unlock()
	all := func() {
		s.pending.Wait()
		for i := len(s.closers) - 1; i >= 0; i-- {
			s.closers[i]()
		}
	}
	if s.left {
		go all()
	} else {
		all()
	}
}

// own duplicates descriptors, closed by what then is told how.
func own(files []*os.File, then func(closing func())) ([]*os.File, error) {
	var duplicates []*os.File
	for _, f := range files {
		d, err := duplicate(f)
		if err != nil {
			return nil, err
		}
		then(func() { _ = d.Close() })
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
