// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
	"diskhook/storage/lvm/lvmtest"
)

// gc is the process: judge, and take all that can be taken.
func gc() error {
	s := service()
	w, err := localdisk.ParseWipe(os.Getenv("DISKHOOK_TEST_WIPE"))
	if err != nil {
		return err
	}
	judged, err := s.Judge(context.Background(), nil)
	for _, j := range judged {
		if j.Take {
			err = errors.Join(err, s.Take(context.Background(), j, w))
		}
	}
	return err
}

// process runs the test binary as one of its verbs.
func (w *world) process(verb string, env ...string) error {
	w.t.Helper()
	cmd := exec.Command(os.Args[0], verb)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// interrupted leaves a copy that a kill stopped before it was complete.
func (w *world) interrupted() {
	w.t.Helper()
	if _, err := w.hook("DISKHOOK_FAILPOINT=fill.verified=kill"); err == nil {
		w.t.Fatal("the failpoint did not fire")
	}
	w.awaitUnlocked()
	if w.ready() {
		w.t.Fatal("the copy is complete")
	}
}

// decisions are what was judged, by kind, with the wording.
func decisions(t *testing.T) map[string]string {
	t.Helper()
	judged, err := service().Judge(t.Context(), nil)
	must(t, err)
	all := map[string]string{}
	for _, j := range judged {
		verb := "kept: "
		if j.Take {
			verb = "taken: "
		}
		all[j.Kind] += verb + j.Reason + "\n"
	}
	return all
}

func TestGCTakesAnUnfinishedCopy(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		for _, wipe := range []string{"none", "zero", "discard"} {
			t.Run(wipe, func(t *testing.T) {
				w := newWorld(t, backend)
				w.interrupted()
				want := "taken: unfinished, nobody works on it, and no guest ever used it\n"
				if got := decisions(t)["copy"]; got != want {
					t.Fatalf("judged %q", got)
				}
				err := w.process("gc", "DISKHOOK_TEST_WIPE="+wipe)
				if (backend == "lvmthin" || backend == "thin") && wipe == "zero" {
					if err == nil || !strings.Contains(err.Error(), "use discard") {
						t.Errorf("zeros on a thin volume: %v", err)
					}
					return
				}
				must(t, err)
				if got := decisions(t)["copy"]; got != "" {
					t.Errorf("left: %s", got)
				}
				_, err = w.hook()
				must(t, err)
				w.same(w.stable(), w.flat)
				w.onlyCopy()
			})
		}
	})
}

// A kill anywhere in the removal leaves what the next gc takes, or the next
// start replaces; and never a copy that is taken for complete or continued.
func TestGCConvergesAtEveryPoint(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		wipe := "DISKHOOK_TEST_WIPE=zero"
		if backend == "lvmthin" || backend == "thin" {
			wipe = "DISKHOOK_TEST_WIPE=discard"
		}
		probe := newWorld(t, backend)
		probe.interrupted()
		points := passed(t, probe, func() { must(t, probe.process("gc", wipe)) })
		if len(points) < 3 {
			t.Fatalf("only %d failpoints: %v", len(points), points)
		}
		for _, point := range points {
			for _, next := range []string{"gc", "start"} {
				t.Run(point+" "+next, func(t *testing.T) {
					w := newWorld(t, backend)
					w.interrupted()
					if err := w.process("gc", wipe, "DISKHOOK_FAILPOINT="+point); err == nil {
						t.Fatal("the failpoint did not fire")
					}
					if next == "gc" {
						must(t, w.process("gc", wipe))
						if got := decisions(t)["copy"]; got != "" {
							t.Errorf("left: %s", got)
						}
					}
					_, err := w.hook()
					must(t, err)
					w.same(w.stable(), w.flat)
					w.onlyCopy()
				})
			}
		}
	})
}

