// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/member/membertest"
	"diskhook/storage/thin/metadata"
)

// The kernel in memory of a script: it lives in the test's process and outlives each
// diskhook, whose calls come over a socket. The volume group of its thin clusters is
// a directory of files.

const fakeKernelVariable = "DISKHOOK_FAKE_KERNEL"

// fakeKernel has device-mapper be that of the script, or that of a host on which no
// pool runs: this machine's kernel may have none.
func fakeKernel(t *thinCluster) {
	socket := os.Getenv(fakeKernelVariable)
	if socket == "" {
		t.mapper = devmappertest.NewKernel(devmappertest.NewSAN())
		return
	}
	client, err := rpc.Dial("unix", socket)
	if err != nil {
		panic(err)
	}
	k := remoteKernel{client}
	t.mapper = k
	t.windows = membertest.Windows{Kernel: k, Step: membertest.Alive, Look: membertest.Alive}
}

// KernelCall is a call of one of the methods of devmapper.Mapper, or of Windows.
type KernelCall struct {
	Op, Name, UUID string
	Table          string // as the kernel takes it
	Noflush        bool
	Message        devmapper.Message
	Since          uint32
	Wait           time.Duration
	Handle         int
	Off, Length    int64
	Root           uint64
	Image          devmappertest.Image
}

// KernelAnswer is what one answers.
type KernelAnswer struct {
	Info   devmapper.Info
	Names  []string
	Table  string
	Status devmapper.Status
	Events uint32
	Handle int
	Image  devmappertest.Image
	Errno  syscall.Errno // 0: see Text
	Op     string
	Text   string
}

// remoteKernel is devmapper.Mapper over a socket.
type remoteKernel struct{ *rpc.Client }

func (k remoteKernel) do(ctx context.Context, c KernelCall) (KernelAnswer, error) {
	if err := context.Cause(ctx); err != nil {
		return KernelAnswer{}, err
	}
	var a KernelAnswer
	if err := k.Call("Kernel.Do", c, &a); err != nil {
		return a, err
	}
	switch {
	case a.Errno != 0:
		return a, &devmapper.Error{Op: a.Op, Name: c.Name, Errno: a.Errno}
	case a.Text != "":
		return a, errors.New(a.Text)
	}
	return a, nil
}

func (k remoteKernel) Create(ctx context.Context, name, uuid string, t devmapper.Table) (devmapper.Info, error) {
	a, err := k.do(ctx, KernelCall{Op: "create", Name: name, UUID: uuid, Table: t.String()})
	return a.Info, err
}

func (k remoteKernel) Load(ctx context.Context, name string, t devmapper.Table) error {
	_, err := k.do(ctx, KernelCall{Op: "load", Name: name, Table: t.String()})
	return err
}

func (k remoteKernel) Clear(ctx context.Context, name string) error {
	_, err := k.do(ctx, KernelCall{Op: "clear", Name: name})
	return err
}

func (k remoteKernel) Suspend(ctx context.Context, name string, noflush bool) error {
	_, err := k.do(ctx, KernelCall{Op: "suspend", Name: name, Noflush: noflush})
	return err
}

func (k remoteKernel) Resume(ctx context.Context, name string) error {
	_, err := k.do(ctx, KernelCall{Op: "resume", Name: name})
	return err
}

func (k remoteKernel) Remove(ctx context.Context, name string) error {
	_, err := k.do(ctx, KernelCall{Op: "remove", Name: name})
	return err
}

func (k remoteKernel) Info(ctx context.Context, name string) (devmapper.Info, error) {
	a, err := k.do(ctx, KernelCall{Op: "info", Name: name})
	return a.Info, err
}

func (k remoteKernel) List(ctx context.Context) ([]string, error) {
	a, err := k.do(ctx, KernelCall{Op: "list"})
	return a.Names, err
}

func (k remoteKernel) Table(ctx context.Context, name string) (devmapper.Table, error) {
	a, err := k.do(ctx, KernelCall{Op: "table", Name: name})
	if err != nil {
		return nil, err
	}
	return parseTable(a.Table)
}

func (k remoteKernel) Status(ctx context.Context, name string, noflush bool) (devmapper.Status, error) {
	a, err := k.do(ctx, KernelCall{Op: "status", Name: name, Noflush: noflush})
	return a.Status, err
}

func (k remoteKernel) Message(ctx context.Context, pool string, m devmapper.Message) error {
	_, err := k.do(ctx, KernelCall{Op: "message", Name: pool, Message: m})
	return err
}

func (k remoteKernel) Wait(ctx context.Context, name string, since uint32) (uint32, error) {
	for { // so that the end of ctx is noticed
		a, err := k.do(ctx, KernelCall{Op: "wait", Name: name, Since: since, Wait: 50 * time.Millisecond})
		if err != nil || a.Events != since {
			return a.Events, err
		}
	}
}

func (k remoteKernel) SetNoSpaceTimeout(time.Duration) error { return nil }

func (k remoteKernel) Open(ctx context.Context, name string) (devmapper.Block, error) {
	a, err := k.do(ctx, KernelCall{Op: "open", Name: name})
	if err != nil {
		return nil, err
	}
	return remoteBlock{k, a.Handle}, nil
}

