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

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// Templates in a directory: a file that nobody may write to, of which copies
// share the blocks (reflink) on a file system that can. A clone is no worse off
// when its template is gone. What a guest overwrites takes new blocks, so here
// a file system may fill up under a guest though copies are preallocated.

func (b *directory) templateHome() string { return b.dir }

func (b *directory) keeps(c Copy) bool { return true }

func (b *directory) clonesHold() bool { return false }

// roomWithout counts the blocks that the templates hold, which nobody shares.
func (b *directory) roomWithout(ctx context.Context, gone []Copy, sizes []int64) error {
	sizes = slices.Clone(sizes)
	for _, c := range gone {
		var st unix.Stat_t
		if unix.Lstat(c.Path, &st) == nil {
			sizes = append(sizes, -st.Blocks*512)
		}
	}
	return b.room(ctx, sizes)
}

// cloneless tries it, with files without a name: neither the type of a file
// system nor its size tell. A directory that is not there yet will be on the file
// system of the one above it.
func (b *directory) cloneless(context.Context) string {
	dir := b.dir
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	var fds [2]int
	for i := range fds {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Sprintf("dir %s: no file to try it in: %v", b.dir, err)
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	_, err := unix.Write(fds[0], make([]byte, 4096))
	if err == nil {
		err = unix.IoctlFileClone(fds[1], fds[0])
	}
	if err != nil {
		return fmt.Sprintf("dir %s: its file system cannot share blocks: %v", b.dir, err)
	}
	return ""
}

func (b *directory) createTemplate(_ context.Context, name string, size int64, tags []string) (Copy, error) {
	if err := b.tag(name, append([]string{tagUpdating}, tags...)); err != nil {
		return Copy{}, err
	}
	f, err := b.make(name, imagecheck.Raw)
	if err != nil {
		return Copy{}, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return Copy{}, fmt.Errorf("file %w", err)
	}
	return b.describe(name, imagecheck.Raw, Updating)
}

func (b *directory) reopenTemplate(_ context.Context, c Copy) error {
	return os.Chmod(c.Path, 0o600)
}

func (b *directory) finishTemplate(ctx context.Context, c Copy) error {
	// oVirt's user has copied into it.
	if err := os.Lchown(c.Path, os.Geteuid(), os.Getegid()); err != nil {
		return fmt.Errorf("file %w", err)
	}
	if err := os.Chmod(c.Path, 0o400); err != nil {
		return fmt.Errorf("file %w", err)
	}
	if err := failpoint.Hit("template.read-only"); err != nil {
		return err
	}
	now, err := b.describe(c.Name, c.Format, Updating)
	if err != nil {
		return err
	}
	if err := b.seal(now, true); err != nil {
		return err
	}
	if err := b.retag(ctx, c, nil, []string{tagUpdating}); err != nil {
		return err
	}
	if err := failpoint.Hit("template.claimed"); err != nil {
		return err
	}
	if err := renameNew(c.Path, b.path(c.Name, rawSuffix)); err != nil {
		return fmt.Errorf("file %w", err)
	}
	return atomicfile.Sync(b.dir)
}

// spoil takes rubbish away that lies where the file goes.
func (b *directory) spoil(_ context.Context, c Copy) (Copy, error) {
	ready := c.Path
	c.State, c.Path = Updating, b.path(c.Name, suffix(c.Format, Updating))
	if ready == c.Path {
		return c, nil
	}
	if err := atomicfile.Remove(c.Path); err != nil {
		return c, fmt.Errorf("file %w", err)
	}
	if err := renameNew(ready, c.Path); err != nil {
		return c, fmt.Errorf("file %w", err)
	}
	return c, atomicfile.Sync(b.dir)
}

func (b *directory) clone(_ context.Context, template Copy, d Disk, size int64) error {
	from, err := os.OpenFile(template.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("file %w", err)
	}
	defer from.Close()
	f, err := b.make(d.CopyName(), imagecheck.Raw)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlFileClone(int(f.Fd()), int(from.Fd())); err != nil {
		return fmt.Errorf("file %s: share the blocks of %s: %w", f.Name(), template.Path, full(err))
	}
	if st, err := from.Stat(); err != nil || st.Size() != template.Size || !st.ModTime().Equal(template.Written) {
		return failure.New(failure.Conflict, "%s: was written to just now", template)
	}
	if err := failpoint.Hit("clone.made"); err != nil {
		return err
	}
	if err := b.allocate(f, size); err != nil {
		return fmt.Errorf("file %s: allocate: %w", f.Name(), err)
	}
	return nil
}

func (b *directory) cloned(_ context.Context, _ Copy, d Disk, _ int64) (Copy, error) {
	return b.describe(d.CopyName(), imagecheck.Raw, Updating)
}

func (b *directory) retag(_ context.Context, c Copy, add, del []string) error {
	side, err := b.readSidecar(c.Name)
	if err != nil {
		return err
	}
	side.Tags = slices.DeleteFunc(side.Tags, func(t string) bool { return slices.Contains(del, t) || slices.Contains(add, t) })
	side.Tags = append(side.Tags, add...)
	return b.writeSidecar(c.Name, side)
}

func (b *directory) explainTemplate(p clonePlan) []string {
	if p.ready {
		return nil
	}
	template := b.path(p.template, rawSuffix)
	return []string{fmt.Sprintf("copy %s to %s, flush it, let nobody write to it, rename it to %s", p.path, template+partialSuffix, template)}
}

func (b *directory) explainClone(p clonePlan, partial string, size int64) []string {
	return append(b.explainTemplate(p), fmt.Sprintf("create %s with %d bytes, sharing the blocks of %s", partial, size, b.path(p.template, rawSuffix)))
}
