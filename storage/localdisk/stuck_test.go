// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/progress"
)

// A copy was cancelled, but one of its reads hangs: all that meet it are told
// so at once, and nothing is touched until the storage answers.
func TestCancelledCopyWaitsForItsStorage(t *testing.T) {
	const says = "was cancelled; waits for its storage, which does not answer"
	for name, c := range map[string]struct {
		backend string
		hang    func(*testing.T, *world) (answers func())
		cancel  *failure.Kind
	}{
		"the kernel keeps its volume open": {"lvm", func(t *testing.T, w *world) func() {
			open := func(is bool) {
				must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes["dh_"+domain+"_vda"].Open = is }))
			}
			open(true)
			return func() { open(false) }
		}, failure.NotFound},
		"what it ran keeps its lock": {"dir", func(t *testing.T, w *world) func() {
			l, err := lock.Try(w.path("run/diskhook/lock"), "local-"+domain+"-vda")
			must(t, err)
			return l.Release
		}, failure.Temporary},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.backend)
			if _, err := w.hook("DISKHOOK_FAILPOINT=fill.created=kill"); err == nil {
				t.Fatal("the failpoint did not fire")
			}
			w.awaitUnlocked()
			st, err := progress.Read(w.statusFile())
			must(t, err)
			st.State, st.Cancelled, st.PID, st.Updated = progress.Failed, true, os.Getpid(), time.Now().Add(-time.Minute)
			b, err := json.Marshal(st)
			must(t, errors.Join(err, os.WriteFile(w.statusFile(), b, 0o644)))
			answers := c.hang(t, w)

			entries, err := service().List(t.Context())
			must(t, err)
			if len(entries) != 1 || entries[0].Copy.State != localdisk.Updating || !strings.Contains(entries[0].Problem, says) {
				t.Errorf("list: %+v", entries)
			}
			began := time.Now()
			_, err = service().Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{})
			if line := failure.Line(err); !errors.Is(err, failure.Temporary) || !strings.Contains(line, "domain vm: disk vda: its last copy "+says+"; check the storage of its source") {
				t.Errorf("start: %s", line)
			}
			err = service().Cancel(t.Context(), domain, "vda")
			if !errors.Is(err, c.cancel) {
				t.Errorf("cancel: %v", err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %v", took)
			}
			again, err := service().List(t.Context())
			must(t, err)
			if len(again) != 1 || again[0].Copy.UUID != entries[0].Copy.UUID || !strings.Contains(again[0].Problem, says) {
				t.Errorf("afterwards: %+v", again)
			}

			answers()
			_, err = w.hook()
			must(t, err)
			w.same(w.stable(), w.flat)
		})
	}
}
