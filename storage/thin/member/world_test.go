// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/host"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/group/grouptest"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/member/membertest"
	"diskhook/storage/thin/request"
)

const (
	blocks    = 96
	blockSize = 64 << 10
	perVolume = 8 // blocks
	page      = 4096
	cluster   = "lab-1"
)

var clusterID = id(200)

func id(n int) uuid.UUID { return uuid.UUID{0: byte(n), 1: byte(n >> 8), 15: 1} }

// tester is what tests and property tests have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Context() context.Context
}

// world is a SAN with hosts, and what guests were told is on their volumes.
type world struct {
	tester
	dir    string
	blocks uint64
	san    *devmappertest.SAN
	g      *grouptest.Group
	chief  *master.Master
	disks  map[string]string // what tables call a logical volume
	hosts  []*node
	wrote  map[string]map[uint64]uint32 // by volume and virtual block
	clones map[string]string            // what they are of, where that has to be known when they come
	stamp  uint32
	names  int
	away   bool   // the master does not answer
	mute   bool   // it does what it is asked, and its answers are lost
	asked  func() // before the master is
}

// node is a host, with the life of the program that works on it.
type node struct {
	w      *world
	n      int
	boots  int
	kernel *devmappertest.Kernel
	life   *life
	refuse func(op, name string) error                // what the kernel refuses
	tells  func(name string, p *devmapper.PoolStatus) // what it says of a pool that is not so
	*member.Member
}

// life is how many more steps a program has before it is killed; below 0 it lives on.
type life struct{ left int }

var errKilled = errors.New("the program was killed")

// step is one that changes something. It is not made when the program is dead.
func (l *life) step() error {
	if l.left == 0 {
		return errKilled
	}
	l.left--
	return nil
}

func (l *life) dead() error {
	if l.left == 0 {
		return errKilled
	}
	return nil
}

func newWorld(t tester, dir string, hosts int) *world { return newWorldOf(t, dir, hosts, blocks) }

// newWorldOf is one of so many blocks.
func newWorldOf(t tester, dir string, hosts int, blocks uint64) *world {
	w := &world{
		tester: t, blocks: blocks, dir: dir, san: devmappertest.NewSAN(), g: grouptest.New(1 << 40),
		disks: map[string]string{}, wrote: map[string]map[uint64]uint32{}, clones: map[string]string{},
	}
	w.chief = &master.Master{
		Group: w.g, Cluster: clusterID, Name: cluster, Layout: host.Layout{Root: filepath.Join(dir, "master")}, Log: slog.New(slog.DiscardHandler),
	}
	_, err := w.chief.Init(t.Context(), master.Shape{Bytes: blocks * blockSize, BlockSize: blockSize})
	w.must(err)
	w.disks[layout.DataName] = w.san.AddDisk(1 << 40)
	for range hosts {
		w.join()
	}
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%v", err)
	}
}

func (w *world) with(name string, do func(group.Volume) error) {
	w.Helper()
	w.must(group.With(w.Context(), w.g, name, true, do))
}

func (w *world) readMap() (m layout.Map, stamp layout.Stamp) {
	w.Helper()
	w.with(layout.MapName, func(v group.Volume) (err error) {
		m, stamp, err = layout.ReadMap(v, clusterID)
		return err
	})
	return m, stamp
}

// join makes a host, not started yet.
func (w *world) join() *node {
	h := &node{w: w, n: len(w.hosts) + 1, life: &life{-1}}
	w.hosts = append(w.hosts, h)
	h.rejoin()
	return h
}

// rejoin has the master take the host in, and boots it.
func (h *node) rejoin() {
	h.w.Helper()
	h.letIn()
	h.w.disks[layout.Host.Name(id(h.n))] = h.w.san.AddDisk(1 << 30) // it may be extended
	h.boot()
	h.fetch()
}

// letIn has the master take the host in, on which whatever ran goes on.
func (h *node) letIn() {
	h.w.Helper()
	_, err := h.w.chief.Join(h.w.Context(), master.Newcomer{UUID: id(h.n), Name: fmt.Sprint("host", h.n), Rejoin: true, Metadata: layout.MinWindow})
	h.w.must(err)
}

// boot is a new kernel on which nothing runs.
func (h *node) boot() {
	if h.kernel != nil {
		h.kernel.Crash()
	}
	h.kernel = devmappertest.NewKernel(h.w.san)
	h.boots++
	h.Member = &member.Member{
		Name: cluster, Cluster: clusterID, Host: id(h.n), Group: shared{h}, Mapper: mortal{h.kernel, h},
		Windows: membertest.Windows{Kernel: h.kernel, Step: func() error { return h.life.step() }, Look: func() error { return h.life.dead() }},
		Channel: func(layout.Device, uint64) request.Channel { return channel{h} }, Deadline: time.Minute,
		Locks: filepath.Join(h.w.dir, fmt.Sprint("locks", h.n)), Links: filepath.Join(h.w.dir, fmt.Sprint("links", h.n)),
		Dev: "/dev", Claims: claim.Store{Dir: filepath.Join(h.w.dir, fmt.Sprint("claims", h.n)), Boot: fmt.Sprint("boot-", h.boots)},
		Labels: claim.Labels{Dir: filepath.Join(h.w.dir, fmt.Sprint("labels", h.n))},
		Log:    slog.New(slog.DiscardHandler),
	}
}

