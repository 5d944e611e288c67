// SPDX-License-Identifier: Apache-2.0

package lock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

func TestOneHolder(t *testing.T) {
	dir := t.TempDir()
	if held, err := lock.Held(dir, "disk"); err != nil || held {
		t.Fatalf("held = %v, %v before anybody took it", held, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Error("asking made a file")
	}
	first, err := lock.Try(dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Try(dir, "disk"); !errors.Is(err, lock.ErrHeld) || !errors.Is(err, failure.Temporary) {
		t.Errorf("second: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := lock.Acquire(ctx, dir, "disk"); !errors.Is(err, lock.ErrHeld) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited: %v", err)
	}
	go func() { time.Sleep(100 * time.Millisecond); first.Release() }()
	second, err := lock.Acquire(t.Context(), dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	second.Release()
}

func TestEitherAloneOrShared(t *testing.T) {
	dir := t.TempDir()
	take := func(want bool) *lock.Lock {
		t.Helper()
		l, alone, err := lock.TryEither(dir, "disk")
		if err != nil || alone != want {
			t.Fatalf("alone %v, %v", alone, err)
		}
		return l
	}
	first := take(true)
	if _, alone, err := lock.TryEither(dir, "disk"); !errors.Is(err, lock.ErrHeld) || alone {
		t.Errorf("beside one who has it alone: %v, %v", alone, err)
	}
	first.Release()
	shared, err := os.Open(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	if err := unix.Flock(int(shared.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	take(false).Release()
	if _, err := lock.Try(dir, "disk"); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("alone beside one who shares it: %v", err)
	}
	if err := shared.Close(); err != nil {
		t.Fatal(err)
	}
	take(true).Release()
}

func TestNameIsOneElementAndNoLinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", ".", "..", "../x", "a/b", "a\x00b"} {
		if _, err := lock.Try(dir, name); !errors.Is(err, failure.Usage) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.Symlink(victim, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Try(dir, "link"); err == nil {
		t.Error("a lock followed a link")
	}
	if _, err := os.Stat(victim); err == nil {
		t.Error("a lock made a file elsewhere")
	}
}

// Who only looks whether a lock is held does not keep anybody from it.
func TestLookingKeepsNobodyOut(t *testing.T) {
	dir := t.TempDir()
	first, err := lock.Try(dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	stop := make(chan struct{})
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := lock.Held(dir, "disk"); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 2000 {
		l, err := lock.Try(dir, "disk")
		if err != nil {
			t.Error(err)
			break
		}
		l.Release()
	}
	close(stop)
	<-looked
}
