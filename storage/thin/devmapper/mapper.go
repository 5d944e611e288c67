// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"diskhook/storage/failure"
)

// Mapper makes and changes mapped devices. Names have to pass ValidName.
type Mapper interface {
	// Create makes a device with a table and starts it. When that fails there is
	// no device. uuid is for whoever lists devices; it must be unique.
	Create(ctx context.Context, name, uuid string, table Table) (Info, error)
	// Load puts a table beside the live one; Resume makes it the live one, Clear
	// drops it.
	Load(ctx context.Context, name string, table Table) error
	Clear(ctx context.Context, name string) error
	// Suspend holds back all I/O of a device, and of the thin devices of a pool.
	// It waits for what is under way, which does not end while a pool has no
	// space, unless noflush holds that back, too.
	Suspend(ctx context.Context, name string, noflush bool) error
	Resume(ctx context.Context, name string) error
	// Remove removes a device that nobody has open, or else fails with EBUSY.
	Remove(ctx context.Context, name string) error

	// Info describes a device; one that is not there is a failure.NotFound.
	Info(ctx context.Context, name string) (Info, error)
	// List names all devices, those of others too.
	List(ctx context.Context) ([]string, error)
	// Table is the live table.
	Table(ctx context.Context, name string) (Table, error)
	// Status is the status of a pool or thin device that has one target. It
	// commits the pool's transaction unless noflush.
	Status(ctx context.Context, name string, noflush bool) (Status, error)
	// Message tells a pool to do something; it is committed when it returns.
	Message(ctx context.Context, pool string, m Message) error
	// Wait returns when a device has another event number than since, and that.
	Wait(ctx context.Context, name string, since uint32) (uint32, error)

	// Open opens a device past the page cache.
	Open(ctx context.Context, name string) (Block, error)
	// SetNoSpaceTimeout sets, for all pools of this host, after how long writes
	// that wait for space fail; 0 is never.
	SetNoSpaceTimeout(d time.Duration) error
}

// Block is an open mapped device. Requests are aligned to 4 KiB, in memory too
// (directio.Buffer), discards to 512 bytes.
type Block interface {
	io.ReaderAt
	io.WriterAt
	// Discard says that a range is not needed. A thin device drops the blocks
	// that lie wholly in it. Nil does not say that it did.
	Discard(off, length int64) error
	Flush() error
	Close() error
}

// Info is what device-mapper knows of a device.
type Info struct {
	Name, UUID   string
	Major, Minor uint32
	Open         int // how often it is open, other devices' tables included
	Events       uint32
	Suspended    bool
	Live         bool // it has a table
	Inactive     bool // it has a table that was loaded and not resumed
}

// Device is how tables name it.
func (i Info) Device() string { return fmt.Sprintf("%d:%d", i.Major, i.Minor) }

// Error is a refusal of the kernel.
type Error struct {
	Op, Name string
	Errno    syscall.Errno
}

// Error names the object first.
func (e *Error) Error() string { return fmt.Sprintf("mapped device %s: %s: %v", e.Name, e.Op, e.Errno) }

// Unwrap makes errors.Is find the number and what kind of failure it is.
func (e *Error) Unwrap() []error {
	if kind, ok := map[syscall.Errno]*failure.Kind{
		syscall.ENXIO:  failure.NotFound, // no such device
		syscall.EBUSY:  failure.Conflict,
		syscall.EEXIST: failure.Conflict,
		syscall.ENOSPC: failure.NoSpace,
	}[e.Errno]; ok {
		return []error{e.Errno, kind}
	}
	return []error{e.Errno}
}

// ValidName says whether a name may be given to a device: at most 127 bytes of
// those that libdm and udev leave as they are.
func ValidName(name string) bool {
	const others = "#+-.:=@_"
	if name == "" || len(name) > 127 || name == "." || name == ".." {
		return false
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(others, c) >= 0) {
			return false
		}
	}
	return true
}
