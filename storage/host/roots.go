// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"diskhook/storage/failure"
)

// Allowed resolves path and checks that it lies below one of [paths] roots,
// both as it is written and with its symlinks followed. It returns the
// resolved path. Roots are themselves resolved, as /rhev/data-center/mnt is
// full of links. Outside is a failure.Precondition with the setting as hint,
// a path that leads nowhere a failure.NotFound.
func (p Paths) Allowed(path string) (string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", failure.New(failure.Usage, "%q: not a clean absolute path", path)
	}
	resolved, err := filepath.EvalSymlinks(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", failure.Hint(failure.Wrap(failure.Precondition, err), "let this user read it: `namei -l %s`", path)
	case err != nil:
		return "", failure.Wrap(failure.NotFound, err)
	}
	for _, root := range p.Roots {
		if within(path, root) && (p.belowResolved(resolved) || within(resolved, "/dev") && namesDevices(root)) {
			return resolved, nil
		}
	}
	err = failure.New(failure.Precondition, "%s: not below any of [paths] roots", resolved)
	return "", failure.Hint(err, "add its directory to roots in diskhook.toml if you trust it")
}

// namesDevices says that links below root are there to name block devices:
// udev's, and those of VDSM, whose disks are read as the user vdsm. Anywhere
// else a link to a device is somebody's way to a disk that is not his; who
// serves a share also makes the links on it.
func namesDevices(root string) bool {
	return within(root, "/dev") || strings.HasSuffix(root, "/rhev/data-center") || strings.HasSuffix(root, "/run/vdsm/storage")
}

func (p Paths) belowResolved(path string) bool {
	for _, root := range p.Roots {
		resolved, err := filepath.EvalSymlinks(root)
		if err == nil && within(path, resolved) {
			return true
		}
	}
	return false
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
