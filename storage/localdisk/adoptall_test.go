// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

const (
	ovirtImage  = "c9865ca8-f6d2-4363-bec2-af870a87a819"
	ovirtVolume = "1dfad482-c65c-436c-aa59-87e020b63302"
)

// adopt is the process: it adopts all that can be adopted, and with
// DISKHOOK_TEST_ADOPT=vda that one disk on the operator's word.
func adopt() error {
	s := service()
	if target := os.Getenv("DISKHOOK_TEST_ADOPT"); target != "" {
		return s.Adopt(context.Background(), localdisk.Disk{Domain: domain, DomainName: "vm", Target: target, Backend: os.Getenv("DISKHOOK_TEST_BACKEND"), OnStop: localdisk.Keep})
	}
	all, err := s.Adoptions(context.Background())
	for _, a := range all {
		if a.Take {
			err = errors.Join(err, s.AdoptOVirt(context.Background(), a))
		}
	}
	return err
}

// foreign adds a volume as oVirt's hook makes it, changed by change.
func (w *world) foreign(name, uuid string, change func(*lvmtest.Volume)) {
	w.t.Helper()
	v := &lvmtest.Volume{UUID: uuid, Size: 4 << 20, Tags: []string{"VM_" + domain, "IU_" + ovirtImage, "PU_00000000-0000-0000-0000-000000000000"}}
	if change != nil {
		change(v)
	}
	must(w.t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes[name] = v }))
	must(w.t, os.WriteFile(w.path("lvm/"+name+".img"), []byte(strings.Repeat("guest", 4<<20/5)+"data"), 0o600))
}

func (w *world) volume(name string) *lvmtest.Volume {
	w.t.Helper()
	g, err := lvmtest.Load(w.path("lvm"))
	must(w.t, err)
	if g.Volumes[name] == nil {
		w.t.Fatalf("no volume %s", name)
	}
	return g.Volumes[name]
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return b
}

func sorted(words []string) []string { return slices.Sorted(slices.Values(words)) }

