// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// LoadConfig is host.Load for a program that acts for others: it refuses a
// file, or a directory of it, that anybody but owner (root) could have
// written. An error of kind failure.Usage comes beside a usable configuration
// and is for the log, as with every hook.
func LoadConfig(l host.Layout, owner uint32) (host.Config, error) {
	for _, path := range []string{filepath.Dir(l.Config()), l.Config()} {
		if err := trusted(path, owner); err != nil {
			return host.Config{}, err
		}
	}
	return host.Load(l)
}

func trusted(path string, owner uint32) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failure.Wrap(failure.Precondition, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || info.Mode()&fs.ModeSymlink != 0:
		err = failure.New(failure.Precondition, "%s: is a link", path)
	case st.Uid != owner || info.Mode().Perm()&0o022 != 0:
		err = failure.New(failure.Precondition, "%s: owned by user %d with mode %04o, so others than root can write it", path, st.Uid, info.Mode().Perm())
	default:
		return nil
	}
	return failure.Hint(err, "run `chown root: %s && chmod go-w %s` after you have read it", path, path)
}
