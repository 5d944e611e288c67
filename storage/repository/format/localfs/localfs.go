// SPDX-License-Identifier: Apache-2.0

// Package localfs is the format localfs-1.0: a directory of a file system that
// one host alone has mounted.
//
// Parameters: path, absolute. Locks are flock(2), which the kernel gives up with
// the process, so nobody ever takes one over. Where the file system shares
// blocks (XFS, btrfs), copies within the repository cost nothing.
package localfs

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/directory"
)

// Name is the format's.
const Name = "localfs-1.0"

// Format implements format.Format.
type Format struct{}

// Name implements format.Format.
func (Format) Name() string { return Name }

// Create implements format.Format.
func (f Format) Create(ctx context.Context, parameters map[string]string) error {
	if err := f.CanCreate(ctx, parameters); err != nil {
		return err
	}
	p, err := find(parameters)
	if err != nil {
		return err
	}
	return p.Create()
}

// CanCreate implements format.Format.
func (Format) CanCreate(_ context.Context, parameters map[string]string) error {
	p, err := find(parameters)
	if err == nil {
		err = p.Ours()
	}
	if err != nil {
		return err
	}
	return local(filepath.Dir(p.Root))
}

// Open implements format.Format.
func (Format) Open(_ context.Context, parameters map[string]string) (format.Place, error) {
	p, err := find(parameters)
	if err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	if err := local(p.Root); err != nil {
		return nil, err
	}
	return p, nil
}

func find(parameters map[string]string) (*place, error) {
	root, err := directory.RootOf(Name, parameters)
	return &place{Place: directory.Place{Root: root}}, err
}

// remote are the file systems that other hosts may have mounted, by the magic
// number of statfs(2): NFS, SMB1, CIFS, SMB2, Ceph, GFS2, OCFS2.
var remote = []uint32{0x6969, 0x517b, 0xff534d42, 0xfe534d42, 0x00c36400, 0x01161970, 0x7461636f}

// local refuses a file system on which flock may exclude nobody elsewhere.
func local(dir string) error {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if parent := filepath.Dir(dir); err == unix.ENOENT && parent != dir {
			dir = parent // Create makes it
			continue
		}
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if slices.Contains(remote, uint32(st.Type)) {
		err := failure.New(failure.Precondition, "%s: it is on a file system that other hosts may have mounted", dir)
		return failure.Hint(err, "connect it as nfs-3.4")
	}
	return nil
}

type place struct {
	directory.Place
	once   sync.Once
	clones bool
}

// Close implements format.Place.
func (p *place) Close() error { return nil }

// Capabilities implements format.Place.
func (p *place) Capabilities() format.Capabilities {
	p.once.Do(func() { p.clones = canClone(filepath.Join(p.Root, "data")) })
	return format.Capabilities{Format: Name, Clones: p.clones, Sparse: true}
}

// canClone tries it with two files without names (ioctl_ficlone(2)).
func canClone(dir string) bool {
	var fds [2]int
	for i := range fds {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	return unix.IoctlFileClone(fds[1], fds[0]) == nil
}

// Lock implements format.Locks.
func (p *place) Lock(ctx context.Context, name string) (format.Lock, error) {
	l, err := lock.Acquire(ctx, p.Locks(), name)
	return p.held(l, name, err)
}

// TryLock implements format.Locks.
func (p *place) TryLock(_ context.Context, name string) (format.Lock, error) {
	l, err := lock.Try(p.Locks(), name)
	return p.held(l, name, err)
}

// Held implements format.Locks.
func (p *place) Held(_ context.Context, name string) (bool, error) {
	return lock.Held(p.Locks(), name)
}

func (p *place) held(l *lock.Lock, name string, err error) (format.Lock, error) {
	if err != nil {
		return nil, err
	}
	return &held{l, filepath.Join(p.Locks(), name)}, nil
}

type held struct {
	*lock.Lock
	path string
}

func (h *held) Check() error    { return nil }
func (h *held) TakenOver() bool { return false }

// Discard removes the file while the lock is held: whoever has opened it notices
// that it was replaced once he gets the lock, and makes another.
func (h *held) Discard() {
	_ = os.Remove(h.path)
	h.Release()
}
