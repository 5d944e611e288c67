// SPDX-License-Identifier: Apache-2.0

// Package qmp speaks the QEMU Machine Protocol to one QEMU or
// qemu-storage-daemon: commands with a context, events in order.
//
// The format is docs/interop/qmp-spec.txt of QEMU: one JSON object a line; a
// greeting, then qmp_capabilities, then replies (return or error, with the id
// of their command) and events in any mixture.
//
// Why not digitalocean/go-qemu: its Run takes no context, so that a daemon
// whose main loop waits for dead storage would hang its caller for ever; a reply
// longer than 64 KiB ends its reader (query-qmp-schema has some 200); and an
// event that nobody takes stops all replies. That is all of what is needed here.
//
// A connection fails as a whole: when the peer goes, says what is no QMP, sends
// more than the bounds below or events that nobody takes, every waiting and
// later Execute returns why, and Events is closed. A command whose context ends
// fails alone; its late reply is dropped. What it did to QEMU is unknown then.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"diskhook/storage/failure"
)

const (
	// mostLine bounds one object, in bytes.
	mostLine = 16 << 20
	// mostEvents bounds the events that nobody has taken yet. QEMU itself limits
	// those that a guest can provoke to one a second for each node.
	mostEvents = 4096
	// writeTimeout bounds the handing over of one command: a QEMU that hangs
	// reads nothing.
	writeTimeout = 10 * time.Second
)

// ErrClosed says that the connection has ended. It is a failure.Temporary: who
// starts the daemon again may ask again.
var ErrClosed = failure.Wrap(failure.Temporary, errors.New("the monitor's connection has ended"))

// Error is what QEMU answered in the place of a result.
type Error struct {
	Command string // what was executed
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound"…
	Desc    string // for humans
}

// Error names the command.
func (e *Error) Error() string { return e.Command + ": " + failure.OneLine(e.Desc) }

// Event is something that QEMU tells unasked. Data is an object of the event's
// own kind, or empty.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
	Time Timestamp       `json:"timestamp"`
}

// Timestamp is QEMU's clock; -1 seconds where it has none.
type Timestamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// Time is the timestamp as a time.
func (t Timestamp) Time() time.Time { return time.Unix(t.Seconds, t.Microseconds*1000).UTC() }

// Version is QEMU's.
type Version struct{ Major, Minor, Micro int }

// String is the usual form, "7.2.22".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Conn is one monitor connection. Its methods may be called from any goroutine.
type Conn struct {
	conn    net.Conn
	version Version
	events  chan Event
	ended   chan struct{} // closed when the reader has gone

	writing sync.Mutex // one command at a time on the wire

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan<- message
	err     error
}

// Dial opens the monitor at the unix socket path.
func Dial(ctx context.Context, path string) (*Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, failure.Wrap(failure.Temporary, fmt.Errorf("monitor: %w", err))
	}
	return Open(ctx, conn)
}

// Open reads the greeting from conn, which it owns from now on, and enters
// command mode.
func Open(ctx context.Context, conn net.Conn) (*Conn, error) {
	c := &Conn{conn: conn, events: make(chan Event, mostEvents), ended: make(chan struct{}), waiting: map[uint64]chan<- message{}}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	in := bufio.NewReaderSize(conn, 64<<10)
	greeting, err := readMessage(in)
	if !stop() || err != nil || greeting.Greeting == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("monitor: no greeting: %w", errors.Join(context.Cause(ctx), err, ErrClosed))
	}
	c.version = greeting.Greeting.Version.QEMU
	go c.read(in)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("monitor: %w", err)
	}
	return c, nil
}

// Version is that of the greeting.
func (c *Conn) Version() Version { return c.version }

// Events has every event in QEMU's order. It is closed when the connection
// ends. Who opens a connection takes them: some thousands that nobody took end it.
func (c *Conn) Events() <-chan Event { return c.events }

// Ended is closed when the connection has ended.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Close ends the connection; QEMU goes on.
func (c *Conn) Close() error { return c.conn.Close() }

// command is what goes to QEMU.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// Execute runs one command. args is nil or encodes to a JSON object; result is
// nil or what the return value is decoded into. A refusal is *Error.
func (c *Conn) Execute(ctx context.Context, name string, args, result any) error {
	answer := make(chan message, 1)
	id, err := c.expect(answer)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer c.forget(id)
	line, err := json.Marshal(command{name, args, id})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := c.send(ctx, append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	select {
	case m := <-answer:
		return m.decode(name, result)
	case <-ctx.Done():
		return fmt.Errorf("%s: no answer: %w", name, context.Cause(ctx))
	case <-c.ended:
	}
	select {
	case m := <-answer: // it came with the end
		return m.decode(name, result)
	default:
		return fmt.Errorf("%s: %w", name, c.cause())
	}
}

func (c *Conn) send(ctx context.Context, line []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	until := time.Now().Add(writeTimeout)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	_ = c.conn.SetWriteDeadline(until)
	if _, err := c.conn.Write(line); err != nil {
		_ = c.conn.Close() // half a command may be on the wire
		return failure.Wrap(failure.Temporary, err)
	}
	return nil
}

func (c *Conn) expect(answer chan<- message) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.last++
	c.waiting[c.last] = answer
	return c.last, nil
}

func (c *Conn) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

func (c *Conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read takes in what QEMU says until the connection ends.
func (c *Conn) read(in *bufio.Reader) {
	err := c.take(in)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = ErrClosed
	} else {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	close(c.ended)
	close(c.events)
}

func (c *Conn) take(in *bufio.Reader) error {
	for {
		m, err := readMessage(in)
		if err != nil {
			return err
		}
		if m.Event.Name == "" {
			c.answer(m)
			continue
		}
		select {
		case c.events <- m.Event:
		default:
			return fmt.Errorf("nobody took %d events", mostEvents)
		}
	}
}

// answer hands a reply to who waits for it. A reply to a command that nobody
// waits for any more has no taker.
func (c *Conn) answer(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer := c.waiting[m.ID]; answer != nil {
		answer <- m
		delete(c.waiting, m.ID)
	}
}
