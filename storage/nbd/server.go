// SPDX-License-Identifier: Apache-2.0

package nbd

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
)

// Server serves one export to any number of connections.
type Server struct {
	Name   string
	Export Export
	// Do runs a request as Client.Do does. It is called from many goroutines. An
	// error that is no *Error ends the connection: whether the request was
	// done is unknown, and a client that connects again asks again.
	Do func(ctx context.Context, r Request) ([]byte, error)
	// InFlight bounds the requests of one connection that run at once; 0 is 64.
	InFlight int
}

// Serve talks to one client over conn, which it closes at the end. It returns
// nil when the client left as it should.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 64<<10)
	if ready, err := s.handshake(in, conn); err != nil || !ready {
		return err
	}
	return s.transmit(ctx, in, conn)
}

// handshake says whether the client wants to go on to requests.
func (s *Server) handshake(in io.Reader, out io.Writer) (bool, error) {
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	if _, err := out.Write(binary.BigEndian.AppendUint16(hello, fixedNewstyle|noZeroes)); err != nil {
		return false, err
	}
	var flags [4]byte
	if _, err := io.ReadFull(in, flags[:]); err != nil {
		return false, err
	}
	short := binary.BigEndian.Uint32(flags[:])&noZeroes != 0
	for {
		o, err := readOption(in)
		if err != nil {
			return false, err
		}
		switch ready, end, err := s.option(out, o, short); {
		case err != nil, end:
			return ready, err
		}
	}
}

// option answers one option; end says that no more come.
func (s *Server) option(out io.Writer, o option, short bool) (ready, end bool, err error) {
	refuse := func(code uint32) (bool, bool, error) { return false, false, writeReply(out, o.kind, code, nil) }
	switch o.kind {
	case optAbort:
		return false, true, writeReply(out, o.kind, replyAck, nil)
	case optExportName: // it has no way to refuse but to hang up
		if string(o.data) != s.Name {
			return false, true, fmt.Errorf("no export %q", o.data)
		}
		b := exportInfo(s.Export)[2:]
		if !short {
			b = append(b, make([]byte, 124)...)
		}
		_, err := out.Write(b)
		return true, true, err
	case optList:
		return false, false, errors.Join(writeReply(out, o.kind, replyServer, counted(nil, s.Name)), writeReply(out, o.kind, replyAck, nil))
	case optGo, optInfo:
		name, ok := exportName(o.data)
		switch {
		case !ok:
			return refuse(replyErrInvalid)
		case name != s.Name:
			return refuse(replyErrUnknown)
		}
		err := errors.Join(writeReply(out, o.kind, replyInfo, exportInfo(s.Export)), writeReply(out, o.kind, replyAck, nil))
		return o.kind == optGo, o.kind == optGo, err
	}
	return refuse(replyErrUnsup)
}

// transmit runs requests side by side until the client leaves, then waits for
// those under way.
func (s *Server) transmit(ctx context.Context, in io.Reader, out io.WriteCloser) error {
	most := s.InFlight
	if most == 0 {
		most = 64
	}
	var answering sync.Mutex
	var running sync.WaitGroup
	defer running.Wait()
	// What runs for a client that left has nobody to answer.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	room := make(chan struct{}, most)
	for {
		r, id, err := readRequest(in)
		if err != nil || r.Command == Disconnect {
			return err
		}
		room <- struct{}{}
		running.Go(func() {
			defer func() { <-room }()
			var data []byte
			err := s.check(r)
			if err == nil {
				data, err = s.Do(ctx, r)
			}
			var refused *Error
			if err != nil && !errors.As(err, &refused) {
				_ = out.Close()
				return
			}
			answering.Lock()
			defer answering.Unlock()
			respond(out, id, data, err)
		})
	}
}

// check refuses what lies outside of the export.
func (s *Server) check(r Request) error {
	length := uint64(r.Length)
	switch {
	case r.Command == Flush:
		return nil
	case r.Command > WriteZeroes, r.Command == Disconnect:
		return &Error{Errno: syscall.EINVAL}
	case r.Command != Read && s.Export.Flags&FlagReadOnly != 0:
		return &Error{Errno: syscall.EPERM}
	case r.Offset > uint64(s.Export.Size), length > uint64(s.Export.Size)-r.Offset:
		return &Error{Errno: syscall.EINVAL}
	}
	return nil
}

// respond answers one request. A client that has gone is noticed by the reader.
func respond(out io.Writer, id uint64, data []byte, err error) {
	parts := net.Buffers{simpleHead(id, err)}
	if err == nil && data != nil {
		parts = append(parts, data)
	}
	_, _ = parts.WriteTo(out)
}
