// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
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
