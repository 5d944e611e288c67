// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"net"
	"os"
	"sync"

	"diskhook/storage/nbd"
)

// door is where guests connect: our own socket before the daemon's, which the
// guest never reaches. Requests are passed on as they are (splice(2)), or come
// through the gate while there is one; see nbd.Server.Relay for why not
// even a clean set shows the daemon's socket itself.
type door struct {
	listener net.Listener
	cancel   context.CancelFunc
	conns    sync.WaitGroup
}

const doorSocket = "guest.sock"

func (ss *session) openDoor(ctx context.Context) error {
	path := ss.private(ss.set.Name, doorSocket)
	_ = os.Remove(path)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	// The name is linked elsewhere, and removed by hide.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	d := &door{listener: l}
	ctx, d.cancel = context.WithCancel(ctx)
	ss.door = d
	flags := ss.inner.Flags & (nbd.FlagHasFlags | nbd.FlagReadOnly | nbd.FlagFlush | nbd.FlagFUA |
		nbd.FlagTrim | nbd.FlagWriteZeroes | nbd.FlagMultiConn)
	server := &nbd.Server{Name: ss.set.Name, Export: nbd.Export{Size: ss.inner.Size, Flags: flags}}
	if ss.gate != nil {
		server.Do = ss.gate.do
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			d.conns.Go(func() { ss.meet(ctx, server, conn) })
		}
	}()
	return nil
}

// meet serves one guest's connection.
func (ss *session) meet(ctx context.Context, server *nbd.Server, conn net.Conn) {
	var err error
	if g := ss.gate; g != nil && !g.over.Load() {
		err = server.Serve(ctx, conn)
	} else {
		var backend net.Conn
		backend, err = new(net.Dialer).DialContext(ctx, "unix", ss.private(ss.set.Name, daemonSocket))
		if err != nil {
			_ = conn.Close()
		} else {
			err = server.Relay(ctx, conn, backend)
		}
	}
	if err != nil && ctx.Err() == nil {
		ss.log.DebugContext(ctx, "a guest's connection ended", "err", err)
	}
}

// shut ends all connections and waits until none is left.
func (d *door) shut() {
	if d == nil {
		return
	}
	d.cancel()
	_ = d.listener.Close()
	d.conns.Wait()
}
