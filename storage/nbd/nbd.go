// SPDX-License-Identifier: Apache-2.0

// Package nbd is a client of NBD servers, for those who read and write images
// through qemu-storage-daemon and need to know where they are zero.
//
// It speaks fixed newstyle with structured replies and the metadata context
// base:allocation (doc/proto.md of the NBD project), one request at a time.
// There is no TLS. When the context of Dial ends the connection is cut, so
// that a server that hangs does not hang the caller: every call then fails.
//
// Servers are not trusted: sizes of replies are held against what was asked
// for. An error that the server reports is a *Error with its errno; after any
// other error the connection is of no use.
package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"diskhook/storage/failure"
)

// MaxRequest is the most that one request may read or write, in bytes. QEMU's
// servers take 32 MiB.
const MaxRequest = 32 << 20

// Conn is a connection to one export. Its methods may be called from any
// goroutine; they wait for each other.
type Conn struct {
	// Size of the export in bytes.
	Size int64
	// ReadOnly says that the server takes no writes.
	ReadOnly bool

	conn   net.Conn
	stop   func() bool
	flags  uint16
	status bool // base:allocation is there

	mu     sync.Mutex
	handle uint64
	broken error
}

// Error is what a server said about one request.
type Error struct {
	Errno syscall.Errno
	Text  string
}

// Error is one line.
func (e *Error) Error() string {
	if e.Text != "" {
		return failure.OneLine(e.Text)
	}
	return e.Errno.Error()
}

func (e *Error) Unwrap() error { return e.Errno }

// Dial connects to an export ("" is the server's default). network and address
// are those of net.Dial. The connection lives as long as ctx. A server that is
// not there is a failure.Temporary, an export that is not a failure.NotFound.
func Dial(ctx context.Context, network, address, export string) (*Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, failure.Wrap(failure.Temporary, err)
	}
	c := &Conn{conn: conn, stop: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	if err := c.negotiate(export); err != nil {
		c.cut()
		if ctx.Err() != nil {
			err = failure.New(failure.Temporary, "no answer: %w", context.Cause(ctx))
		}
		return nil, fmt.Errorf("nbd %s: %w", address, err)
	}
	return c, nil
}

func (c *Conn) cut() {
	c.stop()
	_ = c.conn.Close()
}

// Close says goodbye and closes the connection. What was written is flushed
// only if Flush said so.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil {
		_ = c.send(cmdDisconnect, 0, 0, 0, nil)
	}
	c.broken = net.ErrClosed
	c.cut()
}

// ReadAt fills p from off.
func (c *Conn) ReadAt(p []byte, off int64) (int, error) {
	if err := c.within(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n := min(len(p)-done, MaxRequest)
		if err := c.request(cmdRead, 0, off+int64(done), n, nil, p[done:done+n], nil); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// WriteAt writes p at off.
func (c *Conn) WriteAt(p []byte, off int64) (int, error) {
	if err := c.within(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n := min(len(p)-done, MaxRequest)
		if err := c.request(cmdWrite, 0, off+int64(done), n, p[done:done+n], nil, nil); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// maxZeroes is the most that one request zeroes.
const maxZeroes = 1 << 30

// WriteZeroes makes a range read as zeros. The image may punch a hole there.
func (c *Conn) WriteZeroes(off, n int64) error {
	if err := c.within(off, n); err != nil {
		return err
	}
	for n > 0 {
		piece := min(n, maxZeroes)
		if err := c.zero(off, piece); err != nil {
			return err
		}
		off, n = off+piece, n-piece
	}
	return nil
}

func (c *Conn) zero(off, n int64) error {
	if c.flags&flagWriteZeroes != 0 {
		return c.request(cmdWriteZeroes, 0, off, int(n), nil, nil, nil)
	}
	zeros := make([]byte, min(n, 1<<20))
	for done := int64(0); done < n; {
		piece := min(n-done, int64(len(zeros)))
		if _, err := c.WriteAt(zeros[:piece], off+done); err != nil {
			return err
		}
		done += piece
	}
	return nil
}

// Flush returns when everything that was written through this connection is on
// the disk. A server that cannot flush is an error.
func (c *Conn) Flush() error {
	if c.flags&flagFlush == 0 {
		return failure.New(failure.Precondition, "the server cannot flush")
	}
	return c.request(cmdFlush, 0, 0, 0, nil, nil, nil)
}

// Extent is a piece that is, or is not, known to read as zeros.
type Extent struct {
	Len  int64
	Zero bool
}

// Next describes the extent that begins at off: at most n bytes of it, and as
// much as the server says in one go. A server that cannot tell says data.
func (c *Conn) Next(off, n int64) (Extent, error) {
	if err := c.within(off, n); err != nil {
		return Extent{}, err
	}
	x := Extent{Len: n}
	if !c.status || n == 0 {
		return x, nil
	}
	ask := min(n, maxZeroes)
	err := c.request(cmdBlockStatus, reqOne, off, int(ask), nil, nil, func(descriptor []byte) {
		length := int64(binary.BigEndian.Uint32(descriptor))
		if length > 0 {
			x.Len = min(length, n)
			x.Zero = binary.BigEndian.Uint32(descriptor[4:])&stateZero != 0
		}
	})
	return x, err
}

func (c *Conn) within(off, n int64) error {
	if off < 0 || n < 0 || off > c.Size-n {
		return failure.New(failure.Usage, "bytes %d to %d of an export of %d", off, off+n, c.Size)
	}
	return nil
}

var errProtocol = errors.New("the server does not keep to the protocol")
