// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// harms are what may happen to the file of a template.
var harms = map[string]func(w *world, path string){
	"written to": func(w *world, path string) {
		w.tool("chmod", "600", path)
		w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x99 1m 4k", path)
	},
	"cut off": func(w *world, path string) { w.tool("truncate", "-s", "1M", path) },
	"cut off, with its old time": func(w *world, path string) {
		st, err := os.Stat(path)
		must(w.t, err)
		w.tool("truncate", "-s", "1M", path)
		must(w.t, os.Chtimes(path, st.ModTime(), st.ModTime()))
	},
	"another file": func(w *world, path string) {
		w.tool("cp", path, path+"~")
		w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x99 0 4k", path+"~")
		w.tool("mv", path+"~", path)
	},
}

// later makes sure that the time of what is written from now on differs.
func later() { time.Sleep(50 * time.Millisecond) }

func TestClonesAreNotMadeOfATemplateThatWasWrittenTo(t *testing.T) {
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			w := newShared(t)
			w.started(w.disk())
			was := w.theTemplate()
			later()
			harm(w, was.Path)
			w.started(w.numbered(1))
			w.started(w.numbered(2))
			if now := w.theTemplate(); now.Name != was.Name || now.Clones != 3 {
				t.Errorf("template %+v, was %+v", now, was)
			}
			w.same(w.theTemplate().Path, w.path("base.raw"))
		})
	}
}

// The template that overlays lie on stays for whoever brings it back, and a new
// one has another name. A disk that is recreated lies on that.
func TestOverlaysAreNotMadeOnATemplateThatWasWrittenTo(t *testing.T) {
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			w := newLying(t, "dir")
			w.lies(w.disk())
			w.reboot()
			was := w.theTemplate()
			later()
			harm(w, was.Path)
			w.lies(w.numbered(1))
			w.lies(w.numbered(2))
			byName := map[string]localdisk.Template{}
			for _, template := range w.templates() {
				byName[template.Name] = template
			}
			next := byName[was.Name+"_2"]
			if len(byName) != 2 || byName[was.Name].Lying != 1 || next.Lying != 2 || next.State != localdisk.Ready {
				t.Fatalf("templates %+v", byName)
			}
			w.same(next.Path, w.path("base.raw"))
			if err := service().EvictTemplate(t.Context(), was.Name, localdisk.WipeNone); !errors.Is(err, failure.Conflict) {
				t.Errorf("evicted: %v", err)
			}
			w.vetoed("lies on the template", "diskhook local recreate --discard-guest-data vm vda")
			must(t, service().Recreate(t.Context(), w.disk(), localdisk.GiveUp{DiscardGuestData: true}, localdisk.Waiting{}))
			w.lies(w.disk())
			// The one without disks goes first, however young it is; the new one is
			// used as long as it is there.
			must(t, w.process("gc"))
			if got := w.theTemplate(); got.Name != next.Name || got.Lying != 3 {
				t.Errorf("template %+v", got)
			}
			w.lies(w.numbered(3))
			if got := w.theTemplate(); got.Name != next.Name || got.Lying != 4 {
				t.Errorf("template %+v", got)
			}
		})
	}
}

// unsealed makes the sidecar one of an older version.
func (w *world) unsealed(template localdisk.Template) {
	w.t.Helper()
	path := strings.TrimSuffix(template.Path, ".raw") + ".json"
	text, err := os.ReadFile(path)
	must(w.t, err)
	var side map[string]any
	must(w.t, json.Unmarshal(text, &side))
	if side["seal"] == nil {
		w.t.Fatalf("no seal in %s", text)
	}
	delete(side, "seal")
	text, err = json.Marshal(side)
	must(w.t, err)
	must(w.t, os.WriteFile(path, text, 0o644))
}

// A template of which an older version noted nothing is compared with its base.
func TestTemplateOfAnOlderVersion(t *testing.T) {
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			w := newLying(t, "dir")
			w.lies(w.disk())
			was := w.theTemplate()
			w.unsealed(was)
			later()
			harm(w, was.Path)
			w.lies(w.numbered(1))
			w.lies(w.numbered(2))
			if all := w.templates(); len(all) != 2 {
				t.Errorf("templates %+v", all)
			}
		})
	}
	t.Run("as it was", func(t *testing.T) {
		w := newLying(t, "dir")
		w.lies(w.disk())
		was := w.theTemplate()
		w.unsealed(was)
		w.lies(w.numbered(1))
		if now := w.theTemplate(); now.Name != was.Name || now.Lying != 2 {
			t.Errorf("template %+v", now)
		}
		w.unsealed(was) // fails when the comparison was not noted
	})
}

// Of a volume can be told that somebody made it writable or smaller.
func TestVolumesAreNotMadeOfATemplateThatWasChanged(t *testing.T) {
	for _, backend := range []string{"lvm", "lvmthin"} {
		for name, harm := range map[string]func(*lvmtest.Volume){
			"writable": func(v *lvmtest.Volume) { v.ReadOnly = false },
			"smaller":  func(v *lvmtest.Volume) { v.Size = 1 << 20 },
		} {
			t.Run(backend+" "+name, func(t *testing.T) {
				w := newLying(t, backend)
				w.lying = backend == "lvm"
				start := w.started
				if w.lying {
					start = func(d localdisk.Disk) { w.lies(d) }
				}
				start(w.disk())
				was := w.theTemplate()
				must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { harm(g.Volumes[was.Name]) }))
				start(w.numbered(1))
				start(w.numbered(2))
				left := map[string]int{}
				for _, template := range w.templates() {
					left[template.Name] = template.Clones
				}
				if w.lying && (len(left) != 2 || left[was.Name+"_2"] != 2) || !w.lying && (len(left) != 1 || left[was.Name] < 2) {
					t.Errorf("templates and their clones: %v", left)
				}
			})
		}
	}
}
