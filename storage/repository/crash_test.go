// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format/clvm"
)

// crash is one verb that is killed: what is there before, and what has to be true
// after another host went on.
type crash struct {
	least int                           // failpoints that it passes at least
	ready func(w *world) []string       // returns the verb's arguments
	after func(w *world, args []string) // images by the ids of their requests
	torn  func(w *world, args []string) // what is true right after the crash
}

const request = "the same request"

// newest is the one image of a repository that is none of those.
func (w *world) newest(repo string, but ...string) string {
	w.Helper()
	page, err := w.on("h2").ListImages(w.Context(), repo, repository.Filter{})
	must(w, err)
	var ids []string
	for _, i := range page.Images {
		if !slices.Contains(but, i.ID) {
			ids = append(ids, i.ID)
		}
	}
	if len(ids) != 1 {
		w.Fatalf("repository %s: %d new images", repo, len(ids))
	}
	return ids[0]
}

func init() {
	same := repository.Options{RequestID: request}
	verbs["create"] = func(ctx context.Context, s *repository.Service, _ []string) error {
		_, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", json.RawMessage(`"mine"`), same)
		return err
	}
	verbs["overlay"] = func(ctx context.Context, s *repository.Service, args []string) error {
		_, err := s.CreateVirtualDisk(ctx, "a", 0, args[1], nil, same)
		return err
	}
	verbs["clone"] = func(ctx context.Context, s *repository.Service, args []string) error {
		_, err := s.CreateVirtualDisk(ctx, "a", 8*mib, args[1], nil, repository.Options{RequestID: request, Strategy: repository.Performance})
		return err
	}
	verbs["snapshot"] = func(ctx context.Context, s *repository.Service, args []string) error {
		_, err := s.CreateSnapshot(ctx, "a", args[0], nil, same)
		return err
	}
	verbs["copy"] = func(ctx context.Context, s *repository.Service, args []string) error {
		_, err := s.CopyImage(ctx, "b", args[0], "", nil, same)
		return err
	}
	verbs["difference"] = func(ctx context.Context, s *repository.Service, args []string) error {
		_, err := s.CopyImage(ctx, "b", args[0], args[1], nil, same)
		return err
	}
	verbs["differ"], verbs["differing"] = verbs["difference"], verbs["difference"]
	verbs["import"] = func(ctx context.Context, s *repository.Service, args []string) error {
		_, err := s.ImportImage(ctx, "a", []imagecheck.Layer{{Path: args[2], Format: imagecheck.Raw}}, repository.Snapshot, nil, same)
		return err
	}
	verbs["remove"] = func(ctx context.Context, s *repository.Service, args []string) error {
		return s.RemoveImage(ctx, "a", args[0], repository.Options{})
	}
	verbs["erase"] = func(ctx context.Context, s *repository.Service, args []string) error {
		return s.RemoveImage(ctx, "a", args[0], repository.Options{PostZero: true, Discard: true})
	}
	verbs["resize"] = func(ctx context.Context, s *repository.Service, args []string) error {
		return s.ResizeVirtualDisk(ctx, "a", args[0], 8*mib, repository.Options{})
	}
	verbs["fix"] = func(ctx context.Context, s *repository.Service, _ []string) error {
		for {
			report, err := s.CheckStorageRepository(ctx, "a")
			if err != nil || len(report.Fixes) == 0 {
				return err
			}
			if err := s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{}); err != nil {
				return err
			}
		}
	}
	verbs["sink"] = verbs["fix"]
}

// both are the arguments of most verbs: a disk on a snapshot, and the file "now".
func both(w *world) []string {
	disk, base := w.diskOnBase()
	return []string{disk, base, w.path("now.raw")}
}