// Of whatever lies about, in any combination, gc takes what is unfinished,
// unlocked, closed and never used; every other volume is there afterwards, byte
// by byte.
func TestGCOverRandomVolumes(t *testing.T) {
	must(t, flag.Set("rapid.checks", "12"))
	w := newWorld(t, "lvm")
	rapid.Check(t, func(rt *rapid.T) {
		must(t, os.RemoveAll(w.path("var")))
		must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) {
			maps.DeleteFunc(g.Volumes, func(name string, _ *lvmtest.Volume) bool { return name != "pool0" })
		}))
		s := service()
		var locks []*lock.Lock
		kept := map[string]bool{"pool0": true}
		for i := range rapid.IntRange(1, 6).Draw(rt, "volumes") {
			target := fmt.Sprintf("vd%c", 'a'+i)
			name := "dh_" + domain + "_" + target
			v := lvmtest.Volume{UUID: fmt.Sprintf("abcdef-abcd-abcd-abcd-abcd-abcd-abcde%d", i), Size: 4 << 20, Tags: []string{"VM_" + domain}}
			updating := rapid.Bool().Draw(rt, "updating")
			if updating {
				v.Tags = append(v.Tags, "UPDATING")
			}
			v.Open = rapid.IntRange(0, 3).Draw(rt, "open") == 0
			v.Active = v.Open
			receipt := rapid.SampledFrom([]string{"none", "unused", "used", "discarding"}).Draw(rt, "receipt")
			if receipt != "none" {
				w.claimed(target, localdisk.Receipt{
					Schema: "diskhook.receipt/v1", Domain: domain, Target: target, Backend: "lvm", OnStop: localdisk.Keep,
					Name: name, Copy: v.UUID, Home: "ovirt-local", Size: v.Size, Used: receipt == "used", Discarding: receipt == "discarding",
				})
			}
			locked := rapid.IntRange(0, 3).Draw(rt, "locked") == 0
			if locked {
				must(t, os.MkdirAll(s.Layout.Locks(), 0o755))
				l, err := lock.Try(s.Layout.Locks(), "local-"+domain+"-"+target)
				must(t, err)
				locks = append(locks, l)
			}
			must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes[name] = &v }))
			must(t, os.WriteFile(w.path("lvm/"+name+".img"), bytes.Repeat([]byte{byte(i + 1)}, 4<<20), 0o600))
			kept[name] = !updating || v.Open || locked || receipt == "used"
		}
		judged, err := s.Judge(t.Context(), func(string) bool { return true })
		must(t, err)
		for _, j := range judged {
			if j.Take {
				must(t, s.Take(t.Context(), j, localdisk.WipeNone))
			} else if err := s.Take(t.Context(), j, localdisk.WipeNone); !errors.Is(err, failure.Conflict) {
				rt.Fatalf("%s is taken though it is kept: %v", j.Object, err)
			}
		}
		for _, l := range locks {
			l.Release()
		}
		g, err := lvmtest.Load(w.path("lvm"))
		must(t, err)
		for name, keep := range kept {
			if _, there := g.Volumes[name]; there != keep {
				rt.Fatalf("%s: there %v, want %v", name, there, keep)
			}
		}
	})
}

// claimed writes a receipt by hand.
func (w *world) claimed(key string, r localdisk.Receipt) {
	w.t.Helper()
	must(w.t, os.MkdirAll(w.path("var/lib/diskhook/receipts/"+domain), 0o755))
	must(w.t, os.WriteFile(w.path("var/lib/diskhook/receipts/"+domain+"/"+key+".json"), encode(w.t, r), 0o644))
}

// What was judged may have changed before it is taken.
func TestGCLooksAgainBeforeItTakes(t *testing.T) {
	w := newWorld(t, "lvm")
	w.interrupted()
	s := service()
	judged, err := s.Judge(t.Context(), nil)
	must(t, err)
	_, err = w.hook() // somebody starts the domain meanwhile
	must(t, err)
	for _, j := range judged {
		if !j.Take {
			continue
		}
		if err := s.Take(t.Context(), j, localdisk.WipeZero); !errors.Is(err, failure.Conflict) && j.Kind == "copy" {
			t.Errorf("%s: %v", j.Object, err)
		}
	}
	w.same(w.stable(), w.flat)
	if !w.ready() {
		t.Error("a copy that became ready was taken")
	}
}

// A damaged receipt may say used: nothing of its domain is taken.
func TestGCKeepsWhereAReceiptIsDamaged(t *testing.T) {
	w := newWorld(t, "dir")
	w.interrupted()
	must(t, os.MkdirAll(w.path("var/lib/diskhook/receipts/"+domain), 0o755))
	must(t, os.WriteFile(w.path("var/lib/diskhook/receipts/"+domain+"/vdz.json"), []byte("{"), 0o644))
	if got := decisions(t)["copy"]; !strings.HasPrefix(got, "kept: receipt ") {
		t.Errorf("judged %q", got)
	}
	must(t, w.process("gc"))
	if _, err := os.Stat(w.content() + ".partial"); err != nil {
		t.Error("it was taken")
	}
}

// A template goes when no copy of it is left and it is old; the pool stays.
func TestGCOfTemplates(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.started(w.disk())
	if got := decisions(t)["template"]; got != "kept: 1 copies share its blocks, so nothing would be won\n" {
		t.Errorf("cloned: %q", got)
	}
	w.reboot()
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	name := w.templates()[0].Name
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes[name].Open, g.Volumes[name].Active = true, true }))
	if got := decisions(t)["template"]; got != "kept: it is open, or may be\n" {
		t.Errorf("open: %q", got)
	}
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes[name].Open, g.Volumes[name].Active = false, false }))
	young := service()
	young.Config.Local.CacheMinAge = host.Duration(24 * time.Hour)
	judged, err := young.Judge(t.Context(), nil)
	must(t, err)
	for _, j := range judged {
		if j.Kind == "template" && (j.Take || !strings.Contains(j.Reason, "cache_min_age")) {
			t.Errorf("young: %+v", j)
		}
	}
	must(t, w.process("gc", "DISKHOOK_TEST_WIPE=discard"))
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if len(g.Volumes) != 1 {
		t.Errorf("left: %v", g.Volumes)
	}
	w.started(w.disk())
}
