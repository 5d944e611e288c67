// SPDX-License-Identifier: Apache-2.0

// Package nfs is the format nfs-3.4: a directory of an NFS export that several
// hosts have mounted, of version 3 or 4.
//
// Parameters: path, absolute, below the mount point. The mount is the operator's:
//
//	mount -t nfs4 -o vers=4.2,hard,lookupcache=pos nas:/images /srv/images
//
// Documents are read past the page cache, and directories once the server was asked
// for their attributes, so that one that changed is read anew. A name that another
// host has just made has to be seen, so that a mount that keeps negative lookups
// (lookupcache=all, the default; nfs(5)) is refused, as is one whose locks
// exclude nobody on other hosts (nolock, local_lock).
//
// What the server has been sent cannot be called back: a rename that this host's
// kernel repeats after the server has expired the host's locks may replace a newer
// document. Servers of NFS 4.1 and later refuse what an expired session sends.
//
// A lock is flock(2), which is the server's on NFS, and a record in the locked
// file that its holder renews (record.go). The record finds out what the lock does not tell:
// that the last holder was never seen to end, so that it may wake up and write;
// and that two hosts have the lock at once, since it is not the server's.
package nfs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/directory"
)

// Name is the format's.
const Name = "nfs-3.4"

// Format implements format.Format. HostID and BootID are needed.
type Format struct {
	// HostID tells hosts apart, BootID the boots of one.
	HostID, BootID string
	// Beat is how often a holder renews its record; 0 is 2 s. All hosts have
	// the same.
	Beat time.Duration
	// Silence is for how long a holder that cannot renew its record still takes
	// its lock for its own; 0 is 10 beats.
	Silence time.Duration
	// Mounted returns the options of the NFS mount that dir is on; nil looks
	// into mountinfo.
	Mounted func(dir string) (options []string, err error)
}

// Name implements format.Format.
func (Format) Name() string { return Name }

// Create implements format.Format.
func (f Format) Create(ctx context.Context, parameters map[string]string) error {
	if err := f.CanCreate(ctx, parameters); err != nil {
		return err
	}
	p, err := f.find(parameters)
	if err != nil {
		return err
	}
	return p.Create()
}

// CanCreate implements format.Format.
func (f Format) CanCreate(_ context.Context, parameters map[string]string) error {
	p, err := f.find(parameters)
	if err == nil {
		err = p.Ours()
	}
	if err != nil {
		return err
	}
	return f.shared(existing(filepath.Dir(p.Root)))
}

// existing is dir, or the next directory above it that there is.
func existing(dir string) string {
	for dir != "/" {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// Open implements format.Format.
func (f Format) Open(_ context.Context, parameters map[string]string) (format.Place, error) {
	p, err := f.find(parameters)
	if err == nil {
		err = p.Check()
	}
	if err == nil {
		err = f.shared(p.Root)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (f Format) find(parameters map[string]string) (*place, error) {
	root, err := directory.RootOf(Name, parameters)
	if err != nil {
		return nil, err
	}
	if f.Beat == 0 {
		f.Beat = 2 * time.Second
	}
	if f.Silence == 0 {
		f.Silence = mostBeats * f.Beat
	}
	return &place{Place: directory.Place{Root: root, ReadFile: readDirect, Revalidate: revalidate}, host: f}, nil
}

// shared refuses a mount on which hosts would not see, or not exclude, each other.
func (f Format) shared(dir string) error {
	look := f.Mounted
	if look == nil {
		look = mounted
	}
	options, err := look(dir)
	if err != nil {
		return err
	}
	seesNew := false
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case o == "nolock", key == "local_lock" && value != "none":
			err := failure.New(failure.Precondition, "%s: its locks exclude nobody on other hosts (%s)", dir, o)
			return failure.Hint(err, "mount it without %s", o)
		case key == "lookupcache" && (value == "none" || value == "pos" || value == "positive"), o == "noac":
			seesNew = true
		}
	}
	if !seesNew {
		err := failure.New(failure.Precondition, "%s: for up to a minute this host would not see what another one made", dir)
		return failure.Hint(err, "mount it with -o lookupcache=pos")
	}
	return nil
}

// mounted looks into mountinfo (proc(5)): after the mount point and its
// options come " - ", the file system's type, its source and its own options.
func mounted(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, failure.Wrap(failure.NotFound, err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var at, kind string
	var options []string
	for line := range strings.Lines(string(table)) {
		mount, system, _ := strings.Cut(line, " - ")
		m, s := strings.Fields(mount), strings.Fields(system)
		if len(m) < 6 || len(s) < 3 {
			continue
		}
		point := unescape(m[4])
		below := point == "/" || dir == point || strings.HasPrefix(dir, point+"/")
		if below && len(point) >= len(at) { // a later mount covers an earlier one
			at, kind, options = point, s[0], strings.Split(m[5]+","+s[2], ",")
		}
	}
	if kind != "nfs" && kind != "nfs4" {
		err := failure.New(failure.Precondition, "%s: it is not on NFS, but on %s", dir, kind)
		return nil, failure.Hint(err, "mount the export first, or connect it as localfs-1.0")
	}
	return options, nil
}

// unescape undoes what mountinfo does to blanks, tabs, newlines and backslashes.
func unescape(point string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(point)
}

// Read implements format.Documents. Another host may have replaced the file between the
// look at its name and the read: then the server knows the handle no more, and the name
// leads to the next.
func (p *place) Read(ctx context.Context, kind format.Kind, id string) ([]byte, error) {
	for tries := 3; ; tries-- {
		data, err := p.Place.Read(ctx, kind, id)
		if tries == 0 || !errors.Is(err, unix.ESTALE) {
			return data, err
		}
	}
}

// readDirect reads a document past the page cache.
func readDirect(file *os.File) ([]byte, error) {
	block := directio.Buffer(directio.Align) // a document is no larger
	n, err := directio.New(file).ReadAt(block, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return block[:n], err
}

// revalidate has the client ask the server for a directory's attributes now, rather
// than believe for acdirmax what it knows (statx(2), nfs(5)).
func revalidate(dir string) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_FORCE_SYNC, unix.STATX_MTIME|unix.STATX_CTIME, &st); err != nil {
		return &os.PathError{Op: "statx", Path: dir, Err: err}
	}
	return nil
}

type place struct {
	directory.Place
	host Format
}

// Close implements format.Place.
func (p *place) Close() error { return nil }

// Capabilities implements format.Place. A server may share blocks; nothing says so
// before it is tried.
func (p *place) Capabilities() format.Capabilities {
	return format.Capabilities{Format: Name, Sparse: true, Shared: true}
}

// Lock implements format.Locks.
func (p *place) Lock(ctx context.Context, name string) (format.Lock, error) {
	l, err := lock.Acquire(ctx, p.Locks(), name)
	return p.held(ctx, l, err)
}

// TryLock implements format.Locks.
func (p *place) TryLock(ctx context.Context, name string) (format.Lock, error) {
	l, err := lock.Try(p.Locks(), name)
	return p.held(ctx, l, err)
}

// Held implements format.Locks.
func (p *place) Held(_ context.Context, name string) (bool, error) {
	return lock.Held(p.Locks(), name)
}

func (p *place) held(ctx context.Context, l *lock.Lock, err error) (format.Lock, error) {
	if err != nil {
		return nil, err
	}
	h, err := p.take(ctx, l)
	if err != nil {
		l.Release()
		return nil, err
	}
	return h, nil
}
