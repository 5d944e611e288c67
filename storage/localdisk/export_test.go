// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// exportTo is the process: an export of the one disk.
func exportTo(file string) error {
	return service().Export(context.Background(), domain, "vda", localdisk.ExportOptions{To: file, Format: "qcow2"})
}

// An export that is killed leaves no file of the name that it was to make, or
// the whole one; gc takes the rest, and nothing else of the directory.
func TestKilledExportIsSwept(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	must(t, os.Mkdir(w.path("out"), 0o755))
	must(t, os.Mkdir(w.path("out/.diskhook-export-mine"), 0o755)) // somebody's own
	to := w.path("out/disk.qcow2")
	points := passed(t, w, func() { must(t, w.process("export", "DISKHOOK_TEST_EXPORT="+w.path("probe.qcow2"))) })
	if len(points) < 4 {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			w.t = t
			_ = os.Remove(to)
			if err := w.process("export", "DISKHOOK_TEST_EXPORT="+to, "DISKHOOK_FAILPOINT="+point); err == nil {
				t.Fatal("the failpoint did not fire")
			}
			w.awaitUnlocked()
			if _, err := os.Lstat(to); err == nil {
				w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", to, w.flat)
			}
			if got := decisions(t)["export"]; got != "taken: left by an export that did not end\n" {
				t.Fatalf("judged %q", got)
			}
			must(t, w.process("gc"))
			if got := decisions(t)["export"]; got != "" {
				t.Errorf("left: %s", got)
			}
			rest, _ := filepath.Glob(w.path("out/.*"))
			if len(rest) != 1 || filepath.Base(rest[0]) != ".diskhook-export-mine" {
				t.Errorf("left in the directory: %v", rest)
			}
		})
	}
	w.t = t
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
}

// An export that is stopped or has no room leaves nothing, not even for gc.
func TestFailedExportLeavesNothing(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	must(t, os.Mkdir(w.path("out"), 0o755))
	nothing := func() {
		t.Helper()
		if rest, _ := filepath.Glob(w.path("out/*")); len(rest) > 0 {
			t.Errorf("left: %v", rest)
		}
		if rest, _ := filepath.Glob(w.path("out/.*")); len(rest) > 0 {
			t.Errorf("left: %v", rest)
		}
		if rest, _ := os.ReadDir(w.path("var/lib/diskhook/exports")); len(rest) > 0 {
			t.Errorf("left: %v", rest)
		}
	}
	o := localdisk.ExportOptions{To: w.path("out/disk.raw"), Format: "raw"}

	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(int64, int64) { cancel() }
	o.Rate = 1 << 20
	if err := service().Export(ctx, domain, "vda", o); err == nil {
		t.Error("it was not stopped")
	}
	nothing()

	full := "#!/bin/sh\ncase $1 in convert) echo 'qemu-img: error while writing at byte 0: No space left on device' >&2; exit 1;; esac\nexec qemu-img \"$@\"\n"
	must(t, os.WriteFile(w.path("tools/qemu-img"), []byte(full), 0o755))
	err = service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: o.To, Format: "raw"})
	if !errors.Is(err, failure.NoSpace) || !strings.Contains(err.Error(), "export") {
		t.Errorf("without room: %v", err)
	}
	nothing()
}

// hangExports has qemu-img convert last for ever.
func hangExports(w *world) {
	w.t.Helper()
	hang := "#!/bin/sh\ncase $1 in convert) : >" + w.path("exporting") + "; exec sleep 600;; esac\nexec qemu-img \"$@\"\n"
	must(w.t, os.WriteFile(w.path("tools/qemu-img"), []byte(hang), 0o755))
}

// awaitExport waits until qemu-img hangs.
func awaitExport(w *world) {
	w.t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(w.path("exporting")); err == nil {
			return
		}
		if time.Since(began) > 2*time.Minute {
			w.t.Fatal("nobody exports the disk")
		}
	}
}

