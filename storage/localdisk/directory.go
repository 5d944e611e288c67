// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
)

// directory is the backend dir: raw files, for hosts without a volume group.
//
//	NAME.raw.partial   a copy that is updating
//	NAME.raw           a copy that is ready
//	NAME.json          its sidecar: UUID and whose it is
//
// An overlay has .qcow2 in the place of .raw.
//
// What is made in place has no .partial; that it is updating is a tag in its
// sidecar. The sidecar is there before the file and goes after it. The rename that ends
// updating follows the flush of the data.
type directory struct {
	dir     string
	sparse  bool
	reserve int64
}

const (
	rawSuffix     = ".raw"
	overlaySuffix = ".qcow2"
	partialSuffix = ".partial"
	sidecarSuffix = ".json"
)

// suffix is how the name of a copy's file ends.
func suffix(format string, state State) string {
	end := rawSuffix
	if format == imagecheck.QCOW2 {
		end = overlaySuffix
	}
	if state == Updating {
		end += partialSuffix
	}
	return end
}

// parseFile is the reverse of suffix; not ok is a file that is no copy.
func parseFile(file string) (name, format string, state State, ok bool) {
	for _, format := range []string{imagecheck.Raw, imagecheck.QCOW2} {
		for _, state := range []State{Ready, Updating} {
			if name, ok := strings.CutSuffix(file, suffix(format, state)); ok {
				return name, format, state, true
			}
		}
	}
	return "", "", "", false
}

func newDirectory(s *Service) backend {
	return &directory{dir: s.Config.Local.Dir, sparse: s.Config.Local.Sparse, reserve: int64(s.Config.Local.Reserve)}
}

func (b *directory) home() string { return b.dir }

func (b *directory) path(name, suffix string) string { return filepath.Join(b.dir, name+suffix) }

func (b *directory) target(d Disk) string { return b.path(d.CopyName(), suffix(d.format(), Updating)) }

func (b *directory) find(ctx context.Context) (map[string]Copy, error) {
	entries, err := os.ReadDir(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("dir %s: %w", b.dir, err)
	}
	copies := map[string]Copy{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name, format, state, ok := parseFile(e.Name())
		if !ok || !host.LVMName(name) {
			continue
		}
		if old, seen := copies[name]; seen && old.State == Ready && state == Updating {
			continue // a partial file beside a ready one is rubbish
		}
		c, err := b.describe(name, format, state)
		if errors.Is(err, fs.ErrNotExist) && state == Updating {
			// Another domain's copy was completed meanwhile.
			c, err = b.describe(name, format, Ready)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // or removed
		}
		if err != nil {
			return nil, err
		}
		copies[name] = c
	}
	return copies, nil
}

func (b *directory) describe(name, format string, state State) (Copy, error) {
	path := b.path(name, suffix(format, state))
	c := Copy{State: state, Name: name, Format: format, Home: b.dir, Path: path, Active: true, Zeroes: true}
	st, err := os.Lstat(path)
	if err != nil {
		return c, err
	}
	c.Size, c.Written = st.Size(), st.ModTime()
	if !st.Mode().IsRegular() {
		c.Sick = "not a regular file"
		return c, nil
	}
	side, err := b.readSidecar(name)
	if err != nil {
		c.Sick = failure.OneLine(fmt.Sprintf("its sidecar cannot be read: %v", err))
	}
	c.UUID, c.Tags, c.seal = side.UUID, side.Tags, side.Seal
	if c.has(tagUpdating) {
		c.State = Updating // made in place
	}
	c.Origin = lowest(c)
	return c, nil
}

// refreshOpen asks who has the file open. It reads all of /proc, so it is
// asked only before something is removed or adopted.
func refreshOpen(c Copy) Copy {
	if _, open, err := blockdev.InUse(c.Path); err == nil {
		c.Open = &open
	} else if errors.Is(err, failure.NotFound) {
		c.Open = new(bool)
	}
	return c
}

