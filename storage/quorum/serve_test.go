// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// served is a world whose set db is served to vda, by a process of its own.
func served(t *testing.T) *world {
	t.Helper()
	w := built(t)
	w.start()
	return w
}

func (w *world) start() {
	w.Helper()
	w.Cleanup(func() {
		if w.Failed() {
			log, _ := os.ReadFile(w.path("run/diskhook/quorum/db/serve.log"))
			w.Logf("serve.log: %s", log)
		}
		_ = w.Stop(context.Background(), "db", vda)
	})
	e, err := w.Start(w.Context(), "db", vda, time.Minute)
	must(w.T, err)
	if e != (quorum.Endpoint{Kind: "nbd", Socket: quorum.SocketPath(w.Layout, "db"), Export: "db"}) {
		w.Fatalf("%+v", e)
	}
}

func (w *world) stop() {
	w.Helper()
	must(w.T, w.Stop(w.Context(), "db", vda))
}

// guest runs qemu-io commands on the export, as a guest's QEMU would.
func (w *world) guest(commands ...string) (string, error) {
	w.Helper()
	args := []string{"--image-opts", "driver=nbd,reconnect-delay=20,export=db,server.type=unix,server.path=" + quorum.SocketPath(w.Layout, "db")}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-io", args...).CombinedOutput()
	return string(out), err
}

// works fails unless the guest's commands succeed; so does read -P on what it finds.
func (w *world) works(commands ...string) {
	w.Helper()
	if out, err := w.guest(commands...); err != nil || strings.Contains(out, "failed") {
		w.Fatalf("%v: %v: %s", commands, err, out)
	}
}

