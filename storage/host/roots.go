// SPDX-License-Identifier: Apache-2.0

package host

import (
	"path/filepath"
	"strings"

	"diskhook/storage/failure"
)

// Allowed resolves path and checks that it lies below one of [paths] roots,
// both as it is written and with its symlinks followed. It returns the
// resolved path. Roots are themselves resolved, as /rhev/data-center/mnt is
// full of links. Outside is a failure.Precondition with the setting as hint.
func (p Paths) Allowed(path string) (string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", failure.New(failure.Usage, "%q: not a clean absolute path", path)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", failure.Wrap(failure.NotFound, err)
	}
	if p.below(path) && p.belowResolved(resolved) {
		return resolved, nil
	}
	err = failure.New(failure.Precondition, "%s: not below any of [paths] roots", resolved)
	return "", failure.Hint(err, "add its directory to roots in diskhook.toml if you trust it")
}

func (p Paths) below(path string) bool {
	for _, root := range p.Roots {
		if within(path, root) {
			return true
		}
	}
	return false
}

func (p Paths) belowResolved(path string) bool {
	for _, root := range p.Roots {
		resolved, err := filepath.EvalSymlinks(root)
		if err == nil && within(path, resolved) {
			return true
		}
		// Block devices: /dev/mapper/x and /dev/disk/by-id/x are links to /dev/dm-N or /dev/sdX.
		if within(root, "/dev") && within(path, "/dev") {
			return true
		}
	}
	return false
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
