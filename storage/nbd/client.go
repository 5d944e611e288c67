// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"diskhook/storage/failure"
)

// Client is a connection to one export. Its methods may be called from any
// goroutine; requests of several go side by side.
type Client struct {
	Export

	conn    net.Conn
	writing sync.Mutex

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]*pending
	err     error
	ended   chan struct{}
}

// pending is a request that waits for its reply.
type pending struct {
	offset  uint64
	into    []byte // what a Read reads into
	missing int    // bytes of into that no chunk has filled
	extent  *Extent
	failed  error // what a chunk said, until the last has come
	done    chan error
}

// Dial connects to the export called name at the unix socket path. What goes
// wrong is a failure.Temporary. The connection outlives ctx.
func Dial(ctx context.Context, path, name string) (*Client, error) {
	conn, err := dial(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return open(ctx, conn, name)
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	return conn, failure.Wrap(failure.Temporary, err)
}

// open asks for the export called name over conn, which it owns from now on.
func open(ctx context.Context, conn net.Conn, name string) (*Client, error) {
	var export Export
	err := bounded(ctx, conn, func() (err error) {
		export, err = greet(conn, name)
		return err
	})
	if err != nil {
		return nil, failure.New(failure.Temporary, "nbd: export %q: %w", name, err)
	}
	return newClient(conn, export), nil
}

// bounded has greeting end when ctx does, and closes conn if it fails.
func bounded(ctx context.Context, conn net.Conn, greeting func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := greeting()
	if !stop() {
		err = failure.New(failure.Temporary, "no answer: %w", context.Cause(ctx))
	}
	if err != nil {
		_ = conn.Close()
	}
	return err
}

func newClient(conn net.Conn, export Export) *Client {
	c := &Client{Export: export, conn: conn, waiting: map[uint64]*pending{}, ended: make(chan struct{})}
	go c.read()
	return c
}

// Close ends the connection; what waits on it fails.
func (c *Client) Close() error { return c.conn.Close() }

// Ended is closed when the connection has ended.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// Do runs one request and returns what a Read read. A refusal of the server is
// an *Error. When ctx ends first, whether it was done is unknown.
func (c *Client) Do(ctx context.Context, r Request) ([]byte, error) {
	p := &pending{}
	if r.Command == Read {
		p.into = make([]byte, r.Length)
	}
	return p.into, c.run(ctx, r, p)
}

// ReadAt reads length bytes at offset.
func (c *Client) ReadAt(ctx context.Context, offset int64, length int) ([]byte, error) {
	return c.Do(ctx, Request{Command: Read, Offset: uint64(offset), Length: uint32(length)})
}

// WriteAt writes data at offset.
func (c *Client) WriteAt(ctx context.Context, offset int64, data []byte) error {
	_, err := c.Do(ctx, Request{Command: Write, Offset: uint64(offset), Data: data})
	return err
}

// Flush brings to the disk what was acknowledged.
func (c *Client) Flush(ctx context.Context) error {
	_, err := c.Do(ctx, Request{Command: Flush})
	return err
}

// run sends r and waits until p is done. Where ctx never ends, nothing is read
// into p any more when it returns.
func (c *Client) run(ctx context.Context, r Request, p *pending) error {
	p.offset, p.missing, p.done = r.Offset, len(p.into), make(chan error, 1)
	id, err := c.expect(p)
	if err != nil {
		return err
	}
	if err := c.send(id, r); err != nil {
		_ = c.conn.Close()
		<-c.ended
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("nbd: no answer: %w", context.Cause(ctx))
	case <-c.ended:
	}
	select {
	case err := <-p.done:
		return err
	default:
		return c.cause()
	}
}

func (c *Client) expect(p *pending) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.last++
	c.waiting[c.last] = p
	return c.last, nil
}

func (c *Client) send(id uint64, r Request) error {
	parts := net.Buffers{requestHead(id, r)}
	if r.Command == Write {
		parts = append(parts, r.Data)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	_, err := parts.WriteTo(c.conn)
	return err
}

func (c *Client) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read hands out replies until the connection ends.
func (c *Client) read() {
	in := bufio.NewReaderSize(c.conn, 64<<10)
	var err error
	for err == nil {
		err = c.reply(in)
	}
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	c.mu.Unlock()
	close(c.ended)
}