// apart are a disk, or a snapshot of it, and the snapshot it was copied from, so that it
// does not lie on that. The latter is in repository b as well.
func (w *world) apart(snapshot bool) []string {
	s, ctx := w.on("h1"), w.Context()
	old, base := w.diskOnBase()
	must(w, s.RemoveImage(ctx, "a", old, repository.Options{}))
	image, err := s.CreateVirtualDisk(ctx, "a", 0, base, nil, repository.Options{Strategy: repository.Performance})
	must(w, err)
	w.write("a", image, w.keep(w.path("before.raw"), "now"), 7, "1900k", "1M")
	w.write("a", image, w.path("now.raw"), zeros, "1M", "256k")
	if snapshot {
		disk := image
		image, err = s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
		must(w, err)
		must(w, s.RemoveImage(ctx, "a", disk, repository.Options{}))
	}
	_, err = s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(w, err)
	return []string{image, base}
}

func unharmed(w *world, args []string) {
	w.holds("a", args[0], w.path("now.raw"))
	w.holds("a", args[1], w.path("before.raw"))
}

func crashes() map[string]crash {
	return map[string]crash{
		"create": {8, func(w *world) []string { w.reference("zero", 4*mib); return nil },
			func(w *world, _ []string) { w.holds("a", w.newest("a"), w.path("zero.raw")) }, nil},
		"overlay": {8, both, func(w *world, args []string) {
			w.holds("a", w.newest("a", args[0], args[1]), w.path("before.raw"))
			unharmed(w, args)
		}, unharmed},
		"clone": {8, both, func(w *world, args []string) {
			w.holds("a", w.newest("a", args[0], args[1]), w.path("before.raw"))
			unharmed(w, args)
		}, unharmed},
		"snapshot": {12, both, func(w *world, args []string) {
			w.holds("a", w.newest("a", args[0], args[1]), w.path("now.raw"))
			unharmed(w, args)
			then := w.keep(w.path("now.raw"), "then")
			w.write("a", args[0], w.path("now.raw"), 9, "0", "64k")
			unharmed(w, args)
			w.holds("a", w.newest("a", args[0], args[1]), then)
		}, unharmed},
		"copy": {8, both, func(w *world, args []string) {
			w.holds("b", w.newest("b"), w.path("now.raw"))
			unharmed(w, args)
		}, unharmed},
		"difference": {12, func(w *world) []string {
			args := both(w)
			_, err := w.on("h1").CopyImage(w.Context(), "b", args[1], "", nil, repository.Options{})
			must(w, err)
			return args
		}, func(w *world, args []string) {
			w.holds("b", w.newest("b", args[1]), w.path("now.raw"))
			w.holds("b", args[1], w.path("before.raw"))
			unharmed(w, args)
		}, unharmed},
		"differ": {9, func(w *world) []string { return w.apart(false) }, func(w *world, args []string) {
			w.holds("b", w.newest("b", args[1]), w.path("now.raw"))
			unharmed(w, args)
			if info, err := w.on("h2").GetImage(w.Context(), "b", w.newest("b", args[1])); err != nil || info.Chain != 2 {
				w.Errorf("%+v: %v", info, err)
			}
		}, unharmed},
		"differing": {9, func(w *world) []string { return w.apart(true) }, func(w *world, args []string) {
			w.holds("b", args[0], w.path("now.raw"))
			unharmed(w, args)
		}, unharmed},
		"import": {8, both, func(w *world, args []string) {
			w.holds("a", w.newest("a", args[0], args[1]), w.path("now.raw"))
			unharmed(w, args)
		}, unharmed},
		"remove": {7, both, func(w *world, args []string) {
			w.holds("a", args[1], w.path("before.raw"))
			if n := w.count("a"); n != 1 {
				w.Errorf("%d images", n)
			}
			if left := w.files("a"); len(left) != 1 {
				w.Errorf("left behind: %v", left)
			}
		}, nil},
		"erase": {12, func(w *world) []string {
			args := both(w)
			w.link("a", args[0], "top")
			return args
		}, func(w *world, args []string) {
			w.holds("a", args[1], w.path("before.raw"))
			w.blank(w.path("top"), true)
			if left := w.files("a"); len(left) != 1 || w.count("a") != 1 {
				w.Errorf("left behind: %v, %d images", left, w.count("a"))
			}
		}, func(w *world, args []string) { w.holds("a", args[1], w.path("before.raw")) }},
		"resize": {5, both, func(w *world, args []string) {
			w.tool("truncate", "-s", "8M", w.path("now.raw"))
			unharmed(w, args)
			if info, err := w.on("h2").GetImage(w.Context(), "a", args[0]); err != nil || info.Size != 8*mib {
				w.Errorf("%+v: %v", info, err)
			}
		}, unharmed},
		// What a disk has is less than what the removed snapshot below it has.
		"sink": {10, func(w *world) []string {
			s, ctx := w.on("h1"), w.Context()
			disk, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{})
			must(w, err)
			now := w.reference("now", 4*mib)
			w.write("a", disk, now, 1, "0", "4M")
			removed, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
			must(w, err)
			w.write("a", disk, now, 2, "64k", "64k")
			w.write("a", disk, now, zeros, "1M", "64k")
			must(w, s.ResizeVirtualDisk(ctx, "a", disk, 6*mib, repository.Options{}))
			w.tool("truncate", "-s", "6M", now)
			must(w, s.RemoveImage(ctx, "a", removed, repository.Options{}))
			return []string{disk}
		}, func(w *world, args []string) {
			w.holds("a", args[0], w.path("now.raw"))
			if left := w.files("a"); len(left) != 1 || !strings.HasSuffix(left[0], ".raw") {
				w.Errorf("the snapshot's volume is not the disk's: %v", left)
			}
		}, func(w *world, args []string) {
			// Where others may have the storage it is not used before that is done.
			capable, err := w.on("h2").Capabilities(w.Context(), "a")
			if must(w, err); !capable.Shared {
				w.holds("a", args[0], w.path("now.raw"))
			}
		}},
		// A removed snapshot between two others is merged into the disk, and a
		// disk for performance on a chain is copied whole.
		"fix": {20, func(w *world) []string {
			s, ctx := w.on("h1"), w.Context()
			args := both(w)
			w.write("a", args[0], w.path("now.raw"), zeros, "1M", "512k")
			middle, err := s.CreateSnapshot(ctx, "a", args[0], nil, repository.Options{})
			must(w, err)
			w.write("a", args[0], w.path("now.raw"), 3, "2M", "1M")
			must(w, s.RemoveImage(ctx, "a", middle, repository.Options{}))
			fast, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{Strategy: repository.Performance})
			must(w, err)
			w.write("a", fast, w.reference("fast", 4*mib), 4, "1M", "1M")
			_, err = s.CreateSnapshot(ctx, "a", fast, nil, repository.Options{})
			must(w, err)
			w.write("a", fast, w.path("fast.raw"), 5, "3M", "512k")
			w.state("a", fast, repository.Degraded)
			return append(args, fast)
		}, func(w *world, args []string) {
			unharmed(w, args)
			w.holds("a", args[3], w.path("fast.raw"))
			for _, id := range []string{args[0], args[3]} {
				info, err := w.on("h2").GetImage(w.Context(), "a", id)
				if err != nil || info.State != repository.Optimized || info.Chain > 2 {
					w.Errorf("%+v: %v", info, err)
				}
			}
		}, nil},
	}
}

