// SPDX-License-Identifier: Apache-2.0

package member

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Path is where a volume is found on this host while it is attached: a link to its
// device that this package makes itself, as udev makes its own some time later, or
// never.
func (c *Member) Path(volume string) string { return filepath.Join(c.Links, c.Name, volume) }

// link points a volume's link to its device.
func (c *Member) link(volume string, minor uint32) error {
	to, path := filepath.Join(c.Dev, fmt.Sprintf("dm-%d", minor)), c.Path(volume)
	if now, err := os.Readlink(path); err == nil && now == to {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// No volume's name begins with a dot.
	draft := filepath.Join(filepath.Dir(path), "."+volume)
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, draft); err != nil {
		return err
	}
	return os.Rename(draft, path)
}

func (c *Member) unlink(volume string) error {
	if err := os.Remove(c.Path(volume)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
