// SPDX-License-Identifier: Apache-2.0

package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/imagelock"
	"diskhook/storage/repository/format"
)

// Path implements format.Volumes.
func (p *Place) Path(id, kind string) string {
	return filepath.Join(p.Root, dataFolder, p.Backing(id, kind))
}

// Backing implements format.Volumes: the name alone, since hosts mount the same
// directory at different places.
func (p *Place) Backing(id, kind string) string { return id + "." + kind }

func checkVolume(id, kind string) error {
	if !host.IsUUID(id) || kind != imagecheck.Raw && kind != imagecheck.QCOW2 {
		return failure.New(failure.Usage, "volume %q of kind %q: no such thing", id, kind)
	}
	return nil
}

// Make implements format.Volumes. Files are sparse: they take no room before they
// are written.
func (p *Place) Make(_ context.Context, id, kind string, bytes int64) (fresh bool, err error) {
	if err := checkVolume(id, kind); err != nil {
		return false, err
	}
	f, err := os.OpenFile(p.Path(id, kind), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, failure.Denied(failure.Full(err))
	}
	defer f.Close()
	if err := growTo(f, bytes); err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil {
		return false, failure.Full(err)
	}
	if err := atomicfile.Sync(filepath.Dir(f.Name())); err != nil {
		return false, err
	}
	return empty(f)
}

// Fits implements format.Volumes. What a file may have depends on the file system's kind,
// its block size and its server: a file without a name tries it, which takes no room.
func (p *Place) Fits(_ context.Context, bytes int64) error {
	f, err := unnamed(filepath.Join(p.Root, dataFolder))
	if err != nil {
		return failure.Denied(failure.Full(err))
	}
	defer f.Close()
	err = f.Truncate(bytes)
	if errors.Is(err, unix.EFBIG) {
		err := failure.New(failure.Precondition, "%s: a file of %d bytes is more than its file system can have", p.Root, bytes)
		return failure.Hint(err, "take a smaller size, or a repository on a file system with larger files, as XFS has them")
	}
	return failure.Full(err)
}

// unnamed makes a file that is gone once it is closed, also where the file system knows
// none without a name, as NFS.
func unnamed(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	if f, err = os.CreateTemp(dir, ".size-"); err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func growTo(f *os.File, bytes int64) error {
	st, err := f.Stat()
	if err != nil || st.Size() >= bytes {
		return err
	}
	if err := f.Truncate(bytes); err != nil {
		return fmt.Errorf("%s: grow to %d bytes: %w", f.Name(), bytes, failure.Full(err))
	}
	return nil
}

// empty says whether the file has no data, which reads zero (lseek(2), SEEK_DATA).
func empty(f *os.File) (bool, error) {
	_, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true, nil
	}
	return false, err
}

// OpenVolume implements format.Volumes: a file is always usable.
func (p *Place) OpenVolume(_ context.Context, id, kind string, _ bool) error {
	if err := checkVolume(id, kind); err != nil {
		return err
	}
	if _, err := os.Stat(p.Path(id, kind)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return failure.Wrap(failure.NotFound, err)
		}
		return failure.Denied(err)
	}
	return nil
}

// CloseVolume implements format.Volumes.
func (p *Place) CloseVolume(context.Context, string, string) error { return nil }

// Opened implements format.Volumes.
func (p *Place) Opened(context.Context) ([]format.Data, error) { return nil, nil }

// Grow implements format.Volumes.
func (p *Place) Grow(_ context.Context, id, kind string, bytes int64) error {
	if err := checkVolume(id, kind); err != nil || kind != imagecheck.Raw {
		return err
	}
	f, err := os.OpenFile(p.Path(id, kind), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(growTo(f, bytes), f.Close())
}

// Flush implements format.Volumes.
func (p *Place) Flush(_ context.Context, id, kind string) error {
	if err := checkVolume(id, kind); err != nil {
		return err
	}
	f, err := os.Open(p.Path(id, kind))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("%s: flush: %w", f.Name(), failure.Full(err))
	}
	return atomicfile.Sync(filepath.Dir(f.Name()))
}

// Allocated implements format.Volumes.
func (p *Place) Allocated(_ context.Context, id, kind string) (int64, error) {
	if err := checkVolume(id, kind); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(p.Path(id, kind), &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: p.Path(id, kind), Err: err}
	}
	const sector = 512 // the unit of st_blocks, stat(2)
	return st.Blocks * sector, nil
}

// Delete implements format.Volumes. Whoever reads or writes it with QEMU's
// locks keeps it.
func (p *Place) Delete(_ context.Context, id, kind string) error {
	if err := checkVolume(id, kind); err != nil {
		return err
	}
	path := p.Path(id, kind)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	switch {
	case err == nil:
		defer f.Close()
		if err := imagelock.Write(f); err != nil && !errors.Is(err, imagelock.ErrNoLocks) {
			return fmt.Errorf("%s: %w", path, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return failure.Denied(err)
	}
	if err := errors.Join(atomicfile.Remove(path), atomicfile.Remove(p.Cursor(id))); err != nil {
		return err
	}
	p.refill() // there is room again
	return nil
}

// Data implements format.Volumes.
func (p *Place) Data(ctx context.Context) ([]format.Data, error) {
	names, err := p.names(ctx, dataFolder)
	if err != nil {
		return nil, err
	}
	found := make([]format.Data, 0, len(names))
	for _, name := range names {
		id, kind, _ := strings.Cut(name, ".")
		if checkVolume(id, kind) == nil {
			found = append(found, format.Data{ID: id, Kind: kind})
		}
	}
	return found, nil
}

// Cursor implements format.Volumes.
func (p *Place) Cursor(id string) string { return filepath.Join(p.Root, cursorFolder, id) }
