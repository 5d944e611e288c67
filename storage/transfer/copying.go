// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// copying is one call of Copy.
type copying struct {
	*Engine
	source  Source
	target  Target
	o       Options
	session session

	images []*os.File // the layers
	seen   []unix.Stat_t
	f      *os.File // the target, through the page cache
	made   bool     // by us

	cursor  cursor
	resumed bool  // cursor is what an earlier copy has left
	keeping bool  // cursor is on disk and goes on being written
	late    bool  // cursor is to be written for the first time when it is due
	shared  int64 // fileMark.Shared

	outer  hash.Hash // the digest of what was read up to cursor.Done; nil if none is computed
	result Result
}

// open opens source and target and finds out whether there is something to
// go on with.
func (c *copying) open(ctx context.Context) error {
	locks, err := own(c.o.Locks, c.session.locked)
	if err != nil {
		return err
	}
	c.o.Locks = locks
	if err := c.openSource(ctx); err != nil {
		return err
	}
	if err := c.resume(ctx); err != nil {
		return err
	}
	err = c.session.do(ctx, c.target.Path, IODefault, func() (err error) {
		c.f, c.made, err = c.Engine.open(&c.target, c.o.User, c.resumed || c.source.Present > 0)
		return err
	})
	if err != nil {
		return err
	}
	c.session.keep(func() { _ = c.f.Close() })
	if c.made && c.source.Present > 0 {
		_ = os.Remove(c.target.Path)
		return failure.New(failure.NotFound, "%s: has to be there with the content of %d layers", c.target.Path, c.source.Present)
	}
	if c.made && c.resumed {
		c.distrust("the target is gone")
		c.target.Zeroed = true
	}
	return nil
}

// openSource gets descriptors of our own, which may be left behind.
func (c *copying) openSource(ctx context.Context) error {
	files := c.source.Files
	if len(files) == 0 {
		checker := imagecheck.Checker{Allowed: resolve, User: c.o.User, MaxVirtualSize: 1 << 62}
		opened, err := checker.Open(ctx, c.source.Layers)
		if err != nil {
			return err
		}
		files = opened.Files
		defer opened.Close()
	}
	var err error
	if c.images, err = own(files, c.session.keep); err != nil {
		return err
	}
	return c.session.do(ctx, c.name(), IODefault, func() error {
		c.seen, err = stats(c.images)
		return err
	})
}

// resolve allows what the caller has accepted.
func resolve(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		err = failure.Wrap(failure.NotFound, err)
	}
	return resolved, err
}

// name is the source in messages.
func (c *copying) name() string { return c.source.Layers[0].Path }

func stats(files []*os.File) ([]unix.Stat_t, error) {
	found := make([]unix.Stat_t, len(files))
	for i, f := range files {
		if err := unix.Fstat(int(f.Fd()), &found[i]); err != nil {
			return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
		}
	}
	return found, nil
}

// resume looks for a cursor.
func (c *copying) resume(ctx context.Context) error {
	if c.o.Cursor == "" {
		return nil
	}
	found, err := readCursor(c.o.Cursor)
	if errors.Is(err, errNoCursor) {
		c.late = c.o.LateCursor
		return nil
	}
	if err == nil {
		err = found.continues(cursorOf(c.source, c.target))
	}
	if err == nil && c.o.Only != "" && c.o.Only != found.Method {
		err = fmt.Errorf("it is of method %q", found.Method)
	}
	if err == nil && !c.target.Block {
		err = c.session.do(ctx, c.target.Path, IODefault, func() error { return found.File.holds(c.target.Path, found.Done) })
		if ctx.Err() != nil {
			return err
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // it is made, see open
		}
	}
	if err != nil {
		c.distrust(err.Error())
		return nil
	}
	c.cursor, c.resumed, c.keeping = found, true, true
	c.source.Present = found.Present
	c.target.Zeroed = c.target.Zeroed && found.Zeroed
	return nil
}

// distrust starts over, in a target where an earlier copy has been.
func (c *copying) distrust(why string) {
	c.say("an earlier copy is of no use, it starts over", "target", c.target.Path, "cursor", c.o.Cursor, "why", why)
	c.resumed, c.keeping, c.late, c.cursor = false, false, false, cursor{}
	c.target.Zeroed, c.source.Present = false, 0
}

