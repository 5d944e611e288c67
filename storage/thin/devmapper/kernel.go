// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

const (
	control        = "/dev/mapper/control"
	noSpaceTimeout = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
)

// udevFlags ride on the number that the kernel puts into the event of a change
// (DM_COOKIE), where udev's rules find them: no rules for subsystems, disks and
// others, and no nodes made by a library. /dev/mapper/NAME still appears.
const udevFlags = (0x02 | 0x04 | 0x08 | 0x20 | 0x40) << 16

// removeTries and removePause bound how long Remove waits for those who only look
// at a device, as udev does after every change.
const (
	removeTries = 25
	removePause = 200 * time.Millisecond
)

// Kernel is this host's kernel. It needs root. The zero value works.
type Kernel struct{}

var _ Mapper = Kernel{}

func openControl() (*os.File, error) {
	f, err := os.OpenFile(control, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil, failure.Hint(failure.Wrap(failure.Precondition, fmt.Errorf("device-mapper: %w", err)), "run `modprobe dm-mod dm-thin-pool`")
	}
	return f, failure.Denied(err)
}

// do sends a packet and leaves the answer in what it returns; one that has no
// room is asked for again with more.
func do(ctx context.Context, op string, cmd uint, name, uuid string, flags uint32, data []byte, prepare func(*unix.DmIoctl)) (packet, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if !ValidName(name) && cmd != unix.DM_LIST_DEVICES {
		return nil, failure.New(failure.Usage, "mapped device %q: %s: no name for one", name, op)
	}
	f, err := openControl()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for room := 16 << 10; ; room *= 4 {
		p := newPacket(name, uuid, flags, data, room)
		if prepare != nil {
			prepare(p.header())
		}
		if errno := ioctl(f, cmd, p); errno != 0 {
			return nil, &Error{op, name, errno}
		}
		if p.header().Flags&unix.DM_BUFFER_FULL_FLAG == 0 || room >= 16<<20 {
			return p, nil
		}
	}
}

func ioctl(f *os.File, cmd uint, p packet) syscall.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(cmd), uintptr(unsafe.Pointer(unsafe.SliceData(p))))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// Create is Mapper's.
func (k Kernel) Create(ctx context.Context, name, uuid string, table Table) (Info, error) {
	if _, err := do(ctx, "create", unix.DM_DEV_CREATE, name, uuid, 0, nil, nil); err != nil {
		return Info{}, err
	}
	err := k.Load(ctx, name, table)
	if err == nil {
		err = k.Resume(ctx, name)
	}
	if err != nil {
		return Info{}, errors.Join(err, k.Remove(context.WithoutCancel(ctx), name))
	}
	return k.Info(ctx, name)
}

// Load is Mapper's.
func (Kernel) Load(ctx context.Context, name string, table Table) error {
	_, err := do(ctx, "load a table", unix.DM_TABLE_LOAD, name, "", 0, encodeTable(table), func(h *unix.DmIoctl) {
		h.Target_count = uint32(len(table))
	})
	return err
}

// Clear is Mapper's.
func (Kernel) Clear(ctx context.Context, name string) error {
	_, err := do(ctx, "clear the table", unix.DM_TABLE_CLEAR, name, "", 0, nil, nil)
	return err
}

// Suspend is Mapper's. A file system on the device is not frozen: what is on a
// volume is its guest's, and none is mounted here.
func (Kernel) Suspend(ctx context.Context, name string, noflush bool) error {
	flags := uint32(unix.DM_SUSPEND_FLAG | unix.DM_SKIP_LOCKFS_FLAG)
	if noflush {
		flags |= unix.DM_NOFLUSH_FLAG
	}
	_, err := do(ctx, "suspend", unix.DM_DEV_SUSPEND, name, "", flags, nil, nil)
	return err
}