func (k remoteKernel) WriteMetadata(name string, image devmappertest.Image) error {
	_, err := k.do(context.Background(), KernelCall{Op: "write metadata", Name: name, Image: image})
	return err
}

func (k remoteKernel) ReadMetadata(name string, root uint64) (devmappertest.Image, error) {
	a, err := k.do(context.Background(), KernelCall{Op: "read metadata", Name: name, Root: root})
	return whole(a.Image), err
}

// parseTable reads what devmapper.Table.String writes.
func parseTable(text string) (devmapper.Table, error) {
	var table devmapper.Table
	for line := range strings.SplitSeq(text, "\n") {
		words := strings.SplitN(line, " ", 4)
		if len(words) < 3 {
			return nil, fmt.Errorf("no segment: %q", line)
		}
		length, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return nil, err
		}
		target, err := devmapper.ParseTarget(words[2], strings.Join(words[3:], ""))
		if err != nil {
			return nil, err
		}
		table = append(table, devmapper.Segment{Length: length, Target: target})
	}
	return table, nil
}

// whole has the maps of an image that gob leaves out because they are empty.
func whole(image devmappertest.Image) devmappertest.Image {
	if image.Devices == nil {
		image.Devices = map[uint32]devmappertest.ThinImage{}
	}
	for id, d := range image.Devices {
		if d.Mappings == nil {
			d.Mappings = map[uint64]devmappertest.Mapped{}
			image.Devices[id] = d
		}
	}
	return image
}

// remoteBlock is an open device. Nobody reads or writes by it: guests do not run here.
type remoteBlock struct {
	k      remoteKernel
	handle int
}

func (remoteBlock) ReadAt([]byte, int64) (int, error)  { return 0, errors.ErrUnsupported }
func (remoteBlock) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (remoteBlock) Flush() error                       { return errors.ErrUnsupported }

func (b remoteBlock) Discard(off, length int64) error {
	_, err := b.k.do(context.Background(), KernelCall{Op: "discard", Handle: b.handle, Off: off, Length: length})
	return err
}

func (b remoteBlock) Close() error {
	_, err := b.k.do(context.Background(), KernelCall{Op: "close", Handle: b.handle})
	return err
}

// kernelHost is the host's side of it.
type kernelHost struct {
	nodes string // directory of device nodes
	san   *devmappertest.SAN

	mu     sync.Mutex
	kernel *devmappertest.Kernel
	disks  map[string]string          // what the SAN calls a file
	paths  map[string]string          // and the other way round
	seen   map[string]bool            // windows whose metadata the SAN has
	guests map[string]devmapper.Block // devices that somebody has open
}

// kernelConnection is one diskhook's.
type kernelConnection struct {
	*kernelHost
	open map[int]devmapper.Block
}

// Do does a call.
func (c *kernelConnection) Do(call KernelCall, a *KernelAnswer) error {
	if err := c.answer(call, a); err != nil {
		if refused := new(devmapper.Error); errors.As(err, &refused) {
			a.Errno, a.Op = refused.Errno, refused.Op
		}
		a.Text = err.Error()
	}
	return nil
}

func (c *kernelConnection) answer(call KernelCall, a *KernelAnswer) (err error) {
	ctx := context.Background()
	c.mu.Lock()
	k := c.kernel
	c.mu.Unlock()
	switch call.Op {
	case "create", "load":
		return c.load(ctx, k, call, a)
	case "clear":
		return k.Clear(ctx, call.Name)
	case "suspend":
		return k.Suspend(ctx, call.Name, call.Noflush)
	case "resume":
		return k.Resume(ctx, call.Name)
	case "remove":
		info, _ := k.Info(ctx, call.Name)
		if err := k.Remove(ctx, call.Name); err != nil {
			return err
		}
		return os.Remove(c.node(info))
	case "info":
		a.Info, err = k.Info(ctx, call.Name)
	case "list":
		a.Names, err = k.List(ctx)
	case "table":
		var t devmapper.Table
		t, err = k.Table(ctx, call.Name)
		a.Table = c.named(t.String())
	case "status":
		a.Status, err = k.Status(ctx, call.Name, call.Noflush)
	case "message":
		return k.Message(ctx, call.Name, call.Message)
	case "wait":
		ctx, cancel := context.WithTimeout(ctx, call.Wait)
		defer cancel()
		if a.Events, err = k.Wait(ctx, call.Name, call.Since); errors.Is(err, context.DeadlineExceeded) {
			a.Events, err = call.Since, nil
		}
	case "write metadata":
		return k.WriteMetadata(call.Name, whole(call.Image))
	case "read metadata":
		a.Image, err = k.ReadMetadata(call.Name, call.Root)
	case "open":
		a.Handle = len(c.open) + 1
		c.open[a.Handle], err = k.Open(ctx, call.Name)
	case "discard":
		return c.open[call.Handle].Discard(call.Off, call.Length)
	case "close":
		err = c.open[call.Handle].Close()
		c.open[call.Handle] = nil
	default:
		err = fmt.Errorf("no call %q", call.Op)
	}
	return err
}

