// SPDX-License-Identifier: Apache-2.0

package heartbeat_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format/heartbeat"
)

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// A holder that was told that its lock is lost is not told otherwise because a sign that
// was on its way then is written after all.
func TestALateSignBringsNoLockBack(t *testing.T) {
	hang, signs := make(chan struct{}), atomic.Int32{}
	const most = 200 * time.Millisecond
	h := heartbeat.New("work", 100*time.Millisecond, most, func() error {
		if signs.Add(1) == 2 {
			<-hang
		}
		return nil
	})
	if err := h.Beat(); err != nil {
		t.Fatal(err)
	}
	h.Start()
	until(t, "the lock is lost", func() bool { return h.Check() != nil })
	close(hang)
	h.Stop(func() {})
	if err := h.Check(); !errors.Is(err, failure.Temporary) {
		t.Errorf("it came back: %v", err)
	}
}

// Where a sign hangs who gives the lock up waits no longer than it may be silent, and
// what is last comes after the sign.
func TestStopWaitsForNoStorageThatHangs(t *testing.T) {
	hang, begun, last := make(chan struct{}), make(chan struct{}), make(chan struct{})
	signs := 0
	h := heartbeat.New("work", time.Millisecond, 50*time.Millisecond, func() error {
		if signs++; signs == 2 {
			close(begun)
			<-hang
		}
		return nil
	})
	if err := h.Beat(); err != nil {
		t.Fatal(err)
	}
	hung := make(chan error)
	go func() { hung <- h.Beat() }()
	<-begun
	h.Stop(func() { close(last) })
	select {
	case <-last:
		t.Error("the last came before the sign")
	default:
	}
	close(hang)
	<-last
	if err := <-hung; err != nil {
		t.Error(err)
	}
	if err := h.Beat(); err != nil || signs != 2 {
		t.Errorf("%d signs: %v", signs, err)
	}
}

// Why there is no sign is said.
func TestWhyALockIsLost(t *testing.T) {
	broken := errors.New("the disk is away")
	h := heartbeat.New("work", time.Millisecond, 0, func() error { return broken })
	if err := h.Beat(); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := h.Check(); !errors.Is(err, broken) || !errors.Is(err, failure.Temporary) {
		t.Error(err)
	}
}
