// SPDX-License-Identifier: Apache-2.0

// Package atomicfile is the one way diskhook writes and deletes files whose
// content is a promise: receipts, status files, the XML handed back to VDSM.
//
// A reader sees the old content or the new, never a part. When Write returns
// nil the new content and its name have reached the disk: the file is flushed
// before the rename and its directory after it. On failure the old file is as
// it was; a full file system is a failure.NoSpace, one that is read-only, or only
// root may write to, a failure.Precondition.
package atomicfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// Write replaces path by data with the given mode (the umask is not applied).
// The directory must exist; see MkdirAll.
func Write(path string, data []byte, mode os.FileMode) error {
	return WriteIf(path, data, mode, func() error { return nil })
}

// WriteIf is Write that asks, once the new content is flushed and right before
// anybody can see it, whether it still may: an error of may is its own, and the
// old file stays.
func WriteIf(path string, data []byte, mode os.FileMode, may func() error) error {
	if err := replace(path, data, mode, (*os.File).Sync, may); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// WriteInto is WriteIf for a file system without room: spare, a file in the same file system
// that is at least as long as data, gets the content and then the name path. On failure
// the old file is as it was, and spare is there, whatever it holds.
func WriteInto(spare, path string, data []byte, may func() error) error {
	f, err := os.OpenFile(spare, os.O_WRONLY, 0)
	if err != nil {
		return notWritten(path, err)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return notWritten(path, errors.Join(err, f.Close()))
	}
	if err := errors.Join(f.Truncate(int64(len(data))), f.Sync(), f.Close()); err != nil {
		return notWritten(path, err)
	}
	if err := may(); err != nil {
		return err
	}
	if err := os.Rename(spare, path); err != nil {
		return notWritten(path, err)
	}
	return syncDir(filepath.Dir(path))
}

// notWritten names the file, and the way out where its file system is full or
// read-only, or where only root may write.
func notWritten(path string, err error) error { return refused(path, "write", err) }

func refused(path, what string, err error) error {
	var of *fs.PathError
	if errors.As(err, &of) {
		err = of.Err // it names a file that nobody knows, as the new content is written beside the old one
	}
	err = failure.Full(fmt.Errorf("%s: %s: %w", path, what, err))
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, failure.NoSpace):
		return failure.Hint(err, "free space there (`df %s`), then try again", dir)
	case errors.Is(err, unix.EROFS):
		err = failure.Wrap(failure.Precondition, err)
		return failure.Hint(err, "find out why it is read-only (`findmnt -T %s`, `journalctl -k`), make it writable, then try again", dir)
	}
	return failure.Denied(err)
}

// WriteJSON writes v as one indented JSON document with a final newline.
func WriteJSON(path string, v any, mode os.FileMode) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: encode: %w", path, err)
	}
	return Write(path, append(data, '\n'), mode)
}

// WriteVolatile is Write without the flushes, for files on tmpfs that nobody
// needs after a reboot (progress, job files).
func WriteVolatile(path string, data []byte, mode os.FileMode) error {
	nothing := func() error { return nil }
	return replace(path, data, mode, func(*os.File) error { return nil }, nothing)
}

func replace(path string, data []byte, mode os.FileMode, flush func(*os.File) error, may func() error) error {
	tmp, err := renameio.TempFile(filepath.Dir(path), path)
	if err != nil {
		return notWritten(path, err)
	}
	defer func() { _ = tmp.Cleanup() }()
	if err := errors.Join(tmp.Chmod(mode), writeAll(tmp.File, data)); err != nil {
		return notWritten(path, err)
	}
	if err := errors.Join(flush(tmp.File), tmp.Close()); err != nil {
		return notWritten(path, err)
	}
	if err := may(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return notWritten(path, err)
	}
	return nil
}

// Name gives the file from the name to, and is an fs.ErrExist where something has
// that already. The caller flushes the file before, and the directory with Sync
// after it. NFS knows no rename that replaces nothing; FAT, exFAT and many servers
// of CIFS know no second name for a file.
func Name(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	case err != nil:
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func writeAll(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return err
}

// Remove deletes path durably. A file that is not there is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return refused(path, "remove", err)
	}
	return syncDir(filepath.Dir(path))
}

// MkdirAll makes dir and its parents with the given mode, durably, and gives
// dir itself that mode whatever the umask is. A dir that exists is left alone.
func MkdirAll(dir string, mode os.FileMode) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s: not a directory", dir)
		}
		return nil
	}
	if err := MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return notWritten(dir, err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// Sync flushes the entries of directory dir, after a rename or link in it.
func Sync(dir string) error { return syncDir(dir) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%s: open to flush: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("%s: flush: %w", dir, err)
	}
	return nil
}