func (h *kernelHost) node(info devmapper.Info) string {
	return filepath.Join(h.nodes, fmt.Sprint("dm-", info.Minor))
}

// load makes or changes a device over files, which the SAN has as disks.
func (h *kernelHost) load(ctx context.Context, k *devmappertest.Kernel, call KernelCall, a *KernelAnswer) error {
	t, err := parseTable(h.numbered(call.Table))
	if err != nil {
		return err
	}
	if call.Op == "load" {
		return k.Load(ctx, call.Name, t)
	}
	if a.Info, err = k.Create(ctx, call.Name, call.UUID, t); err != nil {
		return err
	}
	if err := os.WriteFile(h.node(a.Info), nil, 0o600); err != nil {
		return err
	}
	if linear, ok := t[0].Target.(devmapper.Linear); ok {
		return h.adopt(ctx, k, call.Name, linear)
	}
	return nil
}

// numbered has the SAN's names for the files in a table, named the files'.
func (h *kernelHost) numbered(table string) string {
	return h.each(table, func(word string) string {
		if !strings.HasPrefix(word, "/") || strings.HasPrefix(word, "/dev/") {
			return word
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.disks[word] == "" {
			h.disks[word] = h.san.AddDisk(1 << 30)
			h.paths[h.disks[word]] = word
		}
		return h.disks[word]
	})
}

func (h *kernelHost) named(table string) string {
	return h.each(table, func(word string) string {
		h.mu.Lock()
		defer h.mu.Unlock()
		if path := h.paths[word]; path != "" {
			return path
		}
		return word
	})
}

func (*kernelHost) each(table string, change func(string) string) string {
	words := strings.Split(table, " ")
	for i, word := range words {
		words[i] = change(word)
	}
	return strings.Join(words, " ")
}

// adopt has the SAN know the metadata that the master wrote to a window.
func (h *kernelHost) adopt(ctx context.Context, k *devmappertest.Kernel, name string, at devmapper.Linear) error {
	h.mu.Lock()
	path, window := h.paths[at.Device], fmt.Sprint(at)
	known := h.seen[window]
	h.seen[window] = true
	h.mu.Unlock()
	if known {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := metadata.Open(window512{f, int64(at.Start) * 512})
	if err != nil {
		return nil // nothing was written to it yet
	}
	image, err := membertest.Decode(ctx, r)
	if err != nil {
		return err
	}
	return k.WriteMetadata(name, image)
}

// window512 is a file from an offset on.
type window512 struct {
	*os.File
	from int64
}

func (w window512) ReadAt(p []byte, off int64) (int, error) { return w.File.ReadAt(p, w.from+off) }

func (w window512) Size() int64 {
	info, err := w.Stat()
	if err != nil {
		return 0
	}
	return info.Size() - w.from
}

// kernels are those of scripts, which run side by side.
type kernels struct {
	mu     sync.Mutex
	byWork map[string]*kernelHost
}

// kernel: a host with device-mapper.
// kernel open NAME, kernel close NAME: somebody has a device open, or no more.
// kernel reboot: no device is there any more.
func (k *kernels) command(ts *testscript.TestScript, _ bool, args []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	work := ts.Getenv("WORK")
	h := k.byWork[work]
	switch {
	case len(args) == 0:
		h := &kernelHost{
			nodes: filepath.Join(work, "nodes"), san: devmappertest.NewSAN(),
			disks: map[string]string{}, paths: map[string]string{}, seen: map[string]bool{}, guests: map[string]devmapper.Block{},
		}
		h.kernel = devmappertest.NewKernel(h.san)
		ts.Check(os.Mkdir(h.nodes, 0o755))
		listener, err := net.Listen("unix", filepath.Join(work, "kernel"))
		ts.Check(err)
		ts.Defer(func() { listener.Close() })
		go h.serve(listener)
		k.byWork[work] = h
		ts.Setenv(fakeKernelVariable, filepath.Join(work, "kernel"))
		ts.Setenv("DISKHOOK_DEV", h.nodes)
	case args[0] == "open":
		b, err := h.kernel.Open(context.Background(), args[1])
		ts.Check(err)
		h.guests[args[1]] = b
	case args[0] == "close":
		ts.Check(h.guests[args[1]].Close())
	case args[0] == "reboot":
		h.mu.Lock()
		defer h.mu.Unlock()
		h.kernel.Crash()
		h.kernel = devmappertest.NewKernel(h.san)
		ts.Check(os.RemoveAll(filepath.Join(ts.Getenv("DISKHOOK_ROOT"), "run")))
	default:
		ts.Fatalf("kernel: no word %q", args[0])
	}
}

func (h *kernelHost) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go h.talk(conn)
	}
}

// talk does the calls of one diskhook. What it had open is closed at its end.
func (h *kernelHost) talk(conn io.ReadWriteCloser) {
	c := &kernelConnection{h, map[int]devmapper.Block{}}
	server := rpc.NewServer()
	if err := server.RegisterName("Kernel", c); err != nil {
		panic(err)
	}
	server.ServeConn(conn)
	for _, b := range c.open {
		if b != nil {
			b.Close()
		}
	}
}