// Resume is Mapper's. The kernel has one command for both.
func (Kernel) Resume(ctx context.Context, name string) error {
	_, err := do(ctx, "resume", unix.DM_DEV_SUSPEND, name, "", 0, nil, func(h *unix.DmIoctl) { h.Event_nr = udevFlags })
	return err
}

// Remove is Mapper's.
func (Kernel) Remove(ctx context.Context, name string) error {
	for try := 1; ; try++ {
		_, err := do(ctx, "remove", unix.DM_DEV_REMOVE, name, "", 0, nil, func(h *unix.DmIoctl) { h.Event_nr = udevFlags })
		if !errors.Is(err, unix.EBUSY) || try == removeTries {
			return err
		}
		select {
		case <-time.After(removePause):
		case <-ctx.Done():
			return err
		}
	}
}

// Info is Mapper's.
func (Kernel) Info(ctx context.Context, name string) (Info, error) {
	p, err := do(ctx, "look", unix.DM_DEV_STATUS, name, "", 0, nil, nil)
	if err != nil {
		return Info{}, err
	}
	return p.info(), nil
}

// List is Mapper's.
func (Kernel) List(ctx context.Context) ([]string, error) {
	p, err := do(ctx, "list", unix.DM_LIST_DEVICES, "", "", 0, nil, nil)
	if err != nil {
		return nil, err
	}
	return p.names(), nil
}

// Table is Mapper's.
func (Kernel) Table(ctx context.Context, name string) (Table, error) {
	p, err := do(ctx, "read the table", unix.DM_TABLE_STATUS, name, "", unix.DM_STATUS_TABLE_FLAG|unix.DM_NOFLUSH_FLAG, nil, nil)
	if err != nil {
		return nil, err
	}
	var t Table
	for _, l := range p.lines() {
		target, err := ParseTarget(l.name, l.text)
		if err != nil {
			return nil, fmt.Errorf("mapped device %s: %w", name, err)
		}
		t = append(t, Segment{l.length, target})
	}
	return t, nil
}

// Status is Mapper's.
func (Kernel) Status(ctx context.Context, name string, noflush bool) (Status, error) {
	var flags uint32
	if noflush {
		flags = unix.DM_NOFLUSH_FLAG
	}
	p, err := do(ctx, "read the status", unix.DM_TABLE_STATUS, name, "", flags, nil, nil)
	if err != nil {
		return Status{}, err
	}
	lines := p.lines()
	if len(lines) != 1 {
		return Status{}, failure.New(failure.Precondition, "mapped device %s: %d targets, one was expected", name, len(lines))
	}
	return parseStatus(name, lines[0])
}

func parseStatus(name string, l line) (Status, error) {
	var err error
	switch l.name {
	case "thin-pool":
		var s PoolStatus
		if s, err = ParsePoolStatus(l.text); err == nil {
			return Status{Pool: &s}, nil
		}
	case "thin":
		var s ThinStatus
		if s, err = ParseThinStatus(l.text); err == nil {
			return Status{Thin: &s}, nil
		}
	default:
		err = failure.New(failure.Precondition, "it is of type %q, neither a thin pool nor a thin device", l.name)
	}
	return Status{}, fmt.Errorf("mapped device %s: %w", name, err)
}

// Message is Mapper's: struct dm_target_msg, a sector and the words.
func (Kernel) Message(ctx context.Context, pool string, m Message) error {
	data := append(make([]byte, 8), m...)
	_, err := do(ctx, fmt.Sprintf("message %q", m), unix.DM_TARGET_MSG, pool, "", 0, append(data, 0), nil)
	return err
}

// SetNoSpaceTimeout is Mapper's: a parameter of the module, in seconds.
func (Kernel) SetNoSpaceTimeout(d time.Duration) error {
	seconds := int64((d + time.Second - 1) / time.Second)
	return failure.Denied(os.WriteFile(noSpaceTimeout, []byte(strconv.FormatInt(seconds, 10)), 0))
}
