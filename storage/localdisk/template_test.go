// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/progress"
)

func TestCopyIsASnapshotOfItsTemplate(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.started(w.disk())
	all := w.templates()
	if len(all) != 1 {
		t.Fatalf("templates %+v", all)
	}
	got := all[0]
	if got.State != localdisk.Ready || got.Clones != 1 || got.From != w.path("base.raw") || got.Busy || got.Backend != "lvmthin" || !strings.Contains(got.Kept, "1 copies share") {
		t.Errorf("template %+v", got)
	}
	today := got.LastUse.Unix() / 86400
	copyName := "dh_" + domain + "_vda"
	want := []string{
		fmt.Sprintf("lvcreate -n dhbase_ID -V 2162688b --thinpool pool0 --addtag UPDATING --addtag DH_base --addtag DH_from_%s --addtag DH_used_%d -a y -k y -K ovirt-local", w.path("base.raw"), today),
		"lvchange -a n ovirt-local/dhbase_ID",
		"lvchange -p r ovirt-local/dhbase_ID",
		"lvchange --deltag UPDATING ovirt-local/dhbase_ID",
		"lvcreate -s -n " + copyName + " --addtag UPDATING --addtag VM_" + domain + " --addtag PU_00000000-0000-0000-0000-000000000000 --addtag DH_base_ID -a y -k y -K ovirt-local/dhbase_ID",
		"lvchange --addtag DH_v1 --addtag DH_target_vda --addtag DH_machine_0123456789abcdef0123456789abcdef --deltag UPDATING ovirt-local/" + copyName,
		"lvchange -a y -K ovirt-local/" + copyName,
	}
	if diff := cmp.Diff(want, w.ran()); diff != "" {
		t.Error(diff)
	}
	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 1 || entries[0].Problem != "" {
		t.Errorf("list %+v", entries)
	}
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if v := g.Volumes[got.Name]; v.Active || !v.ReadOnly || !v.Skip {
		t.Errorf("volume %+v", v)
	}
}

// What is run for a start counts: twenty starts share the processors and the lock
// of the volume group. Each report is of one process that has just taken a lock,
// the disk's or the template's, or of what it has just made.
func TestCommandsOfAStart(t *testing.T) {
	w := newCache(t, "lvmthin")
	commands := func(n int) []string {
		must(t, os.RemoveAll(w.path("lvm/log")))
		w.started(w.numbered(n))
		name := "dh_" + w.numbered(n).Domain + "_vda"
		var short []string
		for _, line := range lvmtest.Log(w.path("lvm")) {
			words := strings.Fields(strings.ReplaceAll(line, name, "COPY"))
			if i := slices.IndexFunc(words, func(word string) bool { return strings.Contains(word, "dhbase_") }); i >= 0 {
				words[i] = "TEMPLATE"
			}
			short = append(short, strings.Join([]string{words[0], words[1], words[len(words)-1]}, " "))
		}
		return short
	}
	const report = "fullreport ovirt-local ovirt-local"
	start := func(between ...string) []string {
		return slices.Concat([]string{
			report, // of the start, which then starts the copy process
			report, // of the copy process, with the disk's lock
			report, // with the template's lock: the template, and the room
		}, between, []string{
			"lvcreate -s TEMPLATE",
			report, // of what was made
			"lvchange --addtag ovirt-local/COPY",
			report, // of the start, with the disk's lock
			"lvchange -a ovirt-local/COPY",
		})
	}
	first := start(
		"lvcreate -n ovirt-local", report, // the template
		"lvchange -a TEMPLATE", "lvchange -p TEMPLATE", "lvchange --deltag TEMPLATE",
		report, // the template, and the room again
	)
	if diff := cmp.Diff(first, commands(1)); diff != "" {
		t.Errorf("the first start: %s", diff)
	}
	if diff := cmp.Diff(start(), commands(2)); diff != "" {
		t.Errorf("a later one: %s", diff)
	}
}

// Who makes a copy of a template shares its lock with others who do, and keeps
// those away who would remove it.
func TestClonesDoNotWaitForEachOther(t *testing.T) {
	for name, w := range map[string]func(t *testing.T) *world{
		"dir":     newShared,
		"lvmthin": func(t *testing.T) *world { return newCache(t, "lvmthin") },
	} {
		t.Run(name, func(t *testing.T) {
			w := w(t)
			w.started(w.disk())
			template := w.templates()[0].Name
			other, err := os.Open(w.path("run/diskhook/lock/template-" + template))
			must(t, err)
			defer other.Close()
			must(t, unix.Flock(int(other.Fd()), unix.LOCK_SH))
			w.started(w.numbered(1))
			if name == "dir" { // in a pool its clones keep it
				if err := service().EvictTemplate(t.Context(), template, localdisk.WipeNone); !errors.Is(err, failure.Conflict) {
					t.Errorf("got %v", err)
				}
			}
			if all := w.templates(); len(all) != 1 || all[0].Clones != 2 {
				t.Errorf("templates %+v", all)
			}
		})
	}
}

func TestTwentyStartsAtOnceCopyTheTemplateOnce(t *testing.T) {
	for backend, w := range map[string]func(t *testing.T) *world{
		"lvmthin": func(t *testing.T) *world { return newCache(t, "lvmthin") },
		"dir":     newShared,
	} {
		t.Run(backend, func(t *testing.T) {
			w := w(t)
			for _, path := range w.startTwenty(map[string]int{"template.created": 1, "template.filled": 1, "clone.made": 20, "fill.finished": 20}) {
				w.same(path, w.flat)
			}
			if all := w.templates(); len(all) != 1 || all[0].Clones != 20 {
				t.Errorf("templates %+v", all)
			}
		})
	}
}

