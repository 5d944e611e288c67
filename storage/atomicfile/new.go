// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// New writes a file that was not there, of mode 0600, for good or not at all; one that is
// there is a failure.Conflict. What write says is its own. The file has no name before it
// is whole, so that nothing is left of a program that is killed. Where the file system
// knows no such files, as NFS and CIFS, it has one that begins with unfinished, and the
// next New in that directory takes what nobody writes any more.
func New(path string, write func(io.Writer) error) (err error) {
	if err := Absent(path); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	d, err := nameless(dir)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		d, err = hidden(dir)
	}
	if err != nil {
		return notWritten(path, err)
	}
	return d.finish(path, write)
}

// Absent refuses a path that New would refuse before it writes: of a file that is there,
// or in a directory that is not.
func Absent(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = failure.Hint(failure.New(failure.Conflict, "%s: it exists already", path), "name another file, or remove that one")
		}
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return notWritten(path, err)
	}
	return nil
}

// unfinished is what the name of a file begins with that is not whole yet.
const unfinished = ".diskhook-unfinished-"

// draft is a file that is being written; its name is "" where it has none.
type draft struct {
	*os.File
	name string
}

func nameless(dir string) (draft, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return draft{}, &os.PathError{Op: "make a file in", Path: dir, Err: err}
	}
	return draft{os.NewFile(uintptr(fd), dir), ""}, nil
}

// hidden makes a file that is locked for as long as somebody writes it.
func hidden(dir string) (draft, error) {
	if err := sweepUnfinished(dir); err != nil {
		return draft{}, err
	}
	name := unfinished + uuid.NewString()
	l, err := lock.Try(dir, name)
	if err != nil {
		return draft{}, err
	}
	d := draft{l.File(), filepath.Join(dir, name)}
	if err := d.Chmod(0o600); err != nil {
		return draft{}, errors.Join(err, d.Close(), os.Remove(d.name))
	}
	return d, nil
}

// sweepUnfinished removes what programs left that were killed.
func sweepUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), unfinished)
		if _, err := uuid.Parse(rest); !ours || err != nil || !e.Type().IsRegular() {
			continue
		}
		l, err := lock.Try(dir, e.Name())
		if errors.Is(err, lock.ErrHeld) {
			continue
		}
		if err == nil {
			err = os.Remove(filepath.Join(dir, e.Name()))
			l.Release()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// finish writes the file and gives it its name, or removes it.
func (d draft) finish(path string, write func(io.Writer) error) (err error) {
	defer func() {
		if err = errors.Join(err, d.Close()); err != nil && d.name != "" {
			err = errors.Join(err, os.Remove(d.name))
		}
	}()
	out := bufio.NewWriterSize(d, 1<<20)
	if err := write(out); err != nil {
		return err
	}
	if err := errors.Join(out.Flush(), d.Sync()); err != nil {
		return notWritten(path, err)
	}
	if err := failpoint.Hit("atomicfile.new.written"); err != nil {
		return err
	}
	if err := d.publish(path); err != nil {
		return err
	}
	d.name = "" // it is not the draft's any more
	return syncDir(filepath.Dir(path))
}

// publish gives the file its name; one that is taken meanwhile stays.
func (d draft) publish(path string) error {
	if d.name != "" {
		return Name(d.name, path)
	}
	open := fmt.Sprintf("/proc/self/fd/%d", d.Fd())
	if err := unix.Linkat(unix.AT_FDCWD, open, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "name", Old: d.File.Name(), New: path, Err: err}
	}
	return nil
}
