// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/failure"
)

// memory is a disk whose second half cannot be read.
type memory struct {
	mu   sync.Mutex
	data []byte
}

func (m *memory) do(ctx context.Context, r Request) ([]byte, error) {
	switch r.Command {
	case WriteZeroes:
		return nil, ErrClosed
	case Trim: // one that hangs
		<-ctx.Done()
		return nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.Command == Write:
		copy(m.data[r.Offset:], r.Data)
	case r.Command == Read && int(r.Offset) >= len(m.data)/2:
		return nil, &Error{Errno: syscall.EIO}
	case r.Command == Read:
		return bytes.Clone(m.data[r.Offset : r.Offset+uint64(r.Length)]), nil
	}
	return nil, nil
}

func TestClientAndServer(t *testing.T) {
	m := &memory{data: make([]byte, 4096)}
	s := &Server{Name: "db", Export: Export{4096, FlagHasFlags | FlagFlush}, Do: m.do}
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), theirs) }()
	c, err := open(t.Context(), ours, "db")
	if err != nil {
		t.Fatal(err)
	}
	if c.Size != 4096 || c.Flags != FlagHasFlags|FlagFlush {
		t.Errorf("%+v", c.Export)
	}
	ctx := t.Context()
	if err := errors.Join(c.WriteAt(ctx, 512, []byte("hello")), c.Flush(ctx)); err != nil {
		t.Error(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if got, err := c.ReadAt(ctx, 512, 5); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
	if _, err := c.ReadAt(ctx, 2048, 512); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v", err)
	}
	if _, err := c.ReadAt(ctx, 4000, 512); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("outside: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.Do(short, Request{Command: Trim, Length: 512}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	// What the server does not know, the client must not take for a refusal.
	if _, err := c.Do(ctx, Request{Command: WriteZeroes, Length: 512}); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := <-served; err == nil {
		t.Error("the connection ended, and nobody noticed")
	}
	if _, err := c.ReadAt(ctx, 0, 1); !errors.Is(err, ErrClosed) || !errors.Is(err, failure.Temporary) {
		t.Errorf("%v", err)
	}
}

// What a relay passes on is what the server at its other end does.
func TestRelay(t *testing.T) {
	m := &memory{data: make([]byte, 4096)}
	s := &Server{Name: "db", Export: Export{4096, FlagHasFlags | FlagFlush}, Do: m.do}
	ours, front := net.Pipe()
	back, theirs := net.Pipe()
	served, relayed := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), theirs) }()
	go func() { relayed <- (&Server{Name: "db", Export: s.Export}).Relay(t.Context(), front, back) }()
	c, err := open(t.Context(), ours, "db")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteAt(t.Context(), 512, []byte("hello")); err != nil {
		t.Error(err)
	}
	if got, err := c.ReadAt(t.Context(), 512, 5); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.ReadAt(t.Context(), 2048, 512); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v", err)
	}
	_ = c.Close()
	_, _ = <-served, <-relayed
}

func TestReadOnlyAndUnknownExport(t *testing.T) {
	s := &Server{Name: "db", Export: Export{4096, FlagHasFlags | FlagReadOnly}, Do: (&memory{data: make([]byte, 4096)}).do}
	ours, theirs := net.Pipe()
	go func() { _ = s.Serve(t.Context(), theirs) }()
	if _, err := open(t.Context(), ours, "other"); !errors.Is(err, failure.Temporary) {
		t.Errorf("%v", err)
	}
	ours, theirs = net.Pipe()
	go func() { _ = s.Serve(t.Context(), theirs) }()
	c, err := open(t.Context(), ours, "db")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WriteAt(t.Context(), 0, []byte("x")); !errors.Is(err, syscall.EPERM) {
		t.Errorf("%v", err)
	}
}

type half struct {
	io.Reader
	net.Conn
}

func (h half) Read(p []byte) (int, error) { return h.Reader.Read(p) }

func (half) Write(p []byte) (int, error)      { return len(p), nil }
func (half) Close() error                     { return nil }
func (half) SetDeadline(time.Time) error      { return nil }
func (half) SetWriteDeadline(time.Time) error { return nil }

// Whatever a peer sends, it is bounded and ends.
func FuzzPeer(f *testing.F) {
	f.Add([]byte("NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x08\x00\x00\x00\x02db\x00\x00" +
		"\x25\x60\x95\x13\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04abcd"))
	reply := "\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00"
	f.Add([]byte("NBDMAGICIHAVEOPT\x00\x03" + reply + "\x08\x80\x00\x00\x01\x00\x00\x00\x00" +
		reply + "\x07\x00\x00\x00\x03\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x01" + reply + "\x07\x00\x00\x00\x01\x00\x00\x00\x00" +
		"\x66\x8e\x33\xef\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := open(t.Context(), half{Reader: bytes.NewReader(data)}, "db"); err == nil {
			<-c.Ended()
		}
		server := half{Reader: bytes.NewReader(data)}
		if x, _, err := greetForExtents(server, "db"); err == nil {
			i := &Image{Size: x.Size, client: newClient(server, x), extents: true}
			_, _ = i.ReadAt(make([]byte, min(x.Size, 4096)), 0)
			_, _ = i.Next(0, x.Size)
		}
		s := &Server{Name: "db", Export: Export{Size: 4096}, Do: func(_ context.Context, r Request) ([]byte, error) {
			if r.Command != Flush && r.Offset+uint64(r.Length) > 4096 {
				t.Errorf("%+v", r)
			}
			return make([]byte, r.Length%4096), nil
		}}
		_ = s.Serve(t.Context(), half{Reader: bytes.NewReader(data)})
	})
}
