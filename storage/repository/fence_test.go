// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"testing"

	"diskhook/storage/repository/format"
)

// A write that is left behind while the storage hangs does not land when that goes
// on, and nobody gets the lock before it has come back.
func TestAnAbandonedWriteDoesNotLandLate(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	disk, _ := w.diskOnBase()
	begun, wake, back := make(chan struct{}), make(chan struct{}), make(chan struct{})
	stuck := &faulty{kind: format.Image, writing: func() { close(begun); <-wake }, written: func() { close(back) }}
	s := w.on("h1")
	s.Formats = []format.Format{stuck}
	ctx, giveUp := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- s.SetUserData(ctx, "a", disk, []byte(`"late"`)) }()
	<-begun
	giveUp()
	refused(t, <-failed, context.Canceled)
	if stuck.released.Load() {
		t.Error("the lock was given up while the write is under way")
	}
	close(wake)
	<-back
	w.userData("a", disk, "")
	must(t, w.on("h2").SetUserData(t.Context(), "a", disk, []byte(`"next"`))) // it gets the lock
	if !stuck.released.Load() {
		t.Error("the lock was never given up")
	}
	w.userData("a", disk, `"next"`)
}

// A host that was asleep between taking a lock and writing overwrites nothing.
func TestWhoLostTheLockWritesNothing(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	must(t, w.on("h2").SetUserData(ctx, "a", disk, []byte(`"first"`)))
	sleepy := &faulty{kind: format.Image, written: func() {}}
	sleepy.writing = func() { sleepy.lost.Store(true) }
	s := w.on("h1")
	s.Formats = []format.Format{sleepy}
	refused(t, s.SetUserData(ctx, "a", disk, []byte(`"second"`)), errLost)
	w.userData("a", disk, `"first"`)
}

func (w *world) userData(repo, image, wanted string) {
	w.Helper()
	info, err := w.on("h2").GetImage(w.Context(), repo, image)
	if err != nil || string(info.UserData) != wanted {
		w.Errorf("user data %s: %v", info.UserData, err)
	}
}
