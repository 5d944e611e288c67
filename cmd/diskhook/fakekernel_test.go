// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"context"
	"errors"
	"fmt"
	"net/rpc"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/member/membertest"
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
