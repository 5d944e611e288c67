// SPDX-License-Identifier: Apache-2.0

package privileged_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/hooks/privileged"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// TestLyingRelease: no request makes a copy go that its receipt, its user or a
// saved memory want kept.
func TestLyingRelease(t *testing.T) {
	const otherImage, otherVolume = "b07a37de-95d6-4682-84cd-c8c9201327e3", "b3335e60-6d27-46e0-bed8-50e75cca6786"
	fulfil := func(t *testing.T, s *privileged.Server, d localdisk.Disk) {
		if _, err := s.Service.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{}); err != nil {
			t.Fatal(failure.Line(err))
		}
	}
	for name, c := range map[string]struct {
		arrange func(t *testing.T, w *hooktest.World, s *privileged.Server, d localdisk.Disk)
		refused *failure.Kind
		goes    bool
	}{
		"the truth": {arrange: func(t *testing.T, _ *hooktest.World, s *privileged.Server, d localdisk.Disk) { fulfil(t, s, d) }, goes: true},
		"it is open": {func(t *testing.T, w *hooktest.World, s *privileged.Server, d localdisk.Disk) {
			fulfil(t, s, d)
			f, err := os.OpenFile(w.Path("var/lib/diskhook/local/"+volume+".raw"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			guest := exec.Command("sleep", "60")
			guest.Stdin = f
			if err := guest.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = guest.Process.Kill(); _ = guest.Wait() })
		}, failure.Conflict, false},
		"memory was saved with it": {arrange: func(t *testing.T, w *hooktest.World, s *privileged.Server, d localdisk.Disk) {
			fulfil(t, s, d)
			if err := localdisk.MarkSaved(w.Layout, domain); err != nil {
				t.Fatal(err)
			}
		}},
		"it is to be kept": {arrange: func(t *testing.T, _ *hooktest.World, s *privileged.Server, d localdisk.Disk) {
			d.OnStop = localdisk.Keep
			fulfil(t, s, d)
		}},
		"never fulfilled": {arrange: func(t *testing.T, _ *hooktest.World, s *privileged.Server, d localdisk.Disk) {
			if err := s.Service.Prestage(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{}); err != nil {
				t.Fatal(err)
			}
		}},
		"fulfilled is another": {arrange: func(t *testing.T, _ *hooktest.World, s *privileged.Server, d localdisk.Disk) {
			if err := s.Service.Prestage(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{}); err != nil {
				t.Fatal(err)
			}
			d.Image, d.Volume = otherImage, otherVolume
			fulfil(t, s, d)
		}},
		"its receipt cannot be read": {func(t *testing.T, w *hooktest.World, s *privileged.Server, d localdisk.Disk) {
			fulfil(t, s, d)
			w.Write("var/lib/diskhook/receipts/"+domain+"/"+image+".json", "{")
		}, failure.Precondition, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, server := newServer(t)
			w.Chain("images")
			d := disk(w)
			c.arrange(t, w, server, d)
			request, err := json.Marshal(map[string]any{"domain": domain, "disks": []localdisk.Disk{d}, "reason": "destroyed"})
			if err != nil {
				t.Fatal(err)
			}
			var out, log bytes.Buffer
			done := server.Serve(t.Context(), []string{"local", "release"}, bytes.NewReader(request), &out, &log)
			if done != (c.refused == nil) || !done && !strings.Contains(out.String(), `"code":"`+c.refused.Code+`"`) {
				t.Errorf("done %v: %s", done, out.String())
			}
			_, err = os.Stat(w.Path("var/lib/diskhook/local/" + volume + ".raw"))
			_, unclaimed := os.Stat(w.Path("var/lib/diskhook/receipts/" + domain + "/" + image + ".json"))
			if gone := errors.Is(err, os.ErrNotExist); gone != c.goes || (unclaimed != nil) != c.goes {
				t.Errorf("the copy: %v, its receipt: %v", err, unclaimed)
			}
		})
	}
}

// TestNothingForStrangers: verbs with a domain alone make nothing for one that
// this host knows nothing of.
func TestNothingForStrangers(t *testing.T) {
	w, server := newServer(t)
	before := w.Files("")
	for _, verb := range []string{"mark-saved", "clear-saved", "release-rest", "abandon"} {
		var out, log bytes.Buffer
		if !server.Serve(t.Context(), []string{"local", verb}, strings.NewReader(`{"domain":"`+domain+`"}`), &out, &log) {
			t.Errorf("%s: %s", verb, out.String())
		}
	}
	entries, _ := os.ReadDir(w.Path("var/lib/diskhook/receipts"))
	if len(entries) != 0 || !slices.Equal(before, w.Files("")) {
		t.Errorf("something was made: %v, %s", entries, cmp.Diff(before, w.Files("")))
	}
}
