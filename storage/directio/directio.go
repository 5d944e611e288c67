// SPDX-License-Identifier: Apache-2.0

// Package directio reads and writes files past the page cache (O_DIRECT,
// open(2)) without asking its caller for aligned buffers and offsets.
//
// A copy of hundreds of gigabytes through the page cache throws out what the
// guests on the host have there, and costs a copy in memory for every byte.
// But direct I/O is picky, and tmpfs, overlayfs and some FUSE file systems
// refuse it. So a File is direct while that works, goes on through the page
// cache as soon as its storage says EINVAL, and takes the detour through an
// aligned buffer where a caller's is not.
package directio

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Align is what offset, length and memory of a request have to be multiples
// of to go straight to the storage: no disk has larger logical blocks.
const Align = 4096

// File is an open file or block device. Its methods are safe for concurrent
// use.
type File struct {
	f      *os.File
	direct atomic.Bool
}

// New takes over the use of f's description and switches it to direct I/O if
// its storage can. Other descriptors of the same description are switched,
// too, until Restore.
func New(f *os.File) *File {
	d := &File{f: f}
	d.direct.Store(set(f, true))
	return d
}

// Direct says whether the page cache is passed by.
func (d *File) Direct() bool { return d.direct.Load() }

// Restore switches back to the page cache.
func (d *File) Restore() {
	if d.direct.Swap(false) {
		set(d.f, false)
	}
}

// ReadAt is os.File.ReadAt.
func (d *File) ReadAt(p []byte, off int64) (int, error) {
	if !d.Direct() || Fits(p, off) {
		return d.read(p, off)
	}
	from := off &^ (Align - 1)
	bounce := Buffer((off + int64(len(p)) - from + Align - 1) &^ (Align - 1))
	n, err := d.read(bounce, from)
	got := copy(p, bounce[min(int(off-from), n):n])
	if got == len(p) {
		return got, nil
	}
	return got, err
}

// read is pread(2) until p is full or the file ends. os.File.ReadAt would ask
// again at the end of a file, which lies at no aligned offset.
func (d *File) read(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := unix.Pread(int(d.f.Fd()), p[n:], off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR) || n == 0 && d.refused(err):
			continue
		case err != nil:
			return n, &os.PathError{Op: "read", Path: d.f.Name(), Err: err}
		case m == 0:
			return n, io.EOF
		}
		n += m
		if n < len(p) && d.Direct() && m%512 != 0 {
			return n, io.EOF
		}
	}
	return n, nil
}

// WriteAt is os.File.WriteAt of what is aligned. Everything else has to be
// written through a descriptor without direct I/O; see Fits.
func (d *File) WriteAt(p []byte, off int64) (int, error) {
	n, err := d.f.WriteAt(p, off)
	if n == 0 && d.refused(err) {
		return d.f.WriteAt(p, off)
	}
	return n, err
}

// Fits says whether a request for p at off is aligned.
func Fits(p []byte, off int64) bool {
	return (uintptr(unsafe.Pointer(unsafe.SliceData(p)))|uintptr(len(p))|uintptr(off))&(Align-1) == 0
}

// refused says that a direct request failed since it was direct, and switches
// to the page cache.
func (d *File) refused(err error) bool {
	if !errors.Is(err, unix.EINVAL) || !d.Direct() {
		return false
	}
	d.Restore()
	return true
}

// set changes O_DIRECT of an open description.
func set(f *os.File, on bool) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		var flags int
		if flags, failed = unix.FcntlInt(fd, unix.F_GETFL, 0); failed != nil {
			return
		}
		flags &^= unix.O_DIRECT
		if on {
			flags |= unix.O_DIRECT
		}
		_, failed = unix.FcntlInt(fd, unix.F_SETFL, flags)
	})
	return err == nil && failed == nil
}

// Buffer makes n bytes of aligned memory.
func Buffer(n int64) []byte {
	b := make([]byte, n+Align)
	shift := int64(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (Align - 1))
	return b[shift : shift+n : shift+n]
}
