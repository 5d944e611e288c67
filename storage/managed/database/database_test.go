// SPDX-License-Identifier: Apache-2.0

package database_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"diskhook/storage/failure"
	"diskhook/storage/managed/database"
)

// The test binary also is the other process that writes.
func TestMain(m *testing.M) {
	if path := os.Getenv("DISKHOOK_TEST_DATABASE"); path != "" {
		if err := increment(path, 10); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T) (*database.DB, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "with space?", "managed.db")
	db, err := database.Open(t.Context(), path)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	return db, path
}

func record(t *testing.T, db *database.DB, ids ...string) {
	t.Helper()
	must(t, db.Update(t.Context(), func(tx *database.Tx) error {
		var failed []error
		for _, id := range ids {
			failed = append(failed, tx.Record(id, []byte(`{"id":"`+id+`"}`), "boot"))
		}
		return errors.Join(failed...)
	}))
}

func attached(db *database.DB, v database.Volume) error {
	return db.Update(context.Background(), func(tx *database.Tx) error { return tx.Attached(v) })
}

var updated = cmpopts.IgnoreFields(database.Volume{}, "Updated")

func TestVolumes(t *testing.T) {
	db, path := open(t)
	if all, err := db.Volumes(t.Context()); err != nil || len(all) != 0 {
		t.Fatal(all, err)
	}
	record(t, db, "b", "a", "c")
	must(t, attached(db, database.Volume{ID: "a", Path: "/dev/mapper/1", Attachment: []byte(`{"path":"/dev/dm-1"}`), MultipathID: "1"}))
	want := []database.Volume{
		{ID: "a", Path: "/dev/mapper/1", Connection: []byte(`{"id":"a"}`), Attachment: []byte(`{"path":"/dev/dm-1"}`), MultipathID: "1", Boot: "boot"},
		{ID: "b", Connection: []byte(`{"id":"b"}`), Boot: "boot"},
		{ID: "c", Connection: []byte(`{"id":"c"}`), Boot: "boot"},
	}
	all, err := db.Volumes(t.Context())
	must(t, err)
	if diff := cmp.Diff(want, all, updated); diff != "" {
		t.Error(diff)
	}
	if all[0].Updated == "" || all[1].Updated != "" {
		t.Errorf("updated: %q %q", all[0].Updated, all[1].Updated)
	}
	some, err := db.Volumes(t.Context(), "c", "nobody", "a")
	must(t, err)
	if diff := cmp.Diff([]database.Volume{want[0], want[2]}, some, updated); diff != "" {
		t.Error(diff)
	}
	// A second row for one device.
	err = attached(db, database.Volume{ID: "b", Path: "/dev/mapper/1", MultipathID: "1"})
	if !errors.Is(err, database.ErrMultipathTaken) || !errors.Is(err, failure.Conflict) {
		t.Errorf("%v", err)
	}
	// Of the same boot it stays with its row.
	must(t, db.Update(t.Context(), func(tx *database.Tx) error { return tx.GiveUpMultipathID("1", "boot") }))
	if err := attached(db, database.Volume{ID: "b", MultipathID: "1"}); !errors.Is(err, database.ErrMultipathTaken) {
		t.Errorf("%v", err)
	}
	if err := attached(db, database.Volume{ID: "nobody", Path: "/x"}); !errors.Is(err, failure.Conflict) {
		t.Errorf("%v", err)
	}
	record(t, db, "a") // begins anew
	must(t, attached(db, database.Volume{ID: "b", Path: "/dev/mapper/1", MultipathID: "1"}))
	must(t, db.Update(t.Context(), func(tx *database.Tx) error { return errors.Join(tx.Forget("b"), tx.Forget("nobody")) }))
	left, err := db.Volumes(t.Context())
	must(t, err)
	if diff := cmp.Diff([]database.Volume{{ID: "a", Connection: []byte(`{"id":"a"}`), Boot: "boot"}, want[2]}, left); diff != "" {
		t.Error(diff)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Size() == 0 {
		t.Errorf("%v %v", st, err)
	}
}

func TestAnUpdateThatFailsChangesNothing(t *testing.T) {
	db, _ := open(t)
	no := errors.New("no")
	err := db.Update(t.Context(), func(tx *database.Tx) error {
		return errors.Join(tx.Record("a", []byte(`{}`), "boot"), tx.SetClaim(database.Claim{Volume: "a"}), no)
	})
	if !errors.Is(err, no) {
		t.Fatal(err)
	}
	all, err := db.Volumes(t.Context())
	claims, err2 := db.Claims(t.Context())
	if err != nil || err2 != nil || len(all)+len(claims) != 0 {
		t.Errorf("%v %v %v %v", all, claims, err, err2)
	}
}

func TestClaimsAndIdentities(t *testing.T) {
	db, _ := open(t)
	c := database.Claim{Volume: "a", Domain: "d", Boot: "boot", Attached: true}
	i := database.Identity{Volume: "a", Connection: "digest", WWN: "3600", Size: 1 << 40}
	record(t, db, "a")
	must(t, db.Update(t.Context(), func(tx *database.Tx) error {
		if none, err := tx.Claim("a"); none != nil || err != nil {
			t.Errorf("%v %v", none, err)
		}
		return errors.Join(tx.SetClaim(c), tx.SetIdentity(i))
	}))
	claims, err := db.Claims(t.Context())
	must(t, err)
	if diff := cmp.Diff(map[string]database.Claim{"a": c}, claims); diff != "" {
		t.Error(diff)
	}
	// The identity outlives the row, the claim does not.
	must(t, db.Update(t.Context(), func(tx *database.Tx) error {
		if now, err := tx.Claim("a"); err != nil || *now != c {
			t.Errorf("%v %v", now, err)
		}
		return tx.Forget("a")
	}))
	claims, err = db.Claims(t.Context())
	now, err2 := db.Identity(t.Context(), "a")
	if err != nil || err2 != nil || len(claims) != 0 || *now != i {
		t.Errorf("%v %v %v %v", claims, now, err, err2)
	}
	must(t, db.Update(t.Context(), func(tx *database.Tx) error { return tx.ForgetIdentity("a") }))
	if now, err := db.Identity(t.Context(), "a"); now != nil || err != nil {
		t.Errorf("%v %v", now, err)
	}
}

// VDSM's file: what VDSM wrote is read, its mode stays, and VDSM can read what
// is written. The statements are those of the version 1 that VDSM creates.
func TestVDSMsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "managedvolume.db")
	vdsm, err := sql.Open("sqlite", path)
	must(t, err)
	defer vdsm.Close()
	for _, statement := range []string{
		`CREATE TABLE volumes (vol_id TEXT PRIMARY KEY, path TEXT, connection_info TEXT, attachment TEXT, multipath_id TEXT, updated datetime)`,
		`CREATE UNIQUE INDEX multipath_id ON volumes (multipath_id)`,
		`CREATE TABLE versions (version INTEGER PRIMARY KEY, description TEXT, updated datetime)`,
		`INSERT INTO versions VALUES (1, 'Initial version', datetime('now'))`,
	} {
		_, err := vdsm.Exec(statement)
		must(t, err)
	}
	_, err = vdsm.Exec(`INSERT INTO volumes (vol_id, connection_info) VALUES (?, ?)`, "theirs", []byte(`{}`))
	must(t, err)
	must(t, os.Chmod(path, 0o644))
	db, err := database.Open(t.Context(), path)
	must(t, err)
	defer db.Close()
	all, err := db.Volumes(t.Context())
	must(t, err)
	if diff := cmp.Diff([]database.Volume{{ID: "theirs", Connection: []byte(`{}`)}}, all); diff != "" {
		t.Error(diff)
	}
	record(t, db, "ours")
	must(t, attached(db, database.Volume{ID: "ours", Path: "/dev/mapper/1", Attachment: []byte(`{}`), MultipathID: "1"}))
	var path2, kind string
	must(t, vdsm.QueryRow(`SELECT path, typeof(connection_info) FROM volumes WHERE multipath_id = '1'`).Scan(&path2, &kind))
	if path2 != "/dev/mapper/1" || kind != "blob" {
		t.Errorf("%s %s", path2, kind)
	}
	var versions int
	must(t, vdsm.QueryRow(`SELECT count(*) FROM versions`).Scan(&versions))
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o644 || versions != 1 {
		t.Errorf("%v %v, %d versions", st.Mode(), err, versions)
	}
	// What VDSM deletes and writes anew is VDSM's, and no domain's.
	must(t, db.Update(t.Context(), func(tx *database.Tx) error {
		return tx.SetClaim(database.Claim{Volume: "ours", Domain: "d", Boot: "boot"})
	}))
	_, err = vdsm.Exec(`DELETE FROM volumes WHERE vol_id = 'ours'; INSERT INTO volumes (vol_id, connection_info) VALUES ('ours', ?)`, []byte(`{}`))
	must(t, err)
	again, err := db.Volumes(t.Context(), "ours")
	must(t, err)
	claims, err := db.Claims(t.Context())
	if len(again) != 1 || again[0].Boot != "" || len(claims) != 0 || err != nil {
		t.Errorf("%+v %v %v", again, claims, err)
	}
	_, err = vdsm.Exec(`INSERT INTO versions VALUES (2, 'Later', datetime('now'))`)
	must(t, err)
	if _, err := database.Open(t.Context(), path); !errors.Is(err, failure.Precondition) || failure.HintOf(err) == "" {
		t.Errorf("a newer schema: %v", err)
	}
}

func TestNotADatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	must(t, os.WriteFile(path, []byte(strings.Repeat("not a database ", 100)), 0o600))
	_, err := database.Open(t.Context(), path)
	if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

// increment adds to a number in the database, reading before it writes.
func increment(path string, times int) error {
	for range times {
		db, err := database.Open(context.Background(), path)
		if err != nil {
			return err
		}
		err = db.Update(context.Background(), func(tx *database.Tx) error {
			rows, err := tx.Volumes()
			if err != nil {
				return err
			}
			return tx.Record(fmt.Sprintf("v%03d", len(rows)), []byte(`{}`), "boot")
		})
		if err := errors.Join(err, db.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Writers of several processes, and of several goroutines in each, come one
// after the other: none loses what another wrote.
func TestOneWriterAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "managed.db")
	exe, err := os.Executable()
	must(t, err)
	const writers = 3
	failed := make([]error, 2*writers)
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() { failed[i] = increment(path, 10) })
		wait.Go(func() {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), "DISKHOOK_TEST_DATABASE="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				failed[writers+i] = fmt.Errorf("%w: %s", err, out)
			}
		})
	}
	wait.Wait()
	must(t, errors.Join(failed...))
	db, err := database.Open(t.Context(), path)
	must(t, err)
	defer db.Close()
	all, err := db.Volumes(t.Context())
	must(t, err)
	if len(all) != 2*writers*10 {
		t.Errorf("%d rows", len(all))
	}
}

func BenchmarkVolumeOf500(b *testing.B) {
	path := filepath.Join(b.TempDir(), "managed.db")
	db, err := database.Open(b.Context(), path)
	if err == nil {
		err = db.Update(b.Context(), func(tx *database.Tx) error {
			for i := range 500 {
				if err := tx.Record(fmt.Sprintf("v%03d", i), []byte(`{}`), "boot"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := errors.Join(err, db.Close()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		db, err := database.Open(b.Context(), path)
		if err == nil {
			_, err = db.Volumes(b.Context(), "v250")
		}
		if err := errors.Join(err, db.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
