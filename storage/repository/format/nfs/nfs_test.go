// SPDX-License-Identifier: Apache-2.0

package nfs_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/formattest"
	"diskhook/storage/repository/format/nfs"
)

// on is the format on one of several hosts, over a directory that all of them
// have; the real server is in the tests of the guest.
func on(host, boot string) nfs.Format {
	return nfs.Format{HostID: host, BootID: boot, Beat: 50 * time.Millisecond, Mounted: mountedWith("rw", "lookupcache=pos", "local_lock=none")}
}

func mountedWith(options ...string) func(string) ([]string, error) {
	return func(string) ([]string, error) { return options, nil }
}

func TestConform(t *testing.T) {
	parameters := map[string]string{"path": filepath.Join(t.TempDir(), "repo")}
	formattest.Conform(t, on("h1", "b1"), parameters, func() (format.Place, error) {
		return on("h2", "b2").Open(t.Context(), parameters)
	})
}

func TestMountsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		options string
		words   string
	}{
		{"rw,nolock,lookupcache=none", "exclude nobody on other hosts (nolock)"},
		{"rw,lookupcache=pos,local_lock=all", "(local_lock=all)"},
		{"rw,lookupcache=pos,local_lock=flock", "(local_lock=flock)"},
		{"rw,vers=4.2,local_lock=none", "would not see what another one made"},
	} {
		f := on("h", "b")
		f.Mounted = mountedWith(strings.Split(c.options, ",")...)
		for _, err := range []error{f.CanCreate(t.Context(), map[string]string{"path": filepath.Join(dir, "r")}), f.Create(t.Context(), map[string]string{"path": filepath.Join(dir, "r")}), func() error {
			must(t, on("h", "b").Create(t.Context(), map[string]string{"path": filepath.Join(dir, "there")}))
			_, err := f.Open(t.Context(), map[string]string{"path": filepath.Join(dir, "there")})
			return err
		}()} {
			if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), c.words) || failure.HintOf(err) == "" {
				t.Errorf("%s: %v", c.options, err)
			}
		}
	}
	err := (nfs.Format{HostID: "h", BootID: "b"}).Create(t.Context(), map[string]string{"path": filepath.Join(dir, "local")})
	if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), "it is not on NFS, but on ") {
		t.Errorf("a local directory: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, f nfs.Format, path string) format.Place {
	t.Helper()
	p, err := f.Open(t.Context(), map[string]string{"path": path})
	must(t, err)
	return p
}

// Who is seen to end is not taken over from: it gave the lock up, died on this
// host, or its boot has ended. A host that fell silent may wake up.
func TestWhoIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	must(t, on("h1", "b1").Create(t.Context(), map[string]string{"path": path}))
	for name, c := range map[string]struct {
		last  nfs.Format
		ends  func(format.Lock)
		taken bool
	}{
		"released":                 {on("h1", "b1"), format.Lock.Release, false},
		"died in this boot":        {on("h2", "b2"), nfs.Die, false},
		"died in an earlier boot":  {on("h2", "b0"), nfs.Die, false},
		"another host fell silent": {on("h1", "b1"), nfs.Die, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id := strings.ReplaceAll(name, " ", "-")
			l, err := open(t, c.last, path).Lock(t.Context(), id)
			must(t, err)
			c.ends(l)
			next, err := open(t, on("h2", "b2"), path).TryLock(t.Context(), id)
			must(t, err)
			defer next.Release()
			if next.TakenOver() != c.taken {
				t.Errorf("taken over: %t", next.TakenOver())
			}
			if err := next.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Two hosts that have one lock at once find out.
func TestLocksThatExcludeNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	must(t, on("h1", "b1").Create(t.Context(), map[string]string{"path": path}))
	l, err := open(t, on("h1", "b1"), path).Lock(t.Context(), "work")
	must(t, err)
	defer l.Release()
	must(t, nfs.Unlock(l)) // the server of this test forgets it
	_, err = open(t, on("h2", "b2"), path).TryLock(t.Context(), "work")
	if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), "host h1 goes on with it") {
		t.Errorf("got %v", err)
	}
}

// A holder whose record cannot be renewed stops by itself.
func TestASilentHolderStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	must(t, on("h1", "b1").Create(t.Context(), map[string]string{"path": path}))
	l, err := open(t, on("h1", "b1"), path).Lock(t.Context(), "work")
	must(t, err)
	must(t, l.Check())
	nfs.Die(l)
	for end := time.Now().Add(time.Minute); l.Check() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it goes on for ever")
		}
	}
	if err := l.Check(); !errors.Is(err, failure.Temporary) || errors.Is(err, lock.ErrHeld) {
		t.Errorf("got %v", err)
	}
}

// What was lost once is not ours again because its record could be written later.
func TestALostLockDoesNotComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	must(t, on("h1", "b1").Create(t.Context(), map[string]string{"path": path}))
	f := on("h1", "b1")
	f.Silence = 10 * time.Millisecond // less than a beat: as if it slept before each
	l, err := open(t, f, path).Lock(t.Context(), "work")
	must(t, err)
	defer l.Release()
	for end := time.Now().Add(time.Minute); l.Check() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it was never lost")
		}
	}
	for range 20 * f.Beat / time.Millisecond {
		if l.Check() == nil {
			t.Fatal("it came back")
		}
		time.Sleep(time.Millisecond)
	}
}
