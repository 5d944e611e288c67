// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/proctest"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
	"diskhook/storage/repository/format/localfs"
	"diskhook/storage/repository/format/nfs"
	"diskhook/storage/transfer"
)

// formats are those that the whole suite runs with: how they are called, and the
// parameters of a repository in a directory of the test's.
var formats = []struct {
	name       string
	on         func(w *world, hostID string) format.Format
	parameters func(dir string) map[string]string
}{
	{localfs.Name, func(*world, string) format.Format { return localfs.Format{} }, inDirectory},
	// The directory stands in for an export; the guest's tests have a real one.
	{nfs.Name, func(_ *world, hostID string) format.Format {
		return nfs.Format{HostID: hostID, BootID: hostID + "-boot", Beat: 100 * time.Millisecond, Silence: time.Minute, Mounted: mountedWell}
	}, inDirectory},
	{clvm.Name, (*world).group, nil},
}

func inDirectory(dir string) map[string]string { return map[string]string{"path": dir} }

func mountedWell(string) ([]string, error) { return []string{"lookupcache=pos"}, nil }

// eachFormat runs a test with every format.
func eachFormat(t *testing.T, test func(t *testing.T, format string)) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) { test(t, f.name) })
	}
}

const jobEnv = "REPOSITORY_TEST_JOB"

func TestMain(m *testing.M) {
	if job := os.Getenv(jobEnv); job != "" {
		os.Exit(doJob(job))
	}
	os.Exit(proctest.Main(m))
}

// world is two repositories, a and b, that two hosts have connected.
type world struct {
	testing.TB
	Dir      string
	Format   string
	LockType string // of volume groups
}

func newWorld(t testing.TB, format string) *world {
	w := &world{TB: t, Dir: t.TempDir(), Format: format}
	w.connect()
	return w
}

// connect makes the repositories, and has both hosts connect them.
func (w *world) connect() {
	for _, repo := range []string{"a", "b"} {
		if w.Format == clvm.Name {
			must(w, lvmtest.CreateShared(w.path("groups", repo), repo, w.LockType, 256*mib, 64<<10))
		}
		must(w, w.on("h1").CreateStorageRepository(w.Context(), w.Format, w.parameters(repo)))
		for _, host := range []string{"h1", "h2"} {
			must(w, w.on(host).ConnectStorageRepository(w.Context(), repo, w.Format, w.parameters(repo)))
		}
	}
}

func (w *world) parameters(repo string) map[string]string {
	if w.Format == clvm.Name {
		return w.groupParameters(repo)
	}
	for _, f := range formats {
		if f.name == w.Format {
			return f.parameters(w.path("repos", repo))
		}
	}
	panic(w.Format)
}

func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.Dir}, elem...)...)
}

// logTo writes to a test's log, or to stderr in another process.
type logTo struct{ testing.TB }

func (l logTo) Write(b []byte) (int, error) {
	if l.TB == nil {
		return os.Stderr.Write(b)
	}
	l.Log(string(b))
	return len(b), nil
}