func (b *directory) room(_ context.Context, sizes []int64) error {
	if err := atomicfile.MkdirAll(b.dir, 0o711); err != nil {
		return fmt.Errorf("dir %s: %w", b.dir, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(b.dir, &st); err != nil {
		return fmt.Errorf("dir %s: free space: %w", b.dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	return fits("dir "+b.dir, free-b.reserve, sizes, b.moreRoom())
}

func (b *directory) survey(ctx context.Context) (map[string]Copy, room, error) {
	copies, err := b.find(ctx)
	return copies, func(sizes []int64) error { return b.room(ctx, sizes) }, err
}

func (b *directory) lends() bool { return false }

func (b *directory) moreRoom() string {
	return fmt.Sprintf("free some of the file system of %s, or set [local] dir or reserve (%d bytes now)", b.dir, b.reserve)
}

func (b *directory) create(_ context.Context, d Disk, size int64) (Copy, error) {
	f, err := b.make(d.CopyName(), d.format())
	if err != nil {
		return Copy{}, err
	}
	defer f.Close()
	if d.overlaid() {
		size = 0 // its blocks are reserved when it is an image; see overlay
	}
	if err := b.allocate(f, size); err != nil {
		return Copy{}, fmt.Errorf("file %s: allocate: %w", f.Name(), err)
	}
	if d.InPlace {
		if err := os.Rename(f.Name(), b.path(d.CopyName(), suffix(d.format(), Ready))); err != nil {
			return Copy{}, fmt.Errorf("file %w", err)
		}
		return b.describe(d.CopyName(), d.format(), Ready)
	}
	return b.describe(d.CopyName(), d.format(), Updating)
}

// fileSuffixes are the ends of the names that a copy's file may have.
func fileSuffixes() []string {
	return []string{rawSuffix + partialSuffix, overlaySuffix + partialSuffix, rawSuffix, overlaySuffix}
}

// make makes the empty file, updating, whose sidecar is there.
func (b *directory) make(name, format string) (*os.File, error) {
	f, err := os.OpenFile(b.path(name, suffix(format, Updating)), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("file %w", err)
	}
	return f, nil
}

// allocate reserves the blocks now, so that a guest never meets a full file
// system, unless sparse is asked for or the file system cannot.
func (b *directory) allocate(f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil || b.sparse || size == 0 {
		return err
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return full(err)
}

// full is err, as a failure.NoSpace if it is one.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return failure.Wrap(failure.NoSpace, err)
	}
	return err
}

func (b *directory) readsZero(context.Context) (bool, error) { return true, nil }

func (b *directory) finish(ctx context.Context, d Disk, c Copy, machine string) error {
	if err := b.claim(ctx, d, c, machine); err != nil {
		return err
	}
	if err := failpoint.Hit("dir.claimed"); err != nil {
		return err
	}
	if c.Path == b.path(c.Name, suffix(c.Format, Ready)) {
		return nil // made in place
	}
	if err := renameNew(b.path(c.Name, suffix(c.Format, Updating)), b.path(c.Name, suffix(c.Format, Ready))); err != nil {
		return fmt.Errorf("file %w", err)
	}
	return atomicfile.Sync(b.dir)
}

// renameNew is rename(2) that never takes the place of anything, where the
// file system can tell.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func (b *directory) claim(_ context.Context, d Disk, c Copy, machine string) error {
	return b.writeSidecar(c.Name, sidecar{UUID: c.UUID, Tags: slices.Concat(identityTags(d), ourTags(d, machine), cloned(c))})
}

func (b *directory) activate(context.Context, []Copy) error   { return nil }
func (b *directory) deactivate(context.Context, []Copy) error { return nil }

func (b *directory) remove(_ context.Context, c Copy) error {
	if !refreshOpen(c).closed() {
		return inUse(c)
	}
	// Rubbish beside a ready file goes with it; the sidecar last, or what is
	// left would be a copy that nobody can name.
	for _, end := range append(fileSuffixes(), sidecarSuffix) {
		if err := atomicfile.Remove(b.path(c.Name, end)); err != nil {
			return err
		}
	}
	return nil
}

func (b *directory) extend(_ context.Context, c Copy, size int64) (Copy, error) {
	f, err := os.OpenFile(c.Path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return c, fmt.Errorf("file %w", err)
	}
	defer f.Close()
	if size > c.Size {
		if err := b.allocate(f, size); err != nil {
			return c, fmt.Errorf("file %s: extend: %w", c.Path, err)
		}
		// The receipt will say the new size: a file that is shorter after a
		// power cut would be taken for one that was cut off.
		if err := blockdev.Flush(f); err != nil {
			return c, err
		}
	}
	return b.describe(c.Name, c.Format, c.State)
}

func (b *directory) explain(_ context.Context, a Action, d Disk, c Copy, size int64, clone *clonePlan) []string {
	partial, ready := b.target(d), b.path(d.CopyName(), suffix(d.format(), Ready))
	made := []string{fmt.Sprintf("create %s with %d bytes", partial, size)}
	switch {
	case clone != nil && d.Template:
		made = append(b.explainTemplate(*clone), made...)
	case clone != nil:
		made = b.explainClone(*clone, partial, size)
	}
	made = append(made, fmt.Sprintf("fill %s, flush it, rename it to %s", partial, ready))
	switch a {
	case Create:
		return made
	case Replace:
		return append([]string{"remove " + c.Path}, made...)
	case Retire:
		return append([]string{"remove the copy of the older leaf"}, made...)
	}
	return nil
}