// One test for each verb, so that they run side by side (package proctest).
func TestCreateConvergesAfterACrashAtEveryPoint(t *testing.T)     { crashing(t, "create") }
func TestOverlayConvergesAfterACrashAtEveryPoint(t *testing.T)    { crashing(t, "overlay") }
func TestCloneConvergesAfterACrashAtEveryPoint(t *testing.T)      { crashing(t, "clone") }
func TestSnapshotConvergesAfterACrashAtEveryPoint(t *testing.T)   { crashing(t, "snapshot") }
func TestCopyConvergesAfterACrashAtEveryPoint(t *testing.T)       { crashing(t, "copy") }
func TestSinkConvergesAfterACrashAtEveryPoint(t *testing.T)       { crashing(t, "sink") }
func TestDifferConvergesAfterACrashAtEveryPoint(t *testing.T)     { crashing(t, "differ") }
func TestDifferingConvergesAfterACrashAtEveryPoint(t *testing.T)  { crashing(t, "differing") }
func TestDifferenceConvergesAfterACrashAtEveryPoint(t *testing.T) { crashing(t, "difference") }
func TestImportConvergesAfterACrashAtEveryPoint(t *testing.T)     { crashing(t, "import") }
func TestRemoveConvergesAfterACrashAtEveryPoint(t *testing.T)     { crashing(t, "remove") }
func TestEraseConvergesAfterACrashAtEveryPoint(t *testing.T)      { crashing(t, "erase") }
func TestResizeConvergesAfterACrashAtEveryPoint(t *testing.T)     { crashing(t, "resize") }
func TestFixConvergesAfterACrashAtEveryPoint(t *testing.T)        { crashing(t, "fix") }

