// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
			now := w.daemons()
			return l.State == quorum.Serving && len(now) == 1 && now[0] != daemons[0]
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

// A replica behind an NBD server that is stopped is cut off; the guest goes on
// within the hang timeout, and it gets its vote back when it answers again.
func TestHung(t *testing.T) {
	w := newWorld(t)
	remote := w.path("remote.raw")
	must(t, os.WriteFile(remote, nil, 0o600))
	must(t, os.Truncate(remote, diskSize))
	socket := w.path("remote.sock")
	server := w.nbdServer(socket, "driver=raw,file.driver=file,file.filename="+remote)
	b := w.building()
	l, err := quorum.ParseReplica("nbd+unix:///disk?socket="+socket, "")
	must(t, err)
	b.Replicas[2], b.Overwrite = l, true
	_, err = w.Build(t.Context(), b)
	must(t, err)
	w.start()
	w.works("write -P 5 1M 64k", "flush")
	must(t, server.Signal(syscall.SIGSTOP))
	began := time.Now()
	w.works("write -P 6 1M 64k", "read -P 6 1M 64k", "flush")
	if took := time.Since(began); took > hangTimeout+time.Minute {
		t.Errorf("the guest waited for %s", took)
	}
	w.untilState("r3", quorum.Suspected, string(quorum.Hung))
	w.noted(quorum.EventSuspect, "r3", quorum.Hung)
	w.works("write -P 7 2M 64k", "read -P 7 2M 64k")
	must(t, server.Signal(syscall.SIGCONT))
	w.opensNothingOf("r3")
	must(t, w.ResyncServed(t.Context(), "db", "", nil))
	w.untilState("r3", quorum.Voting, "")
	w.works("write -P 8 3M 64k", "flush")
	time.Sleep(1500 * time.Millisecond) // a report of what it was before would come now
	w.untilState("r3", quorum.Voting, "")
	w.stop()
	v, err := w.Verify(t.Context(), "db", nil)
	if err != nil || !v.Equal() {
		t.Errorf("%+v, %v", v, err)
	}
}

// nbdServer serves a file by qemu-nbd, as image says, until the test ends or
// it is killed.
func (w *world) nbdServer(socket, image string) *os.Process {
	w.Helper()
	_ = os.Remove(socket)
	server := exec.Command("qemu-nbd", "--image-opts", "-t", "-e", "8", "-k", socket, "-x", "disk", image)
	must(w.T, server.Start())
	w.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	for range 200 {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			return server.Process
		}
		time.Sleep(20 * time.Millisecond)
	}
	w.Fatal("qemu-nbd does not listen")
	return nil
}

// A replica with I/O errors is reported by QEMU, and loses its vote.
func TestIOErrors(t *testing.T) {
	for reason, test := range map[quorum.Reason]struct{ inject, guest string }{
		quorum.WriteError: {"iotype=write", "write -P 5 1M 64k"},
		quorum.FlushError: {"iotype=flush", "flush"},
	} {
		t.Run(string(reason), func(t *testing.T) {
			w := newWorld(t)
			b := w.building()
			l, injects := w.remote("remote")
			b.Replicas[2], b.Overwrite = l, true
			_, err := w.Build(t.Context(), b)
			must(t, err)
			injects(test.inject)
			w.start()
			w.works("read -P 0x33 3M 192k", "write -P 4 2M 64k", test.guest, "flush")
			w.untilState("r3", quorum.Suspected, string(reason))
			w.noted(quorum.EventBad, "r3", reason)
			w.works("read -P 4 2M 64k")
			w.opensNothingOf("r3")
			if err := w.ResyncServed(t.Context(), "db", "r3", nil); reason == quorum.WriteError && err == nil {
				t.Error("it was resynced, though it cannot be written")
			}
			w.works("write -P 6 2M 64k", "read -P 6 2M 64k") // the failed resync leaves no trace
			w.stop()
		})
	}
}

// A replica that is too short, and one that is gone, do not keep the others.
func TestTruncated(t *testing.T) {
	w := built(t)
	must(t, os.Truncate(w.path("c.raw"), diskSize/2))
	w.start()
	w.works("read -P 0x33 3M 192k", "write -P 5 6M 64k", "flush")
	w.untilState("r3", quorum.OutOfSet, "bytes")
	w.stop()
	w.opens("r1", "r2")
}