// until waits until what is told of the set is as ok wants it.
func (w *world) until(what string, ok func(quorum.Live) bool) quorum.Live {
	w.Helper()
	var live quorum.Live
	for range 1200 {
		var err error
		live, err = w.Live("db")
		if err == nil && ok(live) {
			return live
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.Fatalf("never %s: %+v", what, live)
	return live
}

func (w *world) untilState(id, state, why string) {
	w.Helper()
	w.until(id+" is "+state, func(l quorum.Live) bool {
		return slices.ContainsFunc(l.Replicas, func(r quorum.LiveReplica) bool {
			return r.ID == id && r.State == state && strings.Contains(r.Why, why)
		})
	})
}

// noted fails unless the log has that event of that replica.
func (w *world) noted(event, replica string, reason quorum.Reason) {
	w.Helper()
	events, err := w.Events("db")
	must(w.T, err)
	for _, e := range events {
		if e.Event == event && e.Replica == replica && e.Reason == reason {
			return
		}
	}
	w.Errorf("no %s of %q for %q in %+v", event, replica, reason, events)
}

// equalReplicas fails unless all replicas are the same.
func (w *world) equalReplicas() {
	w.Helper()
	v, err := w.Verify(w.Context(), "db", nil)
	if err != nil || !v.Equal() {
		w.Fatalf("not equal: %+v, %v", v, err)
	}
	first := w.replica("r1").Top()
	for _, id := range []string{"r2", "r3"} {
		top := w.replica(id).Top()
		w.tool("qemu-img", "compare", "-q", "-f", first.Format, "-F", top.Format, first.Path, top.Path)
	}
}

func TestServe(t *testing.T) {
	w := served(t)
	w.works("read -P 0x33 3M 192k", "write -P 7 4M 64k", "flush")
	// Once more is the same.
	_, err := w.Start(t.Context(), "db", vda, 5*time.Second)
	must(t, err)
	other := vda
	other.Target, other.Name = "vdb", "vm2"
	_, err = w.Start(t.Context(), "db", other, 5*time.Second)
	w.refused(err, failure.Conflict, "in use by disk vda of domain vm1", "shut that domain down first")
	must(t, w.Stop(t.Context(), "db", other)) // not its own
	w.works("read -P 7 4M 64k")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	w.refused(err, failure.Conflict, "served")
	st, err := os.Stat(quorum.SocketPath(w.Layout, "db"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	must(t, w.Own(t.Context(), "db", quorum.Owner{UID: 64055, GID: 64056}))
	st, err = os.Stat(quorum.SocketPath(w.Layout, "db"))
	if s := st.Sys().(*syscall.Stat_t); err != nil || s.Uid != 64055 || s.Gid != 64056 || st.Mode().Perm() != 0o600 {
		t.Errorf("%+v, %v", s, err)
	}
	w.stop()
	w.stop()
	if _, err := os.Lstat(quorum.SocketPath(w.Layout, "db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	w.opens("r1", "r2", "r3")
	if d := w.decision(); d.Unclean {
		t.Error("it is not clean")
	}
	w.equalReplicas()
	w.noted(quorum.EventServed, "", "")
	w.noted(quorum.EventStopped, "", "")
}

// A veto comes back in the words of Decide, and leaves no claim.
func TestVeto(t *testing.T) {
	w := built(t)
	must(t, os.Rename(w.path("a.raw"), w.path("a.away")))
	must(t, os.Rename(w.path("c.raw"), w.path("c.away")))
	_, err := w.Start(t.Context(), "db", vda, 20*time.Second)
	w.refused(err, failure.Precondition, "1 of its replicas", "2 are needed", "a.raw")
	if _, err := w.Claim("db"); !errors.Is(err, failure.NotFound) {
		t.Errorf("a claim is left: %v", err)
	}
	must(t, os.Rename(w.path("a.away"), w.path("a.raw")))
	w.start() // without r3
	w.works("write -P 9 0 64k", "flush")
	w.untilState("r3", quorum.OutOfSet, "")
	w.stop()
	must(t, os.Rename(w.path("c.away"), w.path("c.raw")))
	w.opens("r1", "r2")
	// It is of an older generation, and is brought up to date while guests run.
	w.start()
	w.works("read -P 9 0 64k", "write -P 10 1M 64k")
	w.untilState("r3", quorum.Voting, "")
	w.works("write -P 11 2M 64k", "read -P 9 0 64k")
	w.noted(quorum.EventResynced, "r3", "")
	w.stop()
	w.opens("r1", "r2", "r3")
	w.equalReplicas()
}

// A replica with other content is outvoted, loses its vote, and gets it back.
func TestCorrupted(t *testing.T) {
	w := built(t)
	w.spoil("r3", "0x11", "3M", "64k")
	w.start()
	w.works("read -P 0x33 3M 192k")
	w.untilState("r3", quorum.Suspected, "mismatch")
	w.noted(quorum.EventBad, "r3", quorum.Mismatch)
	w.noted(quorum.EventSuspect, "r3", quorum.Mismatch)
	w.works("write -P 5 3M 192k", "read -P 5 3M 192k", "flush")
	w.opensNothingOf("r3")
	var told int64
	must(t, w.ResyncServed(t.Context(), "db", "r3", func(done, _ int64) { told = done }))
	w.untilState("r3", quorum.Voting, "")
	w.works("write -P 6 5M 64k", "read -P 5 3M 192k")
	w.stop()
	w.equalReplicas()
	_ = told
}

// opensNothingOf waits until a start would not let the replica vote: the newest
// generation becomes durable right after the guest's request was answered.
func (w *world) opensNothingOf(id string) {
	w.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		d := w.decision()
		if !slices.Contains(d.Open, id) {
			return
		}
		if time.Since(began) > time.Minute {
			w.Fatalf("%s would vote: %+v", id, d)
		}
	}
}

// With two bad replicas of three nobody agrees: the guest gets an error, and
// nothing is repaired.
func TestTwoBad(t *testing.T) {
	w := built(t)
	w.spoil("r2", "0x11", "3M", "64k")
	w.spoil("r3", "0x12", "3M", "64k")
	w.start()
	if out, _ := w.guest("read -P 0x33 3M 64k"); !strings.Contains(out, "Input/output error") {
		t.Errorf("no error: %s", out)
	}
	w.works("read -P 0x33 3136k 64k") // beside it
	w.until("a failure", func(l quorum.Live) bool { return l.Failures > 0 })
	w.noted(quorum.EventFailure, "", "")
	w.stop()
	for id, pattern := range map[string]string{"r1": "0x33", "r2": "0x11", "r3": "0x12"} {
		top := w.replica(id).Top()
		if out := w.tool("qemu-io", "-r", "-f", top.Format, "-c", "read -P "+pattern+" 3M 64k", top.Path); strings.Contains(out, "failed") {
			t.Errorf("%s was changed: %s", id, out)
		}
	}
}

// pid is that of the process that serves.
func (w *world) pid() int {
	w.Helper()
	live, err := w.Live("db")
	must(w.T, err)
	return live.PID
}

// daemons are the qemu-storage-daemons of the set.
func (w *world) daemons() []int {
	w.Helper()
	out, _ := exec.Command("ps", "-o", "pid=", "--ppid", fmt.Sprint(w.pid())).Output()
	var pids []int
	for _, field := range strings.Fields(string(out)) {
		var pid int
		if _, err := fmt.Sscan(field, &pid); err == nil && comm(pid) == "qemu-storage-da" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func comm(pid int) string {
	b, _ := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "comm"))
	return strings.TrimSpace(string(b))
}