// begin makes the cursor durable before the target is touched, so that its
// absence says that nothing was.
func (c *copying) begin(method Method) error {
	c.result.Method = method
	if err := c.beginDigest(method); err != nil {
		return err
	}
	c.say("copy", "source", c.name(), "target", c.target.Path, "method", method, "resumed", c.cursor.Done,
		"present", c.source.Present, "zeroed", c.target.Zeroed)
	c.result.Resumed = c.cursor.Done
	if c.o.Cursor == "" || c.resumed {
		return failpoint.Hit("transfer.begun")
	}
	c.cursor = cursorOf(c.source, c.target)
	c.cursor.Method = method
	err := c.markTarget()
	if err == nil && c.late {
		return failpoint.Hit("transfer.begun")
	}
	c.late = false
	if err == nil {
		err = flush(context.Background(), c.f, c.made) // the name of a new file
	}
	if err == nil {
		err = c.cursor.write(c.o.Cursor)
	}
	if err != nil {
		// A full state directory does not keep a VM from its disk.
		c.warn("the copy cannot be resumed", err)
		_ = RemoveCursor(c.o.Cursor)
	} else {
		c.keeping = true
	}
	return failpoint.Hit("transfer.begun")
}

// beginDigest says whether what is read can be summed up on the way.
func (c *copying) beginDigest(method Method) (err error) {
	if method != Native || c.source.Present > 0 || !c.o.Verify {
		return nil
	}
	if c.cursor.Done == 0 {
		c.outer = sha256.New()
	} else if c.outer, err = loadDigest(c.cursor.Digest); err != nil {
		c.say("the source will be read again to verify the copy", "why", err)
		c.outer = nil
	}
	return nil
}

// mark makes what lies below done durable, then the cursor that says so.
func (c *copying) mark(done int64, digest []byte) error {
	if !c.keeping && !c.late || done <= c.cursor.Done {
		return nil
	}
	return c.session.writing(func() error {
		if err := c.flushData(); err != nil {
			return err
		}
		if err := failpoint.Hit("transfer.cursor-flushed"); err != nil {
			return err
		}
		if c.cursor.File != nil {
			c.cursor.File.Data += dataIn(c.f, span{c.cursor.Done, done})
		}
		c.cursor.Done, c.cursor.Digest = done, digest
		if err := c.cursor.write(c.o.Cursor); err != nil {
			c.warn("the copy can be resumed from an earlier point only", err)
			return nil
		}
		c.keeping, c.late = true, false
		return failpoint.Hit("transfer.cursor")
	})
}

// flushData brings to the disk what a cursor is about; of a target without one
// all that there is, its name and what it shared from the beginning.
func (c *copying) flushData() error {
	if c.late {
		return flush(context.Background(), c.f, c.made)
	}
	if err := unix.Fdatasync(int(c.f.Fd())); err != nil {
		return noSpace(&os.PathError{Op: "flush", Path: c.target.Path, Err: err})
	}
	return nil
}

func (c *copying) every() time.Duration {
	if c.CursorEvery > 0 {
		return c.CursorEvery
	}
	return 1500 * time.Millisecond
}

// end does what comes after the content.
func (c *copying) end(ctx context.Context) error {
	if err := still(c.f, c.target.Path); err != nil {
		return err
	}
	err := c.session.do(ctx, c.target.Path, c.o.IOClass, func() error {
		return c.session.writing(func() error { return c.finish(ctx) })
	})
	if err == nil && c.keeping {
		err = c.session.do(ctx, c.target.Path, c.o.IOClass, func() error { return c.mark(c.source.Size, c.savedDigest()) })
	}
	if err != nil {
		return err
	}
	if err := c.unchanged(ctx); err != nil {
		return err
	}
	if !c.o.Verify {
		return nil
	}
	return c.proof(ctx)
}

// finish zeroes what lies behind the content and flushes it all.
func (c *copying) finish(ctx context.Context) error {
	if err := tail(ctx, c.f, c.source, c.target); err != nil {
		return err
	}
	if err := failpoint.Hit("transfer.zeroed"); err != nil {
		return err
	}
	if err := flush(ctx, c.f, c.made); err != nil {
		return err
	}
	return failpoint.Hit("transfer.flushed")
}

func (c *copying) savedDigest() []byte {
	if c.outer == nil {
		return nil
	}
	return saveDigest(c.outer)
}

// unchanged says whether the layers' files are as they were: what was read
// before and after a write fits no moment of the source.
func (c *copying) unchanged(ctx context.Context) error {
	return c.session.do(ctx, c.name(), IODefault, func() error {
		now, err := stats(c.images)
		if err != nil {
			return err
		}
		for i, st := range now {
			if was := c.seen[i]; st.Size != was.Size || st.Mtim != was.Mtim && st.Mode&unix.S_IFMT == unix.S_IFREG {
				err := failure.New(failure.Conflict, "%s: changed while it was copied", c.source.Layers[i].Path)
				return failure.Hint(err, "stop what writes to it, then start again")
			}
		}
		return nil
	})
}

func (e *Engine) say(text string, args ...any) {
	if e.Log != nil {
		e.Log.Info(text, args...)
	}
}

func (e *Engine) warn(text string, err error) {
	if e.Log != nil {
		e.Log.Warn(text, "err", err)
	}
}