// on is the service of a host.
func (w *world) on(hostID string) *repository.Service {
	log := slog.New(slog.NewTextHandler(logTo{w.TB}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var all []format.Format
	for _, f := range formats {
		all = append(all, f.on(w, hostID))
	}
	return &repository.Service{
		Layout: host.Layout{Root: w.path(hostID)}, HostID: hostID, BootID: "boot-1", Formats: all, Deadline: time.Minute,
		Engine: &transfer.Engine{Run: command.System{}, Log: log}, Images: &qemuimg.QemuImg{Run: command.System{}},
		Allowed: host.Paths{Roots: []string{w.Dir}}.Allowed, Log: log,
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (%s)", err, failure.HintOf(err))
	}
}

func refused(t testing.TB, err error, what ...any) {
	t.Helper()
	if err == nil {
		t.Fatal("it was not refused")
	}
	for _, w := range what {
		switch w := w.(type) {
		case error:
			if !errors.Is(err, w) {
				t.Errorf("%v: it is not %v", err, w)
			}
		case string:
			if !strings.Contains(failure.Line(err), w) {
				t.Errorf("%q does not say %q", failure.Line(err), w)
			}
		}
	}
}

func (w *world) tool(name string, args ...string) string {
	w.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		w.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// zeros, as a pattern, are written as such: the image notes that it has none.
const zeros = -1

// write writes a byte to a range of a raw file and of an image.
func (w *world) write(repo, image, reference string, pattern int, at, bytes string) {
	w.Helper()
	cmd := fmt.Sprintf("write -q -P %d %s %s", pattern, at, bytes)
	if pattern == zeros {
		cmd = fmt.Sprintf("write -q -z %s %s", at, bytes)
	}
	w.tool("qemu-io", "-f", "raw", "-c", cmd, reference)
	s := w.on("h1")
	p, err := s.PrepareImage(w.Context(), repo, image, repository.Preparing{Holder: "writer", Write: true})
	must(w, err)
	w.tool("qemu-io", "-f", p.Format, "-c", cmd, "-c", "flush", p.Path)
	must(w, s.ReleaseImage(w.Context(), repo, image, "writer"))
}

// diskOnBase makes two images in repository a: a disk that lies on a snapshot.
// What they hold is in the files now.raw and before.raw.
func (w *world) diskOnBase() (disk, base string) {
	s, ctx := w.on("h1"), w.Context()
	disk, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{})
	must(w, err)
	now := w.reference("now", 4*mib)
	w.write("a", disk, now, 1, "1M", "1M")
	base, err = s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(w, err)
	w.keep(now, "before")
	w.write("a", disk, now, 2, "1536k", "1M")
	return disk, base
}

// reference is a raw file of zeros.
func (w *world) reference(name string, size int64) string {
	path := w.path(name + ".raw")
	f, err := os.Create(path)
	must(w, err)
	must(w, f.Truncate(size))
	must(w, f.Close())
	return path
}

// keep copies a reference as it is now.
func (w *world) keep(reference, name string) string {
	path := w.path(name + ".raw")
	w.tool("cp", "--sparse=always", reference, path)
	return path
}

// holds fails unless an image reads as a reference, on any host.
func (w *world) holds(repo, image, reference string) {
	w.Helper()
	s := w.on("h2")
	p, err := s.PrepareImage(w.Context(), repo, image, repository.Preparing{Holder: "reader"})
	must(w, err)
	same, err := s.Images.Compare(w.Context(), p.Layers, []imagecheck.Layer{{Path: reference, Format: imagecheck.Raw}})
	must(w, err)
	if !same {
		w.Errorf("image %s/%s does not read as %s", repo, image, filepath.Base(reference))
	}
	must(w, s.ReleaseImage(w.Context(), repo, image, "reader"))
}

func (w *world) state(repo, image string, wanted repository.State) {
	w.Helper()
	st, err := w.on("h2").GetImageStatus(w.Context(), repo, image)
	must(w, err)
	if st.State != wanted || st.Open {
		w.Errorf("image %s/%s is %+v, not %s", repo, image, st, wanted)
	}
}

// repair does what a check finds until there is nothing left to do, and fails if
// there are problems.
func (w *world) repair(repo string) (done []repository.Fix) {
	w.Helper()
	s := w.on("h2")
	for range 12 {
		report, err := s.CheckStorageRepository(w.Context(), repo)
		must(w, err)
		if len(report.Problems) > 0 {
			w.Fatalf("repository %s: %q", repo, report.Problems)
		}
		if len(report.Fixes) == 0 {
			return done
		}
		must(w, s.FixStorageRepository(w.Context(), repo, report.Fixes[0], repository.Options{}))
		done = append(done, report.Fixes[0])
	}
	w.Fatalf("repository %s: fixes without end: %+v", repo, done)
	return nil
}

// settled repairs both repositories; nothing is left open then.
func (w *world) settled() {
	w.Helper()
	for _, repo := range []string{"a", "b"} {
		w.repair(repo)
		tasks, err := w.on("h2").ListTasks(w.Context(), repo)
		must(w, err)
		if len(tasks) > 0 {
			w.Errorf("repository %s: open: %+v", repo, tasks)
		}
	}
}

// count is how many images a repository lists.
func (w *world) count(repo string) int {
	page, err := w.on("h2").ListImages(w.Context(), repo, repository.Filter{})
	must(w, err)
	return len(page.Images)
}

// files are the volumes' data in a repository.
func (w *world) files(repo string) []string {
	if w.Format == clvm.Name {
		return w.logical(repo)
	}
	entries, err := os.ReadDir(w.path("repos", repo, "data"))
	must(w, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// job is a verb for another process.
type job struct {
	Dir, Format, LockType, Host, Verb string
	Args                              []string
}

// verbs are what jobs do.
var verbs = map[string]func(ctx context.Context, s *repository.Service, args []string) error{}

func doJob(encoded string) int {
	var j job
	if err := json.Unmarshal([]byte(encoded), &j); err != nil {
		panic(err)
	}
	w := &world{Dir: j.Dir, Format: j.Format, LockType: j.LockType}
	if err := verbs[j.Verb](context.Background(), w.on(j.Host), j.Args); err != nil {
		fmt.Fprintln(os.Stderr, failure.Line(err))
		return 1
	}
	return 0
}