// A crash at any point of a first start, in the template or in the clone, is
// made good by the same start.
func TestTemplateSurvivesACrashAtEveryPoint(t *testing.T) {
	probe := newCache(t, "lvmthin")
	points := passed(t, probe, func() { _, err := probe.hook(); must(t, err) })
	if len(points) < 18 {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			w := newCache(t, "lvmthin")
			w.crash(point)
			if w.ready() {
				w.same(w.content(), w.flat)
			}
			for _, template := range w.templates() {
				if template.State == localdisk.Ready {
					w.same(w.path("lvm/"+template.Name+".img"), w.path("base.raw"))
				}
			}
			w.reboot()
			w.started(w.disk())
			w.started(w.numbered(1))
			w.onlyTemplateAnd(2)
		})
	}
}

func TestBaseThatWasReplacedHasAnotherTemplate(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.started(w.disk())
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x66 0 64k", w.path("base.raw"))
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
	w.started(w.numbered(1))
	if all := w.templates(); len(all) != 2 || all[0].Clones != 1 || all[1].Clones != 1 {
		t.Errorf("templates %+v", all)
	}
}

func TestBaseThatChangesMeanwhileIsNoTemplate(t *testing.T) {
	w := newCache(t, "lvmthin")
	t.Setenv("DISKHOOK_FAILPOINT", "template.filled=sleep:1s")
	done := make(chan error)
	go func() {
		_, err := w.hook()
		done <- err
	}()
	for len(w.templates()) == 0 {
		time.Sleep(20 * time.Millisecond)
	}
	w.tool("touch", w.path("base.raw"))
	if err := <-done; err == nil || !strings.Contains(err.Error(), "changed while it was copied") {
		t.Errorf("got %v", err)
	}
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
}

// A dry run shows the template's commands, too, until there is one.
func TestCommandsShowTheTemplate(t *testing.T) {
	w := newCache(t, "lvmthin")
	s := service()
	show := func() (verbs []string) {
		observed, err := s.Observe(t.Context(), []localdisk.Disk{w.numbered(1)})
		must(t, err)
		for _, line := range s.Commands(t.Context(), observed[0], localdisk.Decide(observed[0])) {
			words := strings.Fields(line)
			verbs = append(verbs, strings.Join(words[:2], " "))
		}
		return verbs
	}
	rest := []string{"lvm lvcreate", "# copy", "# flush", "write " + w.path("var/lib/diskhook/receipts/"+w.numbered(1).Domain+"/vda.json")}
	rest = append(rest, rest[3], "link "+w.path("run/diskhook/disks/"+w.numbered(1).Domain+"/vda"))
	template := []string{"lvm lvcreate", "# copy", "lvm lvchange", "lvm lvchange", "lvm lvchange"}
	if diff := cmp.Diff(append(template, rest...), show()); diff != "" {
		t.Error(diff)
	}
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
	w.started(w.disk())
	if diff := cmp.Diff(rest, show()); diff != "" {
		t.Error(diff)
	}
}

// Who waits for a template is told so, and is in the list meanwhile.
func TestWaitingForATemplateShows(t *testing.T) {
	w := newCache(t, "lvmthin")
	t.Setenv("DISKHOOK_FAILPOINT", "template.filled=sleep:8s")
	const note = "the template of its base "
	var starts sync.WaitGroup
	notes := make([]bool, 2)
	errs := make([]error, 2)
	for i := range errs {
		starts.Go(func() {
			_, errs[i] = service().Fulfil(t.Context(), []localdisk.Disk{w.numbered(i)}, localdisk.Waiting{Notify: func(_ localdisk.Disk, st progress.Status) {
				notes[i] = notes[i] || st.Note == note+w.path("base.raw") && st.Done == 2162688 && st.Total == st.Done
			}})
		})
	}
	time.Sleep(2 * time.Second)
	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 2 || entries[1].Target != "vda" || entries[1].Copy.State != localdisk.Absent || !entries[1].Busy || !strings.HasPrefix(entries[1].Status.Note, note) {
		t.Errorf("meanwhile: %+v", entries)
	}
	_, err = service().Fulfil(t.Context(), []localdisk.Disk{w.numbered(2)}, localdisk.Waiting{Deadline: 2 * time.Second})
	if !errors.Is(err, failure.Temporary) || !strings.Contains(failure.Line(err), note+w.path("base.raw")+" is at") {
		t.Errorf("got %v", err)
	}
	starts.Wait()
	must(t, errors.Join(errs...))
	if !notes[0] || !notes[1] {
		t.Errorf("told of the template: %v", notes)
	}
}

// Nothing tells when a block device is written to, so what is on one is copied
// for each disk.
func TestBaseOnADeviceHasNoTemplate(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.onDevice()
	w.started(w.disk())
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
}

// When who makes a template is killed, one of those that wait goes on with it.
func TestWaiterGoesOnWithATemplate(t *testing.T) {
	w := newCache(t, "lvmthin")
	killed := make(chan error)
	go func() {
		_, err := w.hook("DISKHOOK_FAILPOINT=template.filled=sleep:3s,template.closed=kill")
		killed <- err
	}()
	for len(w.templates()) == 0 {
		time.Sleep(20 * time.Millisecond)
	}
	w.started(w.numbered(1))
	if err := <-killed; err == nil {
		t.Error("the failpoint did not fire")
	}
	w.started(w.disk())
	w.onlyTemplateAnd(2)
	made := 0
	for _, line := range w.ran() {
		if strings.HasPrefix(line, "lvcreate -n dhbase_") {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d templates were made", made)
	}
}
