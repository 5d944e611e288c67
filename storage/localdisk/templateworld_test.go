// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// newCache is a world in which templates are kept.
func newCache(t *testing.T, backend string) *world {
	t.Helper()
	w := newWorld(t, backend)
	t.Setenv("DISKHOOK_TEST_CACHE", "1")
	return w
}

// numbered is the disk of the domain of that number.
func (w *world) numbered(n int) localdisk.Disk {
	d := w.disk()
	d.Domain = fmt.Sprintf("69b6b942-b5bf-4740-bb95-6752ffb%05d", n)
	return d
}

// started starts a domain and wants its disk to be the source.
func (w *world) started(d localdisk.Disk) {
	w.t.Helper()
	placements, err := service().Fulfil(w.t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
	must(w.t, err)
	w.same(placements[0].Path, w.flat)
}

// templates returns what the cache has.
func (w *world) templates() []localdisk.Template {
	w.t.Helper()
	all, err := service().Templates(w.t.Context())
	must(w.t, err)
	return all
}

// ran are the LVM commands so far that change something, with the identity of
// the template taken out.
func (w *world) ran() []string {
	var lines []string
	for _, line := range lvmtest.Log(w.path("lvm")) {
		for _, t := range w.templates() {
			line = strings.ReplaceAll(line, strings.TrimPrefix(t.Name, "dhbase_"), "ID")
		}
		if !strings.HasPrefix(line, "fullreport") {
			lines = append(lines, line)
		}
	}
	return lines
}

// startTwenty starts twenty domains at once, and wants them to have passed these
// failpoints so many times together. It returns their disks' paths.
func (w *world) startTwenty(want map[string]int) []string {
	w.t.Helper()
	t := w.t
	log := w.path("failpoints")
	t.Setenv("DISKHOOK_FAILPOINT_LOG", log)
	t.Setenv("DISKHOOK_FAILPOINT", "template.created=sleep:1s")
	var starts sync.WaitGroup
	errs, paths := make([]error, 20), make([]string, 20)
	for i := range errs {
		starts.Go(func() {
			_, errs[i] = service().Fulfil(t.Context(), []localdisk.Disk{w.numbered(i)}, localdisk.Waiting{})
		})
		paths[i] = w.path("run/diskhook/disks/" + w.numbered(i).Domain + "/vda")
	}
	starts.Wait()
	must(t, errors.Join(errs...))
	b, err := os.ReadFile(log)
	must(t, err)
	for point, want := range want {
		if n := strings.Count(string(b), point+"\n"); n != want {
			t.Errorf("%s: %d times, want %d", point, n, want)
		}
	}
	return paths
}

// onlyTemplateAnd fails when there is anything but one ready template with so
// many clones.
func (w *world) onlyTemplateAnd(clones int) {
	w.t.Helper()
	if all := w.templates(); len(all) != 1 || all[0].State != localdisk.Ready || all[0].Clones != clones || all[0].Busy {
		w.t.Errorf("templates %+v", all)
	}
	g, err := lvmtest.Load(w.path("lvm"))
	must(w.t, err)
	if len(g.Volumes) != 2+clones { // with the pool
		w.t.Errorf("left behind: %v", g.Volumes)
	}
	for name, v := range g.Volumes {
		if _, err := os.Stat(w.path("var/lib/diskhook/cursors/" + v.UUID)); err == nil && strings.HasPrefix(name, "dhbase_") {
			w.t.Errorf("the cursor of %s is left", name)
		}
	}
}

// newLying is a world whose disk is bound with template=overlay. Its middle
// image ends before the base does, from where on it is zeros.
func newLying(t *testing.T, backend string) *world {
	t.Helper()
	w := newCache(t, backend)
	w.lying = true
	w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", w.source[2].Path, w.source[1].Path, "1536k")
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x22 64k 128k", "-c", "write -q -z 300k 33k", w.source[1].Path)
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
	return w
}

// Where copies cannot be clones: those of volumes are not but on thin pools, and
// the tests' own file system shares no blocks.
func eachPlain(t *testing.T, run func(t *testing.T, backend string)) {
	for _, backend := range []string{"dir", "lvm"} {
		t.Run(backend, func(t *testing.T) { run(t, backend) })
	}
}

// lies starts a domain, and wants its disk to be the source.
func (w *world) lies(d localdisk.Disk) string {
	w.t.Helper()
	placements, err := service().Fulfil(w.t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
	must(w.t, err)
	w.tool("qemu-img", "compare", "-q", "-U", "-f", "qcow2", "-F", "raw", placements[0].Path, w.flat)
	return placements[0].Path
}

// theTemplate is the only one.
func (w *world) theTemplate() localdisk.Template {
	w.t.Helper()
	all := w.templates()
	if len(all) != 1 || all[0].State != localdisk.Ready {
		w.t.Fatalf("templates %+v", all)
	}
	return all[0]
}

// contentOf is where the bytes of a template are.
func (w *world) contentOf(t localdisk.Template) string {
	if w.backend == "dir" {
		return t.Path
	}
	return w.path("lvm/" + t.Name + ".img")
}

// copyFile is the overlay, of the backend dir.
func (w *world) copyFile() string {
	return w.path("var/lib/diskhook/local/dh_" + domain + "_vda.qcow2")
}

// onDevice puts the base on a device.
func (w *world) onDevice() {
	w.t.Helper()
	loop := w.loopDevice(w.path("base.raw"))
	w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", loop, w.source[1].Path)
	w.source[2].Path = loop
}

// loopDevice is a device with the content of a file, which may be a source.
func (w *world) loopDevice(file string) string {
	w.t.Helper()
	out, err := exec.Command("losetup", "-f", "--show", file).Output()
	must(w.t, err)
	device := strings.TrimSpace(string(out))
	w.t.Cleanup(func() { w.tool("losetup", "-d", device) })
	w.t.Setenv("DISKHOOK_TEST_DEVICES", "1")
	return device
}