// What oVirt's hook made is taken over; each other volume is left as it is, and
// it is said why.
func TestAdoptAllTakesWhatIsBeyondDoubt(t *testing.T) {
	w := newWorld(t, "lvm")
	id := func(i int) string { return fmt.Sprintf("1dfad482-c65c-436c-aa59-87e020b633%02d", i) }
	image := func(i int) string { return fmt.Sprintf("IU_c9865ca8-f6d2-4363-bec2-af870a87a8%02d", i) }
	want := map[string]string{}
	add := func(i int, name, reason string, change func(*lvmtest.Volume)) {
		w.foreign(name, fmt.Sprintf("abcdef-abcd-abcd-abcd-abcd-abcd-abcd%02d", i), func(v *lvmtest.Volume) {
			v.Tags[1] = image(i)
			if change != nil {
				change(v)
			}
		})
		want["lv ovirt-local/"+name] = reason
	}
	add(1, id(1), "true a complete copy, made by oVirt's hook", nil)
	add(2, id(2), "true a complete copy, made by oVirt's hook", func(v *lvmtest.Volume) { v.Pool = "pool0" })
	add(3, id(3), "false unfinished", func(v *lvmtest.Volume) { v.Tags = append(v.Tags, "UPDATING") })
	add(4, id(4), "false it is open", func(v *lvmtest.Volume) { v.Open, v.Active = true, true })
	add(5, "backup", "false its name is not", nil)
	add(6, id(6), "false its tags do not name one VM", func(v *lvmtest.Volume) { v.Tags[0] = "VM_../etc" })
	add(7, id(7), "false its tags do not name one VM", func(v *lvmtest.Volume) { v.Tags = append(v.Tags, "VM_"+ovirtImage) })
	add(8, id(8), "false its tags do not name one image", func(v *lvmtest.Volume) { v.Tags = v.Tags[:1] })
	add(9, id(9), "false its tags do not name one VM", func(v *lvmtest.Volume) { v.Tags = nil })
	add(10, id(10), "false lv ovirt-local/"+id(11)+" is of the same disk", nil)
	add(11, id(11), "false lv ovirt-local/"+id(10)+" is of the same disk", func(v *lvmtest.Volume) { v.Tags[1] = image(10) })
	add(12, id(12), "false the disk's receipt names another copy", nil)
	w.foreign("root", "abcdef-abcd-abcd-abcd-abcd-abcd-abcd98", func(v *lvmtest.Volume) { v.Tags = nil })
	w.foreign(id(13), "abcdef-abcd-abcd-abcd-abcd-abcd-abcd99", func(v *lvmtest.Volume) { v.Tags = append(v.Tags, "DH_v1") })
	w.claimed(strings.TrimPrefix(image(12), "IU_"), localdisk.Receipt{
		Schema: "diskhook.receipt/v1", Domain: domain, Target: "vda", Image: strings.TrimPrefix(image(12), "IU_"), Volume: id(20),
		Backend: "lvm", OnStop: localdisk.Keep, Name: id(20), Copy: "other", Home: "ovirt-local", Used: true,
	})
	before, err := lvmtest.Load(w.path("lvm"))
	must(t, err)

	all, err := service().Adoptions(t.Context())
	must(t, err)
	got := map[string]string{}
	for _, a := range all {
		reason := fmt.Sprintf("%v %s", a.Take, a.Reason)
		if w := want[a.Volume]; strings.HasPrefix(reason, w) {
			reason = w
		}
		got[a.Volume] = reason
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	for _, a := range all {
		if err := service().AdoptOVirt(t.Context(), a); (err == nil) != a.Take || err != nil && !errors.Is(err, failure.Conflict) {
			t.Errorf("%s: %v", a.Volume, err)
		}
	}
	after, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	for name := range before.Volumes {
		if name == id(1) || name == id(2) {
			backend := map[string]string{id(1): "lvm", id(2): "lvmthin"}[name]
			adopted(t, w, name, strings.TrimPrefix(after.Volumes[name].Tags[1], "IU_"), backend)
			continue
		}
		if diff := cmp.Diff(before.Volumes[name], after.Volumes[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	// Again: there is nothing left to take.
	all, err = service().Adoptions(t.Context())
	must(t, err)
	for _, a := range all {
		if a.Take {
			t.Errorf("%s is adopted twice", a.Volume)
		}
	}
}

// adopted fails unless the volume is one of ours that a guest has used.
func adopted(t *testing.T, w *world, name, image, backend string) {
	t.Helper()
	var r localdisk.Receipt
	data, err := os.ReadFile(w.path("var/lib/diskhook/receipts/" + domain + "/" + image + ".json"))
	must(t, err)
	must(t, json.Unmarshal(data, &r))
	v := w.volume(name)
	if !r.Used || r.Copy != v.UUID || r.Backend != backend || r.Volume != name || r.OnStop != localdisk.Keep {
		t.Errorf("receipt %+v", r)
	}
	for _, tag := range []string{"DH_v1", "DH_machine_0123456789abcdef0123456789abcdef", "VM_" + domain} {
		if !slices.Contains(v.Tags, tag) {
			t.Errorf("tags %v, no %s", v.Tags, tag)
		}
	}
	b, err := os.ReadFile(w.path("lvm/" + name + ".img"))
	must(t, err)
	if !strings.HasPrefix(string(b), "guestguest") {
		t.Error("the guest's data was touched")
	}
}

// A kill between receipt and tags leaves a copy that is the guest's for all who
// look; the same adoption, or a start, ends it.
func TestAdoptionConvergesAfterAKillBetweenReceiptAndTags(t *testing.T) {
	d := localdisk.Disk{Domain: domain, DomainName: "vm", Target: "vda", Image: ovirtImage, Volume: ovirtVolume, Backend: "lvm", OnStop: localdisk.Keep, Create: true}
	start := func(w *world) error {
		_, err := service().Fulfil(w.t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
		return err
	}
	for name, next := range map[string]func(w *world) error{
		"adopt --all": func(w *world) error { return w.process("adopt") },
		"a start":     start,
		"adopt":       func(w *world) error { return service().Adopt(w.t.Context(), d) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "lvm")
			w.foreign(ovirtVolume, "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef", nil)
			d.Source = w.source
			if err := w.process("adopt", "DISKHOOK_FAILPOINT=adopt.receipt=kill"); err == nil {
				t.Fatal("the failpoint did not fire")
			}
			if tags := w.volume(ovirtVolume).Tags; len(tags) != 3 {
				t.Fatalf("tags %v: the receipt comes first", tags)
			}
			if got := decisions(t)["copy"]; got != "kept: complete, and the guest's writes live in it\n" {
				t.Errorf("gc: %q", got)
			}
			must(t, next(w))
			adopted(t, w, ovirtVolume, ovirtImage, "lvm")
			must(t, start(w))
		})
	}
}

// The same for a copy of ours whose receipt was lost, on every backend.
func TestAdoptOnTheOperatorsWordConverges(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		after := w.wroteRaw()
		w.reboot()
		must(t, os.RemoveAll(w.path("var/lib/diskhook/receipts")))
		env := []string{"DISKHOOK_TEST_ADOPT=vda", "DISKHOOK_TEST_BACKEND=" + backend}
		if err := w.process("adopt", append(env, "DISKHOOK_FAILPOINT=adopt.receipt=kill")...); err == nil {
			t.Fatal("the failpoint did not fire")
		}
		must(t, w.process("adopt", env...))
		_, err := w.hook()
		must(t, err)
		w.same(w.stable(), after)
	})
}

// A kill anywhere while the copy of an older leaf makes room for that of a newer
// one leaves what the next start brings to its end.
func TestRetiringConvergesAtEveryPoint(t *testing.T) {
	const newer = "b3335e60-6d27-46e0-bed8-50e75cca6786"
	for _, backend := range []string{"dir", "lvm"} {
		t.Run(backend, func(t *testing.T) {
			prepare := func(t *testing.T) (*world, localdisk.Disk) {
				w := newWorld(t, backend)
				d := w.disk()
				d.Image, d.Volume, d.OnStop = ovirtImage, ovirtVolume, localdisk.Discard
				_, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
				must(t, err)
				w.reboot()
				d.Volume = newer
				return w, d
			}
			start := func(w *world, d localdisk.Disk, point string) error {
				w.t.Helper()
				w.t.Setenv("DISKHOOK_FAILPOINT", point)
				defer w.t.Setenv("DISKHOOK_FAILPOINT", "")
				return service().Prestage(w.t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
			}
			probe, d := prepare(t)
			points := passed(t, probe, func() {
				must(t, service().Prestage(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{}))
			})
			retiring := points[:slices.IndexFunc(points, func(p string) bool { return strings.HasPrefix(p, "fill.created") })+1]
			if len(retiring) < 4 || !strings.HasPrefix(retiring[0], "discard.intent") {
				t.Fatalf("failpoints %v", points)
			}
			for _, point := range retiring {
				t.Run(point, func(t *testing.T) {
					w, d := prepare(t)
					_ = start(w, d, point) // the copy process is killed; who waits for it may start another
					must(t, start(w, d, ""))
					placements, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
					must(t, err)
					w.same(placements[0].Node, w.flat)
					entries, err := service().List(t.Context())
					must(t, err)
					if len(entries) != 1 || entries[0].Receipt == nil || entries[0].Receipt.Volume != newer {
						t.Errorf("left: %+v", entries)
					}
				})
			}
		})
	}
}
