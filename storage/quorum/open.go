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
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagelock"
	"diskhook/storage/nbd"
)

// opened is a chain as QEMU shows it: a qemu-storage-daemon of its own has it
// open, takes its image locks, and exports it to nobody but us.
type opened struct {
	*nbd.Image
	id      string
	sockets *sockets
	ended   chan error
	cancel  context.CancelFunc
}

// open starts a daemon for one node tree and connects to it. held are
// descriptors that the daemon keeps open as long as it lives: the set's lock.
//
// The daemon must not outlive us, or the images would stay locked: the kernel
// ends it when we die.
func (s *Service) open(ctx context.Context, id string, tree *Node, held ...*os.File) (*opened, error) {
	text, err := tree.JSON()
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", id, err)
	}
	sockets, err := listen()
	if err != nil {
		return nil, fmt.Errorf("replica %s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	o := &opened{id: id, sockets: sockets, ended: make(chan error, 1), cancel: cancel}
	go func() {
		_, err := s.Run.Run(ctx, command.Cmd{
			Name: s.daemon(), Args: daemonArgs(sockets.monitor, id, text, !tree.ReadOnly),
			Files: append([]*os.File{sockets.nbd}, held...), Death: syscall.SIGTERM,
		})
		o.ended <- err
		cancel() // which cuts the connection
	}()
	if o.Image, err = nbd.OpenImage(ctx, "unix", sockets.export, id); err != nil {
		return nil, o.failed(err)
	}
	return o, nil
}

// daemonArgs is qemu-storage-daemon(1)'s grammar, which it follows in order: it
// connects to the monitor before it opens anything. The socket that it listens
// on is descriptor 3.
func daemonArgs(monitor, id, tree string, writable bool) []string {
	onOff := map[bool]string{true: "on", false: "off"}
	return []string{
		"--chardev", "socket,id=monitor,path=" + monitor, "--monitor", "chardev=monitor",
		"--blockdev", tree,
		"--nbd-server", "addr.type=fd,addr.str=3,max-connections=1",
		"--export", "type=nbd,id=export,node-name=" + id + ",name=" + id + ",writable=" + onOff[writable],
	}
}

// sockets are where a daemon and we meet, in a folder of their own.
type sockets struct {
	dir             string
	export, monitor string   // paths
	nbd             *os.File // listens at export: who connects waits for the daemon
	listener        *net.UnixListener
	daemon          chan net.Conn // its monitor, once it is there
}

func listen() (*sockets, error) {
	dir, err := os.MkdirTemp("", "dh")
	if err != nil {
		return nil, err
	}
	s := &sockets{dir: dir, export: filepath.Join(dir, "nbd"), monitor: filepath.Join(dir, "monitor"), daemon: make(chan net.Conn, 1)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.export, Net: "unix"})
	if err == nil {
		l.SetUnlinkOnClose(false)
		s.nbd, err = l.File()
		_ = l.Close()
	}
	if err == nil {
		s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.monitor, Net: "unix"})
	}
	if err != nil {
		s.close()
		return nil, err
	}
	go s.accept()
	return s, nil
}

func (s *sockets) accept() {
	conn, err := s.listener.Accept()
	if err != nil {
		return
	}
	s.daemon <- conn
	_, _ = io.Copy(io.Discard, conn)
}

// quit tells the daemon to end, in an orderly way that closes the images.
func (s *sockets) quit() {
	select {
	case conn := <-s.daemon:
		_, _ = io.WriteString(conn, `{"execute":"qmp_capabilities"}{"execute":"quit"}`)
		s.daemon <- conn // for close
	default: // it has not even begun
	}
}

func (s *sockets) close() {
	if s.nbd != nil {
		_ = s.nbd.Close()
	}
	if s.listener != nil {
		_ = s.listener.Close()
	}
	select {
	case conn := <-s.daemon:
		_ = conn.Close()
	default:
	}
	_ = os.RemoveAll(s.dir)
}

// failed ends the daemon and says what it said, which tells more than that a
// connection broke.
func (o *opened) failed(err error) error {
	if said := o.end(); said != nil {
		err = explainDaemon(said)
	}
	return fmt.Errorf("replica %s: %w", o.id, err)
}

// close ends the daemon. What was written was flushed by Flush, or is not.
func (o *opened) close() {
	o.Image.Close()
	_ = o.end()
}

// daemonEnd is how long a daemon may take to close its images.
const daemonEnd = 10 * time.Second

// end has the daemon end, and kills it if it does not. The sockets stay open
// until whoever starts the daemon is done with them.
func (o *opened) end() (said error) {
	o.sockets.quit()
	select {
	case said = <-o.ended:
		o.cancel()
	case <-time.After(daemonEnd):
		o.cancel()
		<-o.ended //nolint:errcheck // we killed it; how it ended says nothing
	}
	o.sockets.close()
	return said
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
	if err := unused(ctx, r, readOnly); err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
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
		return nil, unequal(set, r, o.Size)
	}
	return o, nil
}

// unused refuses images that a running program may write to. An export, unlike
// a guest's disk, takes QEMU's locks without denying others to write, so the
// daemon would not notice.
func unused(ctx context.Context, r Replica, readOnly bool) error {
	_, err := command.Abandon(ctx, func() (struct{}, error) {
		for i, l := range r.Chain {
			if l.Type == NBD {
				continue
			}
			f, err := os.OpenFile(l.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return struct{}{}, err
			}
			take := imagelock.Read
			if i == 0 && !readOnly {
				take = imagelock.Write
			}
			err = take(f)
			// Closing is not enough: a program that is being started at this
			// moment has the descriptor, too, until it runs.
			imagelock.Release(f)
			_ = f.Close()
			if err != nil && !errors.Is(err, imagelock.ErrNoLocks) {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	return err
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
