// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// load writes and reads in the background, as a guest whose QEMU waits for its
// disk to come back, until it is told to end; then it must have met no error.
// Each write is of a pattern of its own, and read again at the end.
func (w *world) load() (end func()) {
	w.Helper()
	in, out, err := os.Pipe()
	must(w.T, err)
	cmd := exec.Command("qemu-io", "--image-opts", "driver=nbd,reconnect-delay=60,export=db,server.type=unix,server.path="+quorum.SocketPath(w.Layout, "db"))
	var said strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &said, &said
	must(w.T, cmd.Start())
	_ = in.Close()
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				done <- n
				return
			case <-time.After(2 * time.Millisecond):
			}
			fmt.Fprintf(out, "aio_write -q -P %d %dk 60k\n", n%250+1, 64*(n%64))
			if n%16 == 15 {
				fmt.Fprintf(out, "aio_flush\nflush\n")
			}
		}
	}()
	return func() {
		w.Helper()
		close(stop)
		n := <-done
		fmt.Fprintf(out, "aio_flush\nflush\n")
		for i := max(0, n-64); i < n; i++ {
			fmt.Fprintf(out, "read -q -P %d %dk 60k\n", i%250+1, 64*(i%64))
		}
		fmt.Fprintf(out, "quit\n")
		_ = out.Close()
		if err := cmd.Wait(); err != nil || strings.Contains(said.String(), "failed") {
			w.Fatalf("the guest met an error: %v: %s", err, said.String())
		}
		if n < 100 {
			w.Errorf("only %d writes", n)
		}
	}
}

// Killed under load, the daemon comes back by itself, and the guest goes on
// without an error.
func TestKilled(t *testing.T) {
	w := served(t)
	end := w.load()
	for range 3 {
		time.Sleep(500 * time.Millisecond)
		daemons := w.daemons()
		if len(daemons) != 1 {
			t.Fatalf("daemons %v", daemons)
		}
		must(t, syscall.Kill(daemons[0], syscall.SIGKILL))
		w.until("restarted", func(l quorum.Live) bool {
			return l.State == quorum.Serving && len(w.daemons()) == 1 && w.daemons()[0] != daemons[0]
		})
	}
	end()
	w.noted(quorum.EventRestarted, "", "")
	w.until("equal", func(l quorum.Live) bool { return !l.Equalising })
	w.stop()
	w.opens("r1", "r2", "r3")
	if d := w.decision(); d.Unclean {
		t.Error("it is not clean")
	}
	w.equalReplicas()
}

// Killed itself, `quorum serve` takes its daemon along; the next one takes over.
func TestServeKilled(t *testing.T) {
	w := served(t)
	end := w.load()
	for range 2 {
		time.Sleep(700 * time.Millisecond)
		must(t, syscall.Kill(w.pid(), syscall.SIGKILL))
		if _, err := w.Start(t.Context(), "db", vda, 30*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	end()
	w.stop()
	w.equalReplicas()
}

// After a power cut the replicas differ in what was in flight, and one of them
// may have missed a lot. It is left out, the others are made equal sector by
// sector, then it is brought up to date.
func TestPowerCut(t *testing.T) {
	w := built(t)
	must(t, os.Rename(w.path("c.raw"), w.path("c.away")))
	w.start()
	w.works("write -P 9 0 1M", "flush")
	must(t, syscall.Kill(w.pid(), syscall.SIGSTOP)) // it must not clean up
	for _, pid := range w.daemons() {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	must(t, syscall.Kill(w.pid(), syscall.SIGKILL))
	w.awaitFree()
	must(t, os.RemoveAll(w.path("run"))) // as a boot does
	must(t, os.Rename(w.path("c.away"), w.path("c.raw")))
	// Two of the newest generation, unclean: nobody can tell which is right.
	_, err := w.Start(t.Context(), "db", vda, 20*time.Second)
	w.refused(err, failure.Precondition, "not closed cleanly", "resync --from")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{From: "r1"})
	must(t, err)
	w.equalReplicas()
}

// What a crash has torn apart, each replica in its own way, has a majority in
// each sector, though no two replicas are equal.
func TestTorn(t *testing.T) {
	w := served(t)
	w.works("write -P 1 2M 4k", "flush")
	must(t, syscall.Kill(w.pid(), syscall.SIGSTOP))
	for _, pid := range w.daemons() {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	must(t, syscall.Kill(w.pid(), syscall.SIGKILL))
	w.awaitFree()
	must(t, os.RemoveAll(w.path("run")))
	w.spoil("r1", "2", "2M", "4k")    // all of a write
	w.spoil("r2", "2", "2M", "2k")    // half of it
	w.spoil("r3", "3", "6M", "512")   // and another fault
	w.spoil("r1", "4", "2500k", "1k") // three versions: no majority
	w.spoil("r2", "5", "2500k", "1k")
	w.start()
	w.works("read -P 2 2M 2k", "read -P 1 2050k 2k", "write -P 7 4M 64k")
	live := w.until("equal", func(l quorum.Live) bool { return l.State == quorum.Serving && !l.Equalising && l.Done == l.Total })
	if live.Repaired != 4096+512 || live.Torn != 1024 {
		t.Errorf("%d bytes repaired, %d torn", live.Repaired, live.Torn)
	}
	w.noted(quorum.EventRepaired, "", "")
	w.noted(quorum.EventTorn, "", "")
	w.works("write -P 8 2500k 1k", "read -P 8 2500k 1k")
	w.stop()
	w.equalReplicas()
}

// A replica behind an NBD server that is stopped is cut off; the guest goes on
// within the hang timeout, and it gets its vote back when it answers again.
func TestHung(t *testing.T) {
	w := newWorld(t)
	remote := w.path("remote.raw")
	must(t, os.WriteFile(remote, nil, 0o600))
	must(t, os.Truncate(remote, diskSize))
	socket := w.path("remote.sock")
	server := exec.Command("qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", socket, "-x", "disk", remote)
	must(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	for range 200 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	b := w.building()
	l, err := quorum.ParseReplica("nbd+unix:///disk?socket="+socket, "")
	must(t, err)
	b.Replicas[2], b.Overwrite = l, true
	_, err = w.Build(t.Context(), b)
	must(t, err)
	w.start()
	w.works("write -P 5 1M 64k", "flush")
	must(t, server.Process.Signal(syscall.SIGSTOP))
	began := time.Now()
	w.works("write -P 6 1M 64k", "read -P 6 1M 64k", "flush")
	if took := time.Since(began); took > hangTimeout+2*time.Second {
		t.Errorf("the guest waited for %s", took)
	}
	w.untilState("r3", quorum.Suspected, string(quorum.Hung))
	w.noted(quorum.EventSuspect, "r3", quorum.Hung)
	w.works("write -P 7 2M 64k", "read -P 7 2M 64k")
	must(t, server.Process.Signal(syscall.SIGCONT))
	w.opensNothingOf("r3")
	must(t, w.ResyncServed(t.Context(), "db", "", nil))
	w.untilState("r3", quorum.Voting, "")
	w.works("write -P 8 3M 64k", "flush")
	w.stop()
	v, err := w.Verify(t.Context(), "db", nil)
	if err != nil || !v.Equal() {
		t.Errorf("%+v, %v", v, err)
	}
}
