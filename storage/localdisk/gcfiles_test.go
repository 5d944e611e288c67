// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestGCOfFilesAboutCopies(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	const other, job = "b07a37de-95d6-4682-84cd-c8c9201327e3", "3eca680a-d81e-4c67-8545-58820e36be4d"
	stale := []string{
		"run/diskhook/status/" + other + "/vda.json",
		"run/diskhook/status/" + other + "/vda.log",
		"run/diskhook/status/" + domain + "/vdb." + job + ".job",
		"var/lib/diskhook/cursors/" + job,
		"var/lib/diskhook/local/dh_" + other + "_vda.json",
	}
	kept := []string{
		"run/diskhook/status/" + domain + "/vda.json",                     // its copy is there
		"run/diskhook/status/" + other + "/vdc." + job + ".job",           // about to start
		"run/diskhook/status/" + other + "/README",                        // none of ours
		"run/diskhook/status/elsewhere/vda.json",                          // none of ours
		"var/lib/diskhook/cursors/README",                                 // none of ours
		"var/lib/diskhook/local/dh_" + domain + "_vda.json",               // the sidecar of a copy
		"var/lib/diskhook/local/notes.json",                               // none of ours
		"var/lib/diskhook/receipts/" + domain + "/vda.json",               // always
		"var/lib/diskhook/local/dh_" + domain + "_vda.raw",                // always
		"var/lib/diskhook/cursors/Ab3def-abcd-abcd-abcd-abcd-abcd-abcdef", // of a volume group that is not there
	}
	for _, name := range append(stale, kept...) {
		if _, err := os.Stat(w.path(name)); err == nil {
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(w.path(name)), 0o755))
		must(t, os.WriteFile(w.path(name), []byte("{}"), 0o644))
	}
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(w.path(stale[2]), old, old))

	judged, err := service().Judge(t.Context(), nil)
	must(t, err)
	var taken []string
	for _, j := range judged {
		if j.Take {
			taken = append(taken, strings.TrimPrefix(j.Object, "file "+w.root+"/"))
		}
	}
	if diff := cmp.Diff(sorted(stale), sorted(taken)); diff != "" {
		t.Error(diff)
	}
	must(t, w.process("gc"))
	for _, name := range stale {
		if _, err := os.Lstat(w.path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range kept {
		if _, err := os.Lstat(w.path(name)); err != nil {
			t.Error(err)
		}
	}
}
