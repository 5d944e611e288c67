// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
)

// judged is the one copy that there is, of a domain that is gone.
func (w *world) judged() localdisk.Judged {
	w.t.Helper()
	all, err := service().Judge(w.t.Context(), func(string) bool { return true })
	must(w.t, err)
	all = slices.DeleteFunc(all, func(j localdisk.Judged) bool { return j.Kind != "copy" })
	if len(all) != 1 {
		w.t.Fatalf("judged %+v", all)
	}
	return all[0]
}

// A complete copy without a receipt, of a domain that is gone, has no verb but this one:
// gc keeps it, and removes it for who names it, when nobody works on it.
func TestGCDiscardsACopyWithoutAReceipt(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		_, err := w.hook()
		must(t, err)
		w.reboot()
		refused := func(kind *failure.Kind, hint string) {
			t.Helper()
			j := w.judged()
			err := service().Discard(t.Context(), j, localdisk.WipeNone)
			if !errors.Is(err, kind) || !strings.Contains(failure.HintOf(err), hint) || j.Discardable() == nil {
				t.Errorf("%v (%q)", err, failure.HintOf(err))
			}
			if !w.ready() {
				t.Fatal("it is gone")
			}
		}
		refused(failure.Conflict, "diskhook local remove --discard-guest-data "+domain+" vda")
		must(t, os.Remove(w.path("var/lib/diskhook/receipts/"+domain+"/vda.json")))
		must(t, os.MkdirAll(w.path("run/diskhook/lock"), 0o755))
		l, err := lock.Try(w.path("run/diskhook/lock"), "local-"+domain+"-vda")
		must(t, err)
		refused(failure.Temporary, "diskhook local cancel")
		l.Release()
		j := w.judged()
		bare, is := strings.CutPrefix(j.Hint, "diskhook local gc --yes --discard-guest-data ")
		if is != (backend == "thin") || is && !j.Is(bare) || j.Take || !strings.Contains(j.Reason, "its domain is not there any more") {
			t.Errorf("judged %+v", j)
		}
		must(t, w.process("gc")) // which keeps it
		must(t, service().Discard(t.Context(), w.judged(), localdisk.WipeNone))
		if got := decisions(t)["copy"]; got != "" {
			t.Errorf("left: %s", got)
		}
		must(t, service().Discard(t.Context(), j, localdisk.WipeNone)) // gone already
	})
}

// discard is the process: the copy of which no receipt tells is given up, by name.
func discard() error {
	s := service()
	wipe, err := localdisk.ParseWipe(os.Getenv("DISKHOOK_TEST_WIPE"))
	if err != nil {
		return err
	}
	all, err := s.Judge(context.Background(), nil)
	for _, j := range all {
		if j.Kind == "copy" {
			err = errors.Join(err, s.Discard(context.Background(), j, wipe))
		}
	}
	return err
}

// unreceipted makes a complete copy of which no receipt tells.
func (w *world) unreceipted() {
	w.t.Helper()
	_, err := w.hook()
	must(w.t, err)
	w.reboot()
	must(w.t, os.Remove(w.path("var/lib/diskhook/receipts/"+domain+"/vda.json")))
}

// A kill anywhere in the removal of such a copy leaves none that is complete as soon as
// a part of it may be gone: adopt refuses it, and gc takes the rest.
func TestGCDiscardConvergesAtEveryPoint(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		wipe := "DISKHOOK_TEST_WIPE=zero"
		if backend == "lvmthin" || backend == "thin" {
			wipe = "DISKHOOK_TEST_WIPE=discard"
		}
		probe := newWorld(t, backend)
		probe.unreceipted()
		points := passed(t, probe, func() { must(t, probe.process("discard", wipe)) })
		if len(points) < 3 {
			t.Fatalf("only %d failpoints: %v", len(points), points)
		}
		for _, point := range points {
			t.Run(point, func(t *testing.T) {
				w := newWorld(t, backend)
				w.unreceipted()
				if err := w.process("discard", wipe, "DISKHOOK_FAILPOINT="+point); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				if w.ready() {
					t.Fatal("a copy counts as complete of which a part may be gone")
				}
				if err := w.process("adopt", "DISKHOOK_TEST_ADOPT=vda", "DISKHOOK_TEST_BACKEND="+backend); err == nil {
					t.Error("it was adopted")
				}
				must(t, w.process("gc", wipe))
				if got := decisions(t)["copy"]; got != "" {
					t.Errorf("left: %s", got)
				}
			})
		}
	})
}

// What the backend would not be wiped with is refused while the copy is whole.
func TestGCDiscardRefusesBeforeItSpoils(t *testing.T) {
	for _, backend := range []string{"lvmthin", "thin"} {
		t.Run(backend, func(t *testing.T) {
			w := newWorld(t, backend)
			w.unreceipted()
			if err := w.process("discard", "DISKHOOK_TEST_WIPE=zero"); err == nil || !strings.Contains(err.Error(), "use discard") {
				t.Errorf("zeros on a thin volume: %v", err)
			}
			if !w.ready() {
				t.Error("it is spoiled")
			}
		})
	}
}