func crashing(t *testing.T, verb string) {
	eachFormat(t, func(t *testing.T, format string) { everyCrash(t, format, verb, crashes()[verb]) })
}

func everyCrash(t *testing.T, format, verb string, c crash) {
	probe := newWorld(t, format)
	args := c.ready(probe)
	points := probe.passed(verb, args)
	probe.settled()
	c.after(probe, args)
	if format == clvm.Name && verb == "difference" {
		c.least = 9 // volumes are not copied as they are
	}
	if len(points) < c.least {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, format)
			args := c.ready(w)
			if err := w.process("h1", verb, args, "DISKHOOK_FAILPOINT="+point); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the failpoint did not fire: %v", err)
			}
			if c.torn != nil {
				c.torn(w, args)
			}
			// Another host goes on, and gets the same answer to the same request.
			for _, repo := range []string{"a", "b"} {
				must(t, w.on("h2").Resume(w.Context(), repo))
			}
			if verb != "remove" && verb != "erase" {
				w.again(verb, args)
			} else {
				_ = verbs[verb](w.Context(), w.on("h2"), args) // it is gone, or goes now
			}
			w.settled()
			c.after(w, args)
		})
	}
}

// again does the verb once more: a request that was committed makes nothing new.
func (w *world) again(verb string, args []string) {
	w.Helper()
	before := w.count("a") + w.count("b")
	must(w, verbs[verb](w.Context(), w.on("h2"), args))
	first := w.count("a") + w.count("b")
	if first > before+1 {
		w.Errorf("%s again: %d images instead of %d", verb, first, before)
	}
	must(w, verbs[verb](w.Context(), w.on("h2"), args))
	if second := w.count("a") + w.count("b"); second != first {
		w.Errorf("%s a third time: %d images instead of %d", verb, second, first)
	}
}

// passed are the failpoints that a verb passes, each set to kill.
func (w *world) passed(verb string, args []string) []string {
	log := w.path("failpoints")
	must(w, w.process("h1", verb, args, "DISKHOOK_FAILPOINT_LOG="+log))
	b, err := os.ReadFile(log)
	must(w, err)
	var points []string
	times := map[string]int{}
	for _, name := range strings.Fields(string(b)) {
		times[name]++
		if strings.HasPrefix(name, "repository.") {
			points = append(points, fmt.Sprintf("%s=kill@%d", name, times[name]))
		}
	}
	return points
}

// process does a job in another process, with more environment.
func (w *world) process(hostID, verb string, args []string, env ...string) error {
	encoded, err := json.Marshal(job{w.Dir, w.Format, w.LockType, hostID, verb, args})
	must(w, err)
	self, err := os.Executable()
	must(w, err)
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), jobEnv+"="+string(encoded)), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
