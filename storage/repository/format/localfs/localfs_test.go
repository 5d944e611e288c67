// SPDX-License-Identifier: Apache-2.0

package localfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/formattest"
	"diskhook/storage/repository/format/localfs"
)

func TestConforms(t *testing.T) {
	parameters := map[string]string{"path": filepath.Join(t.TempDir(), "a", "repo")}
	formattest.Conform(t, localfs.Format{}, parameters, func() (format.Place, error) {
		return localfs.Format{}.Open(t.Context(), parameters)
	})
}

func TestRefusesWhatIsSomebodyElses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := localfs.Format{}.Create(t.Context(), map[string]string{"path": dir})
	if !errors.Is(err, failure.Conflict) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%v", left)
	}
	for _, path := range []string{"", "relative", "/", "/a/../b", "/a/\n"} {
		if err := (localfs.Format{}).Create(t.Context(), map[string]string{"path": path}); !errors.Is(err, failure.Usage) {
			t.Errorf("%q: %v", path, err)
		}
	}
}
