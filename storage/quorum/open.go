// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/nbd"
)

// opened is a chain as QEMU shows it: a qemu-storage-daemon of its own has it
// open, takes its image locks, and exports it to nobody but us.
type opened struct {
	*nbd.Conn
	id     string
	quit   func()
	ended  chan error
	cancel context.CancelFunc
}

// open starts a daemon for one node tree and connects to it. held are
// descriptors that the daemon keeps open as long as it lives: the set's lock.
//
// The daemon must not outlive us, or the images would stay locked: setpriv(1)
// has the kernel end it when we die.
func (s *Service) open(ctx context.Context, id string, tree *Node, held ...*os.File) (*opened, error) {
	text, err := tree.JSON()
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", id, err)
	}
	listener, dial, clean, err := listen()
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", id, err)
	}
	defer clean()
	ctx, cancel := context.WithCancel(ctx)
	monitor, stdin := io.Pipe()
	o := &opened{id: id, ended: make(chan error, 1), cancel: cancel, quit: func() { go writeQuit(stdin) }}
	go func() {
		// "We" is the thread that forked: it must not end before the daemon.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, err := s.Run.Run(ctx, command.Cmd{
			Name: "setpriv", Args: append([]string{"--pdeathsig", "TERM", "--", s.daemon()}, daemonArgs(id, text, !tree.ReadOnly)...),
			Stdin: monitor, Files: append([]*os.File{listener}, held...),
		})
		_ = monitor.CloseWithError(io.ErrClosedPipe)
		o.ended <- err
		cancel() // which cuts the connection
	}()
	if o.Conn, err = dial(ctx, id); err != nil {
		return nil, o.failed(err)
	}
	return o, nil
}

// daemonArgs is qemu-storage-daemon(1)'s grammar. The listening socket is
// descriptor 3; the monitor on its standard input is there to be told to quit.
func daemonArgs(id, tree string, writable bool) []string {
	onOff := map[bool]string{true: "on", false: "off"}
	return []string{
		"--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor",
		"--blockdev", tree,
		"--nbd-server", "addr.type=fd,addr.str=3,max-connections=1",
		"--export", "type=nbd,id=export,node-name=" + id + ",name=" + id + ",writable=" + onOff[writable],
	}
}

// writeQuit ends the daemon in an orderly way, which closes the images.
func writeQuit(stdin *io.PipeWriter) {
	_, _ = io.WriteString(stdin, `{"execute":"qmp_capabilities"}`+"\n"+`{"execute":"quit"}`+"\n")
	_ = stdin.Close() // the runner waits for it
}

// listen makes a socket in a folder of its own. A connection may be made before
// the daemon accepts it. The names go as soon as it is made.
func listen() (listener *os.File, dial func(context.Context, string) (*nbd.Conn, error), clean func(), err error) {
	dir, err := os.MkdirTemp("", "diskhook-quorum-")
	if err != nil {
		return nil, nil, nil, err
	}
	path := filepath.Join(dir, "nbd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		l.SetUnlinkOnClose(false)
		listener, err = l.File()
		_ = l.Close()
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, nil, nil, err
	}
	dial = func(ctx context.Context, export string) (*nbd.Conn, error) {
		return nbd.Dial(ctx, "unix", path, export)
	}
	clean = func() {
		_ = listener.Close()
		_ = os.RemoveAll(dir)
	}
	return listener, dial, clean, nil
}

// failed ends the daemon and says what it said, which tells more than that a
// connection broke.
func (o *opened) failed(err error) error {
	o.quit()
	select {
	case said := <-o.ended:
		if said != nil {
			err = explainDaemon(said)
		}
	case <-time.After(daemonEnd):
	}
	o.cancel()
	return fmt.Errorf("replica %s: %w", o.id, err)
}

// daemonEnd is how long a daemon may take to close its images.
const daemonEnd = 10 * time.Second

// close ends the daemon. What was written was flushed by Flush, or is not.
func (o *opened) close() {
	o.Conn.Close()
	o.quit()
	select {
	case <-o.ended:
	case <-time.After(daemonEnd):
	}
	o.cancel()
}

// explainDaemon gives what the daemon says its kind.
func explainDaemon(err error) error {
	var failed *command.Error
	if !errors.As(err, &failed) {
		return err
	}
	switch said := failed.Stderr; {
	case strings.Contains(said, "Is another process using the image"), strings.Contains(said, "Failed to get"):
		err = failure.New(failure.Conflict, "a running program has its image open: %w", err)
		return failure.Hint(err, "stop the domain or program that uses it")
	case strings.Contains(said, "No space left on device"):
		return failure.Wrap(failure.NoSpace, err)
	}
	return err
}

// openReplica opens one replica of a set.
func (s *Service) openReplica(ctx context.Context, set Set, r Replica, readOnly bool, held ...*os.File) (*opened, error) {
	tree, err := set.ReplicaNode(r, Opening{ReadOnly: readOnly, Direct: direct(r.Chain)})
	if err != nil {
		return nil, err
	}
	o, err := s.open(ctx, r.ID, tree, held...)
	if err != nil {
		return nil, err
	}
	if o.Size != set.Size {
		o.close()
		return nil, failure.New(failure.Precondition, "%s: it has %d bytes, the set has %d", r, o.Size, set.Size)
	}
	return o, nil
}

// openSource opens the chain that a build copies.
func (s *Service) openSource(ctx context.Context, chain []Layer, size int64, held ...*os.File) (*opened, error) {
	source := Set{Size: size}
	return s.openReplica(ctx, source, Replica{ID: sourceID, Chain: chain}, true, held...)
}

const sourceID = "source"

// direct says whether direct I/O works for all layers; tmpfs and some FUSE file
// systems refuse it.
func direct(chain []Layer) bool {
	for _, l := range chain {
		if l.Type == NBD {
			return false
		}
		fd, err := unix.Open(l.Path, unix.O_RDONLY|unix.O_DIRECT|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		_ = unix.Close(fd)
	}
	return true
}
