// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/directio"
)

// open is an open device of the kernel.
type open struct {
	*directio.File
	file *os.File
}

// Open is Mapper's.
func (k Kernel) Open(ctx context.Context, name string) (Block, error) {
	info, err := k.Info(ctx, name)
	if err != nil {
		return nil, err
	}
	// The kernel makes this node itself, before the device can be used. udev only
	// adds /dev/mapper/NAME to it, some time later.
	f, err := os.OpenFile(fmt.Sprintf("/dev/dm-%d", info.Minor), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mapped device %s: %w", name, err)
	}
	return open{directio.New(f), f}, nil
}

// Discard is Block's.
func (o open) Discard(off, length int64) error {
	part := [2]uint64{uint64(off), uint64(length)}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, o.file.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&part)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return fmt.Errorf("%s: discard %d bytes at %d: %w", o.file.Name(), length, off, errno)
	}
}

// Flush is Block's.
func (o open) Flush() error { return blockdev.Flush(o.file) }

// Close is Block's.
func (o open) Close() error { return o.file.Close() }
