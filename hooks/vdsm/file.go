// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// file is a hook point's file. VDSM makes it in a temporary directory with
// mode 0600, hands it to one script after the other, and reads it by name.
type file struct {
	path    string
	content []byte
	info    os.FileInfo
}

func open(path string) (file, error) {
	if !filepath.IsAbs(path) {
		err := failure.New(failure.Usage, "%q is not an absolute path", path)
		return file{}, failure.Hint(err, "install the hook in one of VDSM's hook directories; VDSM names the file")
	}
	// Not blocking: a FIFO in its place must not stop us.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return file{}, err
	}
	if !info.Mode().IsRegular() {
		return file{}, failure.New(failure.Usage, "%s: not a regular file", path)
	}
	content, err := io.ReadAll(io.LimitReader(f, xmlrewrite.MaxSize+1))
	if err != nil {
		return file{}, err
	}
	if len(content) > xmlrewrite.MaxSize {
		return file{}, failure.New(failure.Usage, "%s: larger than 16 MiB", path)
	}
	return file{path, content, info}, nil
}

// replace writes new content in one step, with the owner and mode that the
// file had. The same content again leaves the file alone.
func (f file) replace(content []byte) (err error) {
	if bytes.Equal(content, f.content) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(f.path), ".diskhook-*")
	if err != nil {
		return fmt.Errorf("%s: write: %w", f.path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
			err = fmt.Errorf("%s: write: %w", f.path, err)
		}
	}()
	_, err = tmp.Write(content)
	if st, ok := f.info.Sys().(*syscall.Stat_t); ok && err == nil && os.Geteuid() == 0 {
		err = tmp.Chown(int(st.Uid), int(st.Gid))
	}
	if err := errors.Join(err, tmp.Chmod(f.info.Mode().Perm()), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), f.path)
}
