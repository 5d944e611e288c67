// SPDX-License-Identifier: Apache-2.0

package lock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReplacedFile: between open and flock the file is removed, or another one
// takes its place. Its lock excludes nobody.
func TestReplacedFile(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"removed":  os.Remove,
		"replaced": func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o660)) },
		"a link": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.Symlink(path+".old", path))
		},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o660)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := replace(path); err != nil {
			t.Fatal(err)
		}
		if err := take(f, path, unix.LOCK_EX); !errors.Is(err, errReplaced) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
