// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
)

// Relay talks to one client over conn until it is to send requests, and passes
// those on to an export at the other end of backend as they are. It closes both
// at the end. Neither side is offered structured replies: QEMU's server (7.2)
// hangs up on a client that has them when a read fails, where it should tell the
// error, and a client that connects again would ask for ever.
func (s *Server) Relay(ctx context.Context, conn, backend net.Conn) error {
	hangUp := func() { _, _ = conn.Close(), backend.Close() }
	defer context.AfterFunc(ctx, hangUp)()
	defer hangUp()
	if _, err := greet(backend, s.Name); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	if ready, err := s.handshake(in, conn); err != nil || !ready {
		return err
	}
	early, _ := in.Peek(in.Buffered()) // requests may have come with the last option
	if _, err := backend.Write(early); err != nil {
		return err
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		_, _ = io.Copy(conn, backend)
		hangUp()
	})
	_, err := io.Copy(backend, conn)
	hangUp()
	answers.Wait()
	return err
}
