// SPDX-License-Identifier: Apache-2.0

package localfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

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

// Who takes a spare file and dies leaves it under another name: the next one that removes
// something has it go, and makes a new one. One that was taken just now is somebody's.
func TestSparesOfTheDeadGo(t *testing.T) {
	f, parameters := localfs.Format{}, map[string]string{"path": t.TempDir()}
	if err := f.Create(t.Context(), parameters); err != nil {
		t.Fatal(err)
	}
	reserve := filepath.Join(parameters["path"], "reserve")
	spares, err := os.ReadDir(reserve)
	if err != nil || len(spares) < 2 {
		t.Fatal(spares, err)
	}
	for i, age := range []time.Duration{25 * time.Hour, 0} {
		taken := filepath.Join(reserve, ".taken-"+spares[i].Name())
		err := errors.Join(os.Rename(filepath.Join(reserve, spares[i].Name()), taken), os.Chtimes(taken, time.Time{}, time.Now().Add(-age)))
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := f.Open(t.Context(), parameters)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Remove(t.Context(), format.Stop, uuid.NewString(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadDir(reserve)
	if err != nil || len(now) != len(spares)+1 || now[0].Name() != ".taken-"+spares[1].Name() {
		t.Errorf("%v, then %v: %v", spares, now, err)
	}
}
