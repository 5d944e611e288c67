// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/managed/database"
)

// The part of TestUpstream that is managedvolumedb_test.py.

func (h *home) rows(t *testing.T, ids ...string) ([]database.Volume, error) {
	db, err := database.Open(t.Context(), h.Database)
	must(t, err)
	defer db.Close()
	return db.Volumes(t.Context(), ids...)
}

func databaseCreated(t *testing.T, h *home) {
	all, err := h.rows(t)
	must(t, err)
	st, err := os.Stat(h.Database)
	if len(all) != 0 || err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v %v", all, st, err)
	}
	db, err := sql.Open("sqlite", h.Database)
	must(t, err)
	defer db.Close()
	var version, many int
	var description string
	must(t, db.QueryRow(`SELECT max(version), count(*), description FROM versions`).Scan(&version, &many, &description))
	if version != 1 || many != 1 || description != "Initial version" {
		t.Errorf("%d %d %s", version, many, description)
	}
}

func databaseClosedTwice(t *testing.T, h *home) {
	db, err := database.Open(t.Context(), h.Database)
	must(t, errors.Join(err, db.Close(), db.Close()))
}

func databaseUsedAfterClose(t *testing.T, h *home) {
	db, err := database.Open(t.Context(), h.Database)
	must(t, errors.Join(err, db.Close()))
	if _, err := db.Volumes(t.Context()); err == nil {
		t.Error("read")
	}
	if err := db.Update(t.Context(), func(*database.Tx) error { t.Error("began"); return nil }); err == nil {
		t.Error("written")
	}
}

func databaseLife(t *testing.T, h *home) {
	at := database.Volume{ID: "a", Path: "/dev/mapper/1", Attachment: []byte(`{}`), MultipathID: "1"}
	for _, step := range []struct {
		do   func(*database.Tx) error
		want string
	}{
		{func(tx *database.Tx) error { return tx.Record("a", []byte(`{"n":1}`), "b") }, `a {"n":1}`},
		{func(tx *database.Tx) error { return tx.Record("a", []byte(`{"n":2}`), "b") }, `a {"n":2}`}, // begins anew: one row
		{func(tx *database.Tx) error { return tx.Attached(at) }, `a {"n":2}/dev/mapper/1`},
		{func(tx *database.Tx) error { return tx.Forget("a") }, ""},
		{func(tx *database.Tx) error { return tx.Forget("a") }, ""},
	} {
		h.row(step.do)
		all, err := h.rows(t)
		must(t, err)
		var got string
		for _, v := range all {
			got += v.ID + " " + string(v.Connection) + v.Path
		}
		if got != step.want {
			t.Errorf("%q, want %q", got, step.want)
		}
	}
}

// ownsMultipath: what is owned is not offered for anything else.
func ownsMultipath(t *testing.T, h *home) {
	offered := func() bool {
		all, err := h.Devices(t.Context())
		must(t, err)
		text, err := json.Marshal(all)
		must(t, err)
		return strings.Contains(string(text), "36001405aa")
	}
	_, err := h.attach("v1", iscsi)
	must(t, err)
	if offered() {
		t.Error("offered, and is a managed volume")
	}
	h.row(func(tx *database.Tx) error { return tx.Record("v2", []byte(iscsi), h.boot()) })
	if err := h.updated(func(tx *database.Tx) error {
		return tx.Attached(database.Volume{ID: "v2", Path: "/x", MultipathID: "36001405aa"})
	}); !errors.Is(err, database.ErrMultipathTaken) || !errors.Is(err, failure.Conflict) {
		t.Errorf("owned twice: %v", err)
	}
	h.row(func(tx *database.Tx) error { return errors.Join(tx.Forget("v1"), tx.Forget("v2")) })
	if !offered() {
		t.Error("no managed volume, and not offered")
	}
}

func (h *home) updated(change func(*database.Tx) error) error {
	db, err := database.Open(h.t.Context(), h.Database)
	must(h.t, err)
	defer db.Close()
	return db.Update(h.t.Context(), change)
}

func databaseByIDs(t *testing.T, h *home) {
	h.row(func(tx *database.Tx) error {
		return errors.Join(tx.Record("c", nil, "b"), tx.Record("a", nil, "b"), tx.Record("b", nil, "b"))
	})
	for want, ids := range map[string][]string{"abc": nil, "ac": {"c", "nobody", "a"}, "": {"nobody"}} {
		all, err := h.rows(t, ids...)
		must(t, err)
		var got string
		for _, v := range all {
			got += v.ID
		}
		if got != want {
			t.Errorf("%q: %q", ids, got)
		}
	}
}

func databaseNested(t *testing.T, h *home) {
	h.row(func(tx *database.Tx) error { return errors.Join(tx.Record("a", nil, "b"), tx.Record("b", nil, "b")) })
	db, err := database.Open(t.Context(), h.Database)
	must(t, err)
	defer db.Close()
	pairs := 0
	outer, err := db.Volumes(t.Context())
	must(t, err)
	for range outer {
		inner, err := db.Volumes(t.Context())
		must(t, err)
		pairs += len(inner)
	}
	if pairs != 4 {
		t.Error(pairs)
	}
}

func databaseConcurrent(t *testing.T, h *home) {
	failed := make([]error, 10)
	var users sync.WaitGroup
	for user := range failed {
		users.Go(func() {
			for i := range 10 {
				id := fmt.Sprintf("%d-%d", user, i)
				failed[user] = errors.Join(failed[user],
					h.updated(func(tx *database.Tx) error { return tx.Record(id, []byte(`{}`), "b") }),
					h.updated(func(tx *database.Tx) error { return tx.Attached(database.Volume{ID: id, Path: id, MultipathID: id}) }))
				if i%2 == 1 {
					failed[user] = errors.Join(failed[user], h.updated(func(tx *database.Tx) error { return tx.Forget(id) }))
				}
			}
		})
	}
	users.Wait()
	must(t, errors.Join(failed...))
	all, err := h.rows(t)
	must(t, err)
	if len(all) != 50 || slices.ContainsFunc(all, func(v database.Volume) bool { return v.Path != v.ID || v.MultipathID != v.ID }) {
		t.Errorf("%d rows: %v", len(all), all)
	}
}

// databaseOf500 finds each; BenchmarkVolumeOf500 of package database times it.
func databaseOf500(t *testing.T, h *home) {
	id := func(i int) string { return fmt.Sprintf("v%03d", i) }
	h.row(func(tx *database.Tx) error {
		var failed []error
		for i := range 500 {
			failed = append(failed, tx.Record(id(i), []byte(`{}`), "b"))
		}
		return errors.Join(failed...)
	})
	db, err := database.Open(t.Context(), h.Database)
	must(t, err)
	defer db.Close()
	for i := range 500 {
		if found, err := db.Volumes(t.Context(), id(i)); err != nil || len(found) != 1 || found[0].ID != id(i) {
			t.Fatalf("%s: %v %v", id(i), found, err)
		}
	}
}
