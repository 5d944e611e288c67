// SPDX-License-Identifier: Apache-2.0

package nbdproxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
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

type pending struct {
	into []byte // what a Read reads into; it is the request's own
	done chan error
}

// Dial connects to the export called name at the unix socket path.
func Dial(ctx context.Context, path, name string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, failure.Wrap(failure.Temporary, fmt.Errorf("nbd: %w", err))
	}
	return Open(ctx, conn, name)
}

// Open asks for the export called name over conn, which it owns from now on.
func Open(ctx context.Context, conn net.Conn, name string) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	export, err := greet(conn, name)
	if !stop() || err != nil {
		_ = conn.Close()
		return nil, failure.New(failure.Temporary, "nbd: export %q: %w", name, errors.Join(context.Cause(ctx), err))
	}
	c := &Client{Export: export, conn: conn, waiting: map[uint64]*pending{}, ended: make(chan struct{})}
	go c.read()
	return c, nil
}

func greet(conn net.Conn, name string) (Export, error) {
	var hello [18]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return Export{}, err
	}
	if binary.BigEndian.Uint64(hello[:]) != magicInit || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return Export{}, errors.New("not an NBD server")
	}
	offered := binary.BigEndian.Uint16(hello[16:])
	if offered&fixedNewstyle == 0 {
		return Export{}, errors.New("the server has no fixed newstyle handshake")
	}
	flags := binary.BigEndian.AppendUint32(nil, uint32(offered&(fixedNewstyle|noZeroes)))
	if _, err := conn.Write(flags); err != nil {
		return Export{}, err
	}
	if err := writeOption(conn, optGo, goData(name)); err != nil {
		return Export{}, err
	}
	var export Export
	for {
		r, err := readReply(conn)
		switch {
		case err != nil:
			return Export{}, err
		case r.code&replyIsError != 0:
			return Export{}, fmt.Errorf("the server refuses it: %s", failure.OneLine(string(r.data)))
		case r.code == replyAck:
			return export, nil
		case r.code == replyInfo && len(r.data) == 12 && binary.BigEndian.Uint16(r.data) == infoExport:
			export = Export{Size: int64(binary.BigEndian.Uint64(r.data[2:])), Flags: binary.BigEndian.Uint16(r.data[10:])}
		}
	}
}

// Close ends the connection; what waits on it fails.
func (c *Client) Close() error { return c.conn.Close() }

// Ended is closed when the connection has ended.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// Do runs one request and returns what a Read read. A refusal of the server is
// a syscall.Errno. When ctx ends first, whether it was done is unknown.
func (c *Client) Do(ctx context.Context, r Request) ([]byte, error) {
	p := &pending{done: make(chan error, 1)}
	if r.Command == Read {
		p.into = make([]byte, r.Length)
	}
	id, err := c.expect(p)
	if err != nil {
		return nil, err
	}
	if err := c.send(id, r); err != nil {
		return nil, err
	}
	select {
	case err := <-p.done:
		return p.into, err
	case <-ctx.Done():
		return nil, fmt.Errorf("nbd: no answer: %w", context.Cause(ctx))
	case <-c.ended:
	}
	select {
	case err := <-p.done:
		return p.into, err
	default:
		return nil, c.cause()
	}
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
	if r.Command == Write {
		r.Length = uint32(len(r.Data))
	}
	head := make([]byte, 0, 28)
	head = binary.BigEndian.AppendUint32(head, magicRequest)
	head = binary.BigEndian.AppendUint16(head, r.Flags)
	head = binary.BigEndian.AppendUint16(head, uint16(r.Command))
	head = binary.BigEndian.AppendUint64(head, id)
	head = binary.BigEndian.AppendUint64(head, r.Offset)
	head = binary.BigEndian.AppendUint32(head, r.Length)
	c.writing.Lock()
	defer c.writing.Unlock()
	parts := net.Buffers{head}
	if r.Command == Write {
		parts = append(parts, r.Data)
	}
	if _, err := parts.WriteTo(c.conn); err != nil {
		_ = c.conn.Close()
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

func (c *Client) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read hands out answers until the connection ends.
func (c *Client) read() {
	in := bufio.NewReaderSize(c.conn, 64<<10)
	var err error
	for err == nil {
		err = c.answer(in)
	}
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	c.mu.Unlock()
	close(c.ended)
}

func (c *Client) answer(in io.Reader) error {
	var head [16]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head[:]) != magicResponse {
		return errors.New("not an NBD reply")
	}
	code, id := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:])
	c.mu.Lock()
	p := c.waiting[id]
	delete(c.waiting, id)
	c.mu.Unlock()
	if p == nil {
		return errors.New("an NBD reply that nobody asked for")
	}
	if code != 0 {
		p.done <- syscall.Errno(code)
		return nil
	}
	_, err := io.ReadFull(in, p.into)
	if err == nil {
		p.done <- nil
	}
	return err
}