// shared is the group as a program on a host uses it.
type shared struct{ h *node }

func (g shared) Path(name string) string { return g.h.w.disks[name] }

func (g shared) Open(ctx context.Context, name string, write bool) (group.Volume, error) {
	if err := g.h.life.dead(); err != nil {
		return nil, err
	}
	v, err := g.h.w.g.Open(ctx, name, write)
	if err != nil {
		return nil, err
	}
	return open{v, g.h, v.Size()}, nil
}

func (g shared) Deactivate(context.Context, string) error { return nil }

func (shared) Create(context.Context, string, uint64) error { return errors.ErrUnsupported }
func (shared) Extend(context.Context, string, uint64) error { return errors.ErrUnsupported }
func (shared) Remove(context.Context, string) error         { return errors.ErrUnsupported }
func (shared) List(context.Context) ([]group.LV, error)     { return nil, errors.ErrUnsupported }
func (shared) Free(context.Context) (uint64, error)         { return 0, errors.ErrUnsupported }

// open is a volume with the length that it had when it was opened.
type open struct {
	group.Volume
	h    *node
	size int64
}

func (o open) Size() int64 { return o.size }

func (o open) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > o.size {
		return 0, io.ErrUnexpectedEOF
	}
	return o.Volume.ReadAt(p, off)
}

func (o open) WriteAt(p []byte, off int64) (int, error) {
	if err := o.h.life.step(); err != nil {
		return 0, err
	}
	return o.Volume.WriteAt(p, off)
}

func (o open) Flush() error { return o.h.life.dead() } // no disk loses power here

// mortal is the kernel as a program on the host uses it.
type mortal struct {
	*devmappertest.Kernel
	h *node
}

func (m mortal) Create(ctx context.Context, name, uuid string, t devmapper.Table) (devmapper.Info, error) {
	var info devmapper.Info
	err := m.step("create", name, func() (err error) {
		info, err = m.Kernel.Create(ctx, name, uuid, t)
		return err
	})
	return info, err
}

// step makes one, unless the program is dead or the kernel refuses it.
func (m mortal) step(op, name string, do func() error) error {
	if err := m.h.life.step(); err != nil {
		return err
	}
	if m.h.refuse != nil {
		if err := m.h.refuse(op, name); err != nil {
			return err
		}
	}
	return do()
}

func (m mortal) Load(ctx context.Context, name string, t devmapper.Table) error {
	return m.step("load", name, func() error { return m.Kernel.Load(ctx, name, t) })
}

func (m mortal) Clear(ctx context.Context, name string) error {
	return m.step("clear", name, func() error { return m.Kernel.Clear(ctx, name) })
}

func (m mortal) Suspend(ctx context.Context, name string, noflush bool) error {
	return m.step("suspend", name, func() error { return m.Kernel.Suspend(ctx, name, noflush) })
}

func (m mortal) Resume(ctx context.Context, name string) error {
	return m.step("resume", name, func() error { return m.Kernel.Resume(ctx, name) })
}

func (m mortal) Remove(ctx context.Context, name string) error {
	return m.step("remove", name, func() error { return m.Kernel.Remove(ctx, name) })
}

func (m mortal) Message(ctx context.Context, pool string, s devmapper.Message) error {
	return m.step("message", pool, func() error { return m.Kernel.Message(ctx, pool, s) })
}

func (m mortal) Info(ctx context.Context, name string) (devmapper.Info, error) {
	if err := m.h.life.dead(); err != nil {
		return devmapper.Info{}, err
	}
	return m.Kernel.Info(ctx, name)
}

func (m mortal) Open(ctx context.Context, name string) (devmapper.Block, error) {
	if err := m.h.life.dead(); err != nil {
		return nil, err
	}
	b, err := m.Kernel.Open(ctx, name)
	return block{b, m.h}, err
}

type block struct {
	devmapper.Block
	h *node
}

func (b block) Discard(off, length int64) error {
	if err := b.h.life.step(); err != nil {
		return err
	}
	return b.Block.Discard(off, length)
}

func (b block) WriteAt(p []byte, off int64) (int, error) {
	if err := b.h.life.step(); err != nil {
		return 0, err
	}
	return b.Block.WriteAt(p, off)
}
