// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// What a pool above its watermark says, and what goes to make room.
func TestRoomIsMadeOfUnusedTemplates(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.started(w.disk())
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	if all := w.templates(); len(all) != 1 || all[0].Clones != 0 || all[0].Kept != "" {
		t.Fatalf("templates %+v", all)
	}
	// 2.1 MiB of template are more than is left.
	full := func() {
		must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes["pool0"].Size = 2 << 20 }))
	}
	full()
	t.Setenv("DISKHOOK_TEST_CACHE", "")
	w.started(w.disk())
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
}

func TestPoolAboveItsWatermarkIsNotClonedIn(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.started(w.disk())
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes["pool0"].Size = 2 << 20 }))
	_, err := service().Fulfil(t.Context(), []localdisk.Disk{w.numbered(1)}, localdisk.Waiting{})
	if !errors.Is(err, failure.NoSpace) || !strings.Contains(failure.HintOf(err), "lvextend") {
		t.Fatalf("got %v", err)
	}
	w.onlyTemplateAnd(1)
}

func TestEvictTemplate(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.started(w.disk())
	s, name := service(), w.templates()[0].Name
	if err := s.EvictTemplate(t.Context(), name, localdisk.WipeNone); !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "share its blocks") {
		t.Errorf("with a clone: %v", err)
	}
	must(t, s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	if err := s.EvictTemplate(t.Context(), name, localdisk.WipeZero); !errors.Is(err, failure.Precondition) {
		t.Errorf("zeros to a thin volume: %v", err)
	}
	if all := w.templates(); len(all) != 1 || all[0].State != localdisk.Ready {
		t.Errorf("templates %+v", all)
	}
	must(t, s.EvictTemplate(t.Context(), name, localdisk.WipeDiscard))
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
	for name, want := range map[string]error{name: failure.NotFound, "pool0": failure.Usage, "dhbase_../x": failure.Usage} {
		if err := s.EvictTemplate(t.Context(), name, localdisk.WipeNone); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// A crash at any point of wiping leaves nothing that anybody clones or goes on
// with, not even when the template was one whose making had been interrupted.
func TestInterruptedWipeOfATemplate(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, w *world){
		"ready": func(t *testing.T, w *world) {
			w.started(w.disk())
			must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
		},
		"unfinished, with a cursor": func(t *testing.T, w *world) {
			if _, err := w.hook("DISKHOOK_FAILPOINT=template.filled=kill"); err == nil {
				t.Fatal("the failpoint did not fire")
			}
			w.awaitUnlocked()
			if w.cursor() == nil {
				t.Fatal("no cursor")
			}
		},
	} {
		for _, point := range []string{"template.spoiled", "template.wiped", "template.evicted"} {
			t.Run(name+"/"+point, func(t *testing.T) {
				w := newCache(t, "lvmthin")
				begin(t, w)
				t.Setenv("DISKHOOK_FAILPOINT", point+"=error")
				if err := service().EvictTemplate(t.Context(), w.templates()[0].Name, localdisk.WipeDiscard); !errors.Is(err, failpoint.ErrInjected) {
					t.Fatalf("got %v", err)
				}
				t.Setenv("DISKHOOK_FAILPOINT", "")
				w.started(w.disk())
				w.onlyTemplateAnd(1)
			})
		}
	}
}

func TestTemplatesAreKeptForAWhile(t *testing.T) {
	w := newCache(t, "lvmthin")
	w.started(w.disk())
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	name := w.templates()[0].Name
	today := time.Now().Unix() / 86400
	for days, kept := range map[int64]bool{0: true, 1: true, 2: false, 100: false, -100: true} { // the last: of a wrong clock
		must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) {
			g.Volumes[name].Tags = []string{"DH_base", fmt.Sprintf("DH_used_%d", today-days)}
		}))
		s := service()
		s.Config.Local.CacheMinAge = host.Duration(24 * time.Hour)
		all, err := s.Templates(t.Context())
		must(t, err)
		if len(all) != 1 || (all[0].Kept != "") != kept {
			t.Errorf("used %d days ago: %+v", days, all)
		}
	}
	// Its next use is noted.
	w.started(w.disk())
	if all := w.templates(); len(all) != 1 || all[0].LastUse.Unix()/86400 < today {
		t.Errorf("templates %+v", all)
	}
}

// gc takes what nothing needs, and leaves alone what somebody may go on with or
// clones.
func TestGarbageHasUnusedTemplates(t *testing.T) {
	w := newCache(t, "lvmthin")
	judge := func() localdisk.Judged {
		t.Helper()
		var of []localdisk.Judged
		all, err := service().Judge(t.Context(), nil)
		must(t, err)
		for _, j := range all {
			if strings.Contains(j.Object, "dhbase_") {
				of = append(of, j)
			}
		}
		if len(of) != 1 || of[0].Kind != "template" {
			t.Fatalf("judged %+v", of)
		}
		return of[0]
	}
	w.started(w.disk())
	if j := judge(); j.Take || !strings.Contains(j.Reason, "share its blocks") {
		t.Errorf("with a clone: %+v", j)
	}
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	if j := judge(); !j.Take || !strings.Contains(j.Reason, "no copy") {
		t.Errorf("without: %+v", j)
	}
	must(t, service().EvictTemplate(t.Context(), w.templates()[0].Name, localdisk.WipeNone))
	if _, err := w.hook("DISKHOOK_FAILPOINT=template.filled=kill"); err == nil {
		t.Fatal("the failpoint did not fire")
	}
	w.awaitUnlocked()
	all, err := service().Judge(t.Context(), nil)
	must(t, err)
	for _, j := range all {
		if j.Kind == "cursor" && j.Take {
			t.Errorf("the cursor of an unfinished template is taken: %+v", j)
		}
	}
	j := judge()
	if !j.Take || !strings.Contains(j.Reason, "unfinished") {
		t.Fatalf("unfinished: %+v", j)
	}
	must(t, service().Take(t.Context(), j, localdisk.WipeNone))
	if all := w.templates(); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
}
