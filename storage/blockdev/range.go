// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// inside refuses a range that does not lie within f as it is.
func inside(f *os.File, verb string, off, n int64) error {
	size, err := Size(f)
	if err != nil {
		return err
	}
	if off < 0 || n < 0 || off > size || n > size-off {
		return failure.New(failure.Usage, "%s: %s %d bytes at %d: outside its %d bytes", f.Name(), verb, n, off, size)
	}
	return nil
}

// allocate is fallocate(2) with a mode that leaves the size of f as it is.
func allocate(f *os.File, mode uint32, off, n int64) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			failed = unix.Fallocate(int(fd), mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
			if failed != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, failed)
}