// Whoever meets an export is told of it, and how it ends; a cancelled one ends,
// and leaves nothing.
func TestExportIsToldAndCancelled(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	hangExports(w)
	must(t, os.Mkdir(w.path("out"), 0o755))
	o := localdisk.ExportOptions{To: w.path("out/disk.raw"), Format: "raw"}
	ended := make(chan error, 1)
	go func() { ended <- service().Export(context.Background(), domain, "vda", o) }()
	awaitExport(w)

	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 1 || !entries[0].Exporting || !entries[0].Busy || entries[0].Problem != "" {
		t.Errorf("list: %+v", entries)
	}
	const says, stop = "domain vm: disk vda: it is being exported", "`diskhook local cancel vm vda`"
	for who, meet := range map[string]func() error{
		"a start": func() error {
			_, err := service().Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{Deadline: time.Second})
			return err
		},
		"a second export": func() error {
			_, err := service().ExportCommands(t.Context(), domain, "vda", localdisk.ExportOptions{To: w.path("out/other.raw"), Format: "raw"})
			return err
		},
		"remove": func() error {
			return service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true})
		},
	} {
		err := meet()
		if !errors.Is(err, failure.Temporary) || !strings.HasPrefix(err.Error(), says) || !strings.Contains(failure.HintOf(err), stop) {
			t.Errorf("%s: %v (%s)", who, err, failure.HintOf(err))
		}
	}

	must(t, service().Cancel(t.Context(), domain, "vda"))
	err = <-ended
	if !errors.Is(err, failure.Temporary) || err.Error() != "domain vm: disk vda: export: it was cancelled; nothing is left of the file" {
		t.Errorf("the export: %v", err)
	}
	if rest, err := os.ReadDir(w.path("out")); err != nil || len(rest) > 0 {
		t.Errorf("left: %v %v", rest, err)
	}
	if service().Exporting(domain, "vda") {
		t.Error("it is being exported still")
	}
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
}

// What an export runs dies with it, so that the disk is free at once.
func TestKilledExportKeepsNobodyOut(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	hangExports(w)
	cmd := exec.Command(os.Args[0], "export")
	cmd.Env = append(os.Environ(), "DISKHOOK_TEST_EXPORT="+w.path("disk.qcow2"))
	must(t, cmd.Start())
	awaitExport(w)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	w.awaitUnlocked()
	if service().Exporting(domain, "vda") {
		t.Error("it is being exported still")
	}
	_, err = w.hook()
	must(t, err)
	if got := decisions(t)["export"]; got != "taken: left by an export that did not end\n" {
		t.Errorf("judged %q", got)
	}
}

// The folder that a record names is removed without following a link, and only
// if its name is one that we give.
func TestForgedExportRecords(t *testing.T) {
	w := newWorld(t, "dir")
	const id = "3eca680a-d81e-4c67-8545-58820e36be4d"
	must(t, os.MkdirAll(w.path("precious"), 0o755))
	must(t, os.WriteFile(w.path("precious/data"), []byte("x"), 0o644))
	must(t, os.Symlink(w.path("precious"), w.path(".diskhook-export-"+id)))
	must(t, os.MkdirAll(w.path("var/lib/diskhook/exports"), 0o700))
	record := w.path("var/lib/diskhook/exports/" + id + ".json")
	for folder, kept := range map[string]bool{w.path("precious"): true, w.path(".diskhook-export-" + id): false} {
		must(t, os.WriteFile(record, encode(t, map[string]string{"schema": "diskhook.export/v1", "domain": domain, "key": "vda", "folder": folder}), 0o600))
		must(t, w.process("gc"))
		if _, err := os.Stat(record); (err == nil) != kept {
			t.Errorf("%s: record %v", folder, err)
		}
		if _, err := os.Stat(w.path("precious/data")); err != nil {
			t.Errorf("%s: %v", folder, err)
		}
	}
}

// What a dry run shows is what is run, and it does nothing.
func TestExportCommands(t *testing.T) {
	w := newWorld(t, "lvm")
	_, err := w.hook()
	must(t, err)
	o := localdisk.ExportOptions{To: w.path("out.raw"), Format: "raw", Rate: 1 << 20}
	lines, err := service().ExportCommands(t.Context(), domain, "vda", o)
	must(t, err)
	text := strings.Join(lines, "\n")
	for _, want := range []string{"qemu-img convert -p ", " -r 1048576 ", " -O raw -- ", ".diskhook-export-ID/disk\n", " and compare it with ", "mv -n -- ", w.path("out.raw")} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	w.reboot()
	lines, err = service().ExportCommands(t.Context(), domain, "vda", o)
	must(t, err)
	if !strings.HasPrefix(lines[0], "lvm lvchange") {
		t.Errorf("an inactive volume: %q", lines)
	}
	if _, err := os.Lstat(o.To); err == nil {
		t.Error("a dry run made the file")
	}
	must(t, os.WriteFile(o.To, nil, 0o600))
	if _, err := service().ExportCommands(t.Context(), domain, "vda", o); !errors.Is(err, failure.Conflict) {
		t.Errorf("a file that is there: %v", err)
	}
}
