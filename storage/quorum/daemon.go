// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/qmp"
)

// daemon is a running qemu-storage-daemon and its monitor.
//
// The monitor is one end of a socket pair that the daemon inherits, so nobody
// else can reach it, and it ends with us. The daemon also inherits the set's
// lock: whatever happens to us, nobody opens the replicas while it has them.
type daemon struct {
	*command.Child
	qmp *qmp.Conn
}

// monitorTimeout bounds a command that does no I/O on the replicas.
const monitorTimeout = 10 * time.Second

// startDaemon starts an empty daemon. When we die it gets SIGTERM, on which it
// writes out what it holds of the images' metadata: SIGKILL would lose writes
// that a guest, which reconnects, believes to be done.
func (s *Service) startDaemon(ctx context.Context, log *slog.Logger, held *os.File) (*daemon, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	defer theirs.Close()
	child, err := command.StartChild(command.Cmd{
		Name:  s.daemon(),
		Args:  []string{"--chardev", "socket,id=qmp,fd=3", "--monitor", "chardev=qmp,mode=control"},
		Files: []*os.File{theirs, held},
		Death: syscall.SIGTERM,
	}, &lines{log: log})
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, monitorTimeout)
	defer cancel()
	conn, err := qmp.Open(ctx, ours)
	if err != nil {
		child.Signal(syscall.SIGKILL)
		return nil, fmt.Errorf("%s: %w", s.daemon(), err)
	}
	return &daemon{child, conn}, nil
}

// socketPair is a connection for us, and its other end for a child.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
	}
	return conn, theirs, err
}

// do runs one command for at most monitorTimeout.
func (d *daemon) do(ctx context.Context, name string, args, result any) error {
	return d.doFor(ctx, monitorTimeout, name, args, result)
}

// doFor is do for what waits for replicas: opening one, or the end of requests
// that are under way.
func (d *daemon) doFor(ctx context.Context, most time.Duration, name string, args, result any) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return d.qmp.Execute(ctx, name, args, result)
}

// end asks the daemon to write everything out and go, and kills it after grace.
// The error says that it did not go as it should.
func (d *daemon) end(grace time.Duration) error {
	d.Signal(syscall.SIGTERM)
	select {
	case <-d.Ended():
		return d.Err()
	case <-time.After(grace):
	}
	d.Signal(syscall.SIGKILL)
	select {
	case <-d.Ended():
	case <-time.After(time.Second):
	}
	return failure.New(failure.Temporary, "qemu-storage-daemon %d did not end in %s", d.PID(), grace)
}

// args are a command's arguments.
type args map[string]any

func (d *daemon) add(ctx context.Context, most time.Duration, n *Node) error {
	return d.doFor(ctx, most, "blockdev-add", n, nil)
}

func (d *daemon) remove(ctx context.Context, node string) error {
	return d.do(ctx, "blockdev-del", args{"node-name": node}, nil)
}

// listen starts the daemon's one NBD server; 0 connections is no limit.
func (d *daemon) listen(ctx context.Context, socket string) error {
	return d.do(ctx, "nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": socket}}, "max-connections": 0}, nil)
}

// export is a BlockExportOptions.
type export struct {
	ID       string `json:"id"`
	Type     string `json:"type"` // "nbd" or "vhost-user-blk"
	Node     string `json:"node-name"`
	Writable bool   `json:"writable"`
	// WriteThrough: nothing is acknowledged that the daemon still has to write.
	WriteThrough bool   `json:"writethrough"`
	Name         string `json:"name,omitempty"`
	Addr         any    `json:"addr,omitempty"`
	Queues       int    `json:"num-queues,omitempty"`
}

func (d *daemon) export(ctx context.Context, e export) error {
	return d.do(ctx, "block-export-add", e, nil)
}

// unexport ends an export. Its node is free when that has gone, which the daemon
// tells by an event only.
func (d *daemon) unexport(ctx context.Context, id string) {
	_ = d.do(ctx, "block-export-del", args{"id": id, "mode": "hard"}, nil)
	for range 20 {
		var exports []struct{ ID string }
		if d.do(ctx, "query-block-exports", nil, &exports) != nil ||
			!slices.ContainsFunc(exports, func(e struct{ ID string }) bool { return e.ID == id }) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// child is the name of the edge from the quorum node to one of its children:
// "children.2". QEMU numbers them as they come, and leaves gaps.
func (d *daemon) child(ctx context.Context, node string) (string, error) {
	var graph struct {
		Nodes []struct {
			ID   uint64
			Name string
		}
		Edges []struct {
			Parent, Child uint64
			Name          string
		}
	}
	if err := d.do(ctx, "x-debug-query-block-graph", nil, &graph); err != nil {
		return "", err
	}
	names := map[uint64]string{}
	for _, n := range graph.Nodes {
		names[n.ID] = n.Name
	}
	for _, e := range graph.Edges {
		if names[e.Parent] == QuorumNode && names[e.Child] == node {
			return e.Name, nil
		}
	}
	return "", failure.New(failure.NotFound, "%s is no child of the quorum node", node)
}

// detach takes a child out of the quorum node and closes its image. It waits for
// the requests that are under way, so what hangs was cut off before.
func (d *daemon) detach(ctx context.Context, most time.Duration, node string) error {
	name, err := d.child(ctx, node)
	if err != nil {
		return err
	}
	if err := d.doFor(ctx, most, "x-blockdev-change", args{"parent": QuorumNode, "child": name}, nil); err != nil {
		return err
	}
	return d.remove(ctx, node)
}

func (d *daemon) attach(ctx context.Context, node string) error {
	return d.do(ctx, "x-blockdev-change", args{"parent": QuorumNode, "node": node}, nil)
}

// refusedByQEMU says that QEMU itself said no, other than a monitor that is gone.
func refusedByQEMU(err error) bool {
	var refused *qmp.Error
	return errors.As(err, &refused)
}

// lines logs what a daemon prints, line by line, of bounded length.
type lines struct {
	log  *slog.Logger
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	const most = 4096
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found && len(l.rest) < most {
			return len(p), nil
		}
		if text := failure.OneLine(clip(string(line))); text != "" {
			l.log.Warn("qemu-storage-daemon says", "line", text)
		}
		l.rest = bytes.Clone(rest)
	}
}
