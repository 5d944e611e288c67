// SPDX-License-Identifier: Apache-2.0

package database_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/managed/database"
)

// A file that cannot be used is told of in words, with the way out.
func TestWordsForAFileThatFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		kind  *failure.Kind
		words []string
	}{
		"damaged": {func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte(strings.Repeat("no database ", 100)), 0o600))
		}, failure.Precondition, []string{"it is damaged", "restore it from a backup"}},
		"held by another": {func(t *testing.T, path string) {
			other, err := sql.Open("sqlite", path)
			must(t, err)
			t.Cleanup(func() { must(t, other.Close()) })
			other.SetMaxOpenConns(1)
			_, err = other.ExecContext(t.Context(), "BEGIN EXCLUSIVE")
			must(t, err)
		}, failure.Temporary, []string{"another program has been writing to it for 10s", "fuser "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "managed.db")
			db, err := database.Open(t.Context(), path)
			must(t, err)
			record(t, db, "v")
			must(t, db.Close())
			c.spoil(t, path)
			again, err := database.Open(t.Context(), path)
			if err == nil {
				_, err = again.Volumes(t.Context())
				must(t, again.Close())
			}
			if !errors.Is(err, c.kind) {
				t.Errorf("got %v", err)
			}
			for _, word := range append(c.words, path) {
				if !strings.Contains(failure.Line(err), word) {
					t.Errorf("%q lacks %q", failure.Line(err), word)
				}
			}
			for _, jargon := range []string{"SQLITE", "(5)"} {
				if strings.Contains(failure.Line(err), jargon) {
					t.Errorf("%q has %q", failure.Line(err), jargon)
				}
			}
		})
	}
}
