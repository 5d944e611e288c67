// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/imagelock"
	"diskhook/storage/qcow2map"
)

// content brings the content over by the first method that can.
func (c *copying) content(ctx context.Context) error {
	only := c.o.Only
	if c.resumed {
		only = c.cursor.Method
		if c.cursor.Done == c.source.Size {
			return c.begin(only)
		}
	}
	for _, m := range []struct {
		method Method
		copy   func(context.Context) error
	}{{Reflink, c.reflink}, {Native, c.native}} {
		if only != "" && only != m.method {
			continue
		}
		err := m.copy(ctx)
		var no *cannotError
		if !errors.As(err, &no) {
			return err
		}
		c.say("copy", "method", m.method, "not", no.why)
		switch {
		case c.resumed:
			c.distrust(no.why)
			return c.content(ctx)
		case c.o.Only == m.method:
			return failure.New(failure.Precondition, "%s: method %s: %s", c.target.Path, m.method, no.why)
		}
	}
	if only == Whole || only == "" && c.o.Cursor == "" && c.source.Present == 0 {
		return c.whole(ctx)
	}
	return c.ranges(ctx)
}

// cannotError is why a method is not the one; nothing was done yet.
type cannotError struct{ why string }

func (e *cannotError) Error() string { return e.why }

func cannot(format string, args ...any) error {
	return &cannotError{fmt.Sprintf(format, args...)}
}

// reflink lets the target share the blocks of the source (ioctl_ficlone(2)),
// which takes no time and no space. Space that the target had reserved is
// given up for it.
func (c *copying) reflink(ctx context.Context) error {
	if why := c.unlike(); why != "" {
		return cannot("%s", why)
	}
	return c.session.do(ctx, c.name(), c.o.IOClass, func() error {
		image := c.images[0]
		st, err := image.Stat()
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() || st.Size() > c.source.Size {
			return cannot("the source is no file of that size")
		}
		if err := c.clonable(image); err != nil {
			return err
		}
		if err := c.lockSource(); err != nil {
			return err
		}
		err = c.session.writing(func() error {
			if err := c.begin(Reflink); err != nil {
				return err
			}
			return c.clone(image, st.Size())
		})
		if err != nil {
			return fmt.Errorf("%s: share the blocks of %s: %w", c.target.Path, c.name(), noSpace(err))
		}
		c.result.Skipped = c.source.Size
		if c.o.Progress != nil {
			c.o.Progress(c.source.Size, c.source.Size)
		}
		return nil
	})
}

// unlike says why source and target are nothing for reflink.
func (c *copying) unlike() string {
	switch {
	case len(c.source.Layers) != 1 || c.source.Layers[0].Format != imagecheck.Raw:
		return "the source is not one raw file"
	case c.target.Block:
		return "the target is a device"
	case !c.target.Zeroed:
		return "the target does not read zero beyond the source"
	}
	return ""
}

// clonable tries it with a file without a name: the target is not to be
// touched before its cursor is.
func (c *copying) clonable(image *os.File) error {
	fd, err := unix.Open(filepath.Dir(c.target.Path), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return cannot("no file to try it in: %v", err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlFileClone(fd, int(image.Fd())); err != nil {
		return cannot("the file system cannot share blocks: %v", err)
	}
	return nil
}

// clone replaces the first size bytes of the target. Only whole blocks can be
// shared in the middle of a file; what the source has behind them is copied.
func (c *copying) clone(image *os.File, size int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(c.f.Fd()), &fs); err != nil {
		return err
	}
	rest := size % fs.Bsize
	if size > rest {
		shared := unix.FileCloneRange{Src_fd: int64(image.Fd()), Src_length: uint64(size - rest)}
		if err := unix.IoctlFileCloneRange(int(c.f.Fd()), &shared); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.NewOffsetWriter(c.f, size-rest), io.NewSectionReader(image, size-rest, rest))
	return err
}

// lockSource takes QEMU's image locks, so that none writes what is read.
func (c *copying) lockSource() error {
	for i, f := range c.images {
		err := imagelock.Read(f)
		if errors.Is(err, imagelock.ErrNoLocks) {
			c.say("copy", "source", c.source.Layers[i].Path, "note", "its file system has no image locks")
			continue
		}
		if err != nil {
			return err
		}
		c.session.keep(func() { imagelock.Release(f) })
	}
	return nil
}

// native reads the layers itself.
func (c *copying) native(ctx context.Context) error {
	return c.session.do(ctx, c.name(), c.o.IOClass, func() error {
		var files []*directio.File
		for i, f := range c.images {
			d := directio.New(f)
			c.session.keep(d.Restore)
			if files = append(files, d); !d.Direct() {
				c.note(c.source.Layers[i].Path + ": its storage has no direct I/O, it is read through the page cache")
			}
		}
		// Locked first: QEMU may still be changing the tables.
		if err := c.lockSource(); err != nil {
			return err
		}
		chain, err := safely(func() (*chainMap, error) {
			chain, err := mapChain(c.source, files, c.images)
			if err == nil {
				err = chain.scan(ctx.Err, c.warn)
			}
			return chain, err
		})
		if errors.Is(err, qcow2map.ErrUnsupported) || errors.Is(err, qcow2map.ErrCorrupt) {
			return cannot("%v", err)
		}
		if err != nil {
			return err
		}
		return c.nativeFrom(ctx, chain)
	})
}

// nativeFrom copies what the map says.
func (c *copying) nativeFrom(ctx context.Context, chain *chainMap) error {
	untouched, err := chain.untouched()
	if err == nil {
		err = c.keep(untouched)
	}
	if err != nil {
		return err
	}
	var into *sink
	err = c.session.writing(func() (err error) {
		if into, err = c.sink(); err != nil {
			return err
		}
		return c.begin(Native)
	})
	if err != nil {
		return err
	}
	into.before = c.before
	for i := range chain.from {
		if c.wrap != nil {
			chain.from[i] = c.wrap(chain.from[i])
		}
	}
	l := newLedger(c.cursor.Done, c.source.Size, c.outer, c.o.Progress)
	n := &native{chain: chain, into: into, start: c.cursor.Done, limit: newLimiter(c.o.Rate), ledger: l, sums: c.outer != nil, class: c.o.IOClass}
	err = c.marking(ctx, l, n.run)
	c.result = l.result
	c.result.Method = Native
	return err
}

// sink takes QEMU's image locks on the target and opens it for direct I/O.
func (c *copying) sink() (*sink, error) {
	switch err := imagelock.Write(c.f); {
	case err == nil:
		c.session.locked(func() { imagelock.Release(c.f) })
	case !errors.Is(err, imagelock.ErrNoLocks):
		return nil, err
	}
	into, err := openSink(&c.session, c.f, c.target.Zeroed)
	if err == nil && !into.direct.Direct() {
		c.note(c.target.Path + ": its storage has no direct I/O, it is written through the page cache")
	}
	return into, err
}

// marking runs the copy and writes cursors meanwhile, and one at the end if it
// was stopped. That a flush fails stops it.
func (c *copying) marking(parent context.Context, l *ledger, run func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	next := time.NewTimer(c.every())
	defer next.Stop()
	for {
		select {
		case err := <-done:
			switch failed := context.Cause(ctx); {
			case err == nil:
				return nil
			case parent.Err() == nil && failed != nil:
				return failed
			}
			return errors.Join(err, c.mark(l.at()))
		case <-next.C:
		}
		began := time.Now()
		if err := c.mark(l.at()); err != nil {
			cancel(err)
		}
		// A slow disk is not to spend its time with flushes.
		next.Reset(max(c.every(), 10*time.Since(began)))
	}
}