// In use by another process is said in one line, and leaves nothing behind.
func TestInUse(t *testing.T) {
	w := built(t)
	user := exec.Command("qemu-io", "-f", "raw", "-c", "sleep 60000", w.path("c.raw"))
	must(t, user.Start())
	defer func() { _ = user.Process.Kill(); _ = user.Wait() }()
	time.Sleep(500 * time.Millisecond)
	_, err := w.Start(t.Context(), "db", vda, 20*time.Second)
	w.refused(err, failure.Conflict, "replica r3", "c.raw", "is in use by another process", "fuser")
	w.awaitFree()
}

// Killed between any two steps, a start or a stop is brought to its end by the
// same call.
func TestStartAndStopConverge(t *testing.T) {
	for _, point := range []string{"quorum.claimed=kill", "quorum.launch=kill", "quorum.released=kill"} {
		t.Run(point, func(t *testing.T) {
			w := built(t)
			for _, verb := range []job{{Start: true}, {Stop: true}} {
				_ = w.verbNow(verb, "DISKHOOK_FAILPOINT="+point)
				must(t, w.verbNow(verb))
			}
			w.opens("r1", "r2", "r3")
			if d := w.decision(); d.Unclean {
				t.Error("it is not clean")
			}
			w.start()
			w.works("write -P 5 6M 64k")
		})
	}
}

// serving is `quorum serve` of a claimed set, as a unit's process.
func (w *world) serving(env ...string) *exec.Cmd {
	w.Helper()
	serving := exec.Command(os.Args[0], "quorum", "serve", "db")
	serving.Env = append(os.Environ(), env...)
	must(w.T, os.MkdirAll(w.path("run/diskhook/quorum/db"), 0o711))
	must(w.T, os.WriteFile(w.path("run/diskhook/quorum/db/claim.json"), []byte(`{"domain":"`+vda.Domain+`","target":"vda","name":"vm1"}`), 0o600))
	must(w.T, serving.Start())
	return serving
}

// A unit whose voting daemon is started anew is not about to end: systemd would kill
// it a while after it had been told so (sd_notify(3)), under the guest.
func TestKilledAndTold(t *testing.T) {
	w := built(t)
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(t, err)
	defer systemd.Close()
	must(t, systemd.SetReadDeadline(time.Now().Add(time.Minute)))
	told := func() string {
		message := make([]byte, 4096)
		n, err := systemd.Read(message)
		must(t, err)
		return string(message[:n])
	}
	serving := w.serving("NOTIFY_SOCKET=" + socket)
	defer func() { _ = serving.Process.Kill(); _ = serving.Wait() }()
	if first := told(); first != "READY=1" {
		t.Fatalf("it began with %s", first)
	}
	must(t, syscall.Kill(w.daemons()[0], syscall.SIGKILL))
	if again := told(); again != "READY=1" {
		t.Errorf("the daemon was killed: %s", again)
	}
	must(t, serving.Process.Signal(syscall.SIGTERM))
	if last := told(); last != "STOPPING=1" {
		t.Errorf("it ended with %s", last)
	}
	must(t, serving.Wait())
}

// The process that serves is killed at each of its steps; the next start works,
// and the guest's data is there.
func TestServeConverges(t *testing.T) {
	for _, point := range []string{"quorum.mark.r1", "quorum.mark.r3", "quorum.raised", "quorum.known", "quorum.flushed"} {
		t.Run(point, func(t *testing.T) {
			w := built(t)
			serving := w.serving("DISKHOOK_FAILPOINT=" + point + "=kill")
			if point == "quorum.flushed" {
				w.until("served", func(l quorum.Live) bool { return l.State == quorum.Serving })
				w.works("write -P 5 6M 64k", "flush")
				must(t, serving.Process.Signal(syscall.SIGTERM))
			}
			_ = serving.Wait()
			w.awaitFree()
			w.start()
			if point == "quorum.flushed" {
				w.works("read -P 5 6M 64k")
			}
			w.works("write -P 6 6M 64k", "flush", "read -P 0x33 3M 192k")
			w.until("equal", func(l quorum.Live) bool { return !l.Equalising })
			w.stop()
			w.equalReplicas()
		})
	}
}
