// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
	"diskhook/storage/nbd"
)

// A replica that is not on this host's own storage can hang, and QEMU's quorum
// waits for each child for ever: qemu-storage-daemon has no `yank`, and a thread
// that waits for a dead NFS server goes with no signal. So such a replica is
// opened by a daemon of its own and reaches the voting node through a relay in
// this process, over unix sockets:
//
//	voting node ── ID.relay ── relay (here) ── ID.sock ── daemon of the replica
//	                            probe (here) ──┘
//
// The probe reads from the replica all the time, past the page cache. When it
// gets no answer for the hang timeout, the relay hangs up: what was under way
// fails at once, on that child alone, and the guest's requests go on.
type remote struct {
	daemon *daemon
	relay  *relay
	cancel context.CancelFunc // of the probe
	why    atomic.Value       // Reason of a cut, before what fails by it is reported
}

// openRemote opens a replica in a daemon of its own, within most. hung is called
// once, when the replica has stopped answering and was cut off already.
func (s *Service) openRemote(ctx context.Context, log *slog.Logger, set Set, r Replica, held *os.File, hung func(error)) (*remote, error) {
	most := s.hangTimeout(set)
	opening, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	d, err := s.startDaemon(opening, log, held)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*remote, error) {
		d.Signal(syscall.SIGKILL)
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	node, err := set.ReplicaNode(r, Opening{Direct: directIO(opening, r)})
	if err != nil {
		return fail(err)
	}
	socket := s.private(set.Name, r.ID+".sock")
	_ = os.Remove(socket)
	err = d.add(opening, most, node)
	if err == nil {
		err = d.listen(opening, socket)
	}
	if err == nil {
		err = d.export(opening, export{ID: r.ID, Type: NBDExport, Node: r.ID, Writable: true, Name: r.ID})
	}
	if err != nil {
		return fail(err)
	}
	m := &remote{daemon: d}
	if m.relay, err = listenRelay(ctx, s.private(set.Name, r.ID+".relay"), socket); err != nil {
		return fail(err)
	}
	probing, cancel := context.WithCancel(ctx)
	m.cancel = cancel
	go drain(d)
	go func() {
		err := probe(probing, socket, r.ID, most)
		if probing.Err() == nil {
			m.why.Store(hangReason(err))
			m.cut()
			hung(err)
		}
	}()
	return m, nil
}

// drain takes the events of a daemon that nobody listens to.
func drain(d *daemon) {
	for range d.qmp.Events() {
	}
}

// cut fails everything that is under way to the replica, and kills what serves it.
func (m *remote) cut() {
	m.relay.hangUp()
	m.daemon.Signal(syscall.SIGKILL)
}

// end lets the replica go, after the voting node has.
func (m *remote) end(grace time.Duration) error {
	m.cancel()
	m.relay.hangUp()
	return m.daemon.end(grace)
}

// reason is why the replica was cut off; other if it was not.
func (m *remote) reason(other Reason) Reason {
	if m == nil {
		return other
	}
	if why, ok := m.why.Load().(Reason); ok {
		return why
	}
	return other
}

// errHung is why a replica was cut off.
var errHung = errors.New("no answer")

// probe reads from an export, again and again, until a read is not answered
// within most or fails for a reason of its connection. An I/O error is an
// answer; the voting node meets it, too.
func probe(ctx context.Context, socket, name string, most time.Duration) error {
	opening, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	client, err := nbd.Dial(opening, socket, name)
	if err != nil {
		return err
	}
	defer client.Close()
	const length = 4096
	blocks := max(1, client.Size/length)
	for i := int64(0); ; i++ {
		// Elsewhere each time, so that no cache on the way answers.
		at := (i * 7919 % blocks) * length
		reading, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("%w for %s", errHung, most))
		_, err := client.ReadAt(reading, at, int(min(length, client.Size-at)))
		cancel()
		if err != nil && !ioError(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(most/10, 50*time.Millisecond)):
		}
	}
}

// relay passes bytes between two unix sockets until it hangs up.
type relay struct {
	listener net.Listener
	mu       sync.Mutex
	conns    []net.Conn
	hungUp   bool
}

func listenRelay(ctx context.Context, path, to string) (*relay, error) {
	_ = os.Remove(path)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	r := &relay{listener: l}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(from, to)
		}
	}()
	return r, nil
}

func (r *relay) pass(from net.Conn, path string) {
	// Whoever ends the relay closes what it holds; connecting to a socket does not block.
	to, err := new(net.Dialer).DialContext(context.Background(), "unix", path)
	if err != nil {
		_ = from.Close()
		return
	}
	if !r.keep(from, to) {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_, _ = from.Close(), to.Close()
		})
	}
	both.Wait()
}

// keep notes connections that a hangUp has to end.
func (r *relay) keep(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hungUp {
		for _, c := range conns {
			_ = c.Close()
		}
		return false
	}
	r.conns = append(r.conns, conns...)
	return true
}

// hangUp ends all connections and takes no more.
func (r *relay) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hungUp = true
	_ = r.listener.Close()
	for _, c := range r.conns {
		_ = c.Close()
	}
}

// networkFS are the file systems whose server can go away (statfs(2), f_type).
var networkFS = []int64{unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC,
	unix.CEPH_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.V9FS_MAGIC, ocfs2Magic, gfs2Magic, lustreMagic, gpfsMagic}

const (
	ocfs2Magic  = 0x7461636f
	gfs2Magic   = 0x01161970
	lustreMagic = 0x0bd00bd0
	gpfsMagic   = 0x47504653
)

// isRemote says whether a replica's storage can hang for good: NBD, and files on
// network file systems. One that does not even answer that counts as remote.
func isRemote(ctx context.Context, r Replica) bool {
	if r.Top().Type == NBD {
		return true
	}
	far, err := command.Abandon(ctx, func() (bool, error) {
		for _, l := range r.Chain {
			var st unix.Statfs_t
			if err := unix.Statfs(l.Path, &st); err != nil {
				return true, err
			}
			if slices.Contains(networkFS, st.Type) {
				return true, nil
			}
		}
		return false, nil
	})
	return far || err != nil
}

// directIO is direct for storage that may hang.
func directIO(ctx context.Context, r Replica) bool {
	ok, err := command.Abandon(ctx, func() (bool, error) { return direct(r.Chain), nil })
	return ok && err == nil
}

// writesBehind says that a replica's daemon holds changes of an image's own
// tables in memory, which a killed daemon loses though it acknowledged them.
func (r Replica) writesBehind() bool { return r.Top().Format != imagecheck.Raw }
