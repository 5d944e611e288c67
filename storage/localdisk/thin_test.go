// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/thin/claim"
)

const thinCopy = "dh_" + domain + "_vda"

// changed alters the state of the cluster.
func (w *world) changed(change func(*poolState)) {
	w.t.Helper()
	must(w.t, thePool().do(func(s *poolState) error { change(s); return nil }))
}

func (w *world) prestages() error {
	w.t.Helper()
	return service().Prestage(w.t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{})
}

// Where no copy can be, the refusal says what to do, and nothing is made or noted.
func TestThinRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		arrange func(*world, *localdisk.Service, *localdisk.Disk)
		kind    *failure.Kind
		says    string
	}{
		"pool stopped": {func(w *world, _ *localdisk.Service, _ *localdisk.Disk) {
			w.changed(func(s *poolState) { s.Stopped = true })
		},
			failure.Precondition, "run `diskhook thin start`"},
		"no cluster": {func(_ *world, s *localdisk.Service, _ *localdisk.Disk) { s.Thin = nil }, failure.Precondition, "there are no thin clusters here"},
		"another cluster": {func(_ *world, s *localdisk.Service, _ *localdisk.Disk) { s.Config.Thin.Cluster = "other" },
			failure.Precondition, "cluster other: it is not defined"},
		"no room": {func(w *world, _ *localdisk.Service, _ *localdisk.Disk) {
			w.changed(func(s *poolState) { s.Free, s.Slack = 26<<20, 1<<20 })
		},
			failure.NoSpace, "are free beyond the reserve; run `diskhook thin gc`"},
		"the room of another unfinished copy": {func(w *world, _ *localdisk.Service, _ *localdisk.Disk) {
			w.changed(func(s *poolState) {
				s.Free, s.Slack = 30<<20, 0
				s.Volumes["dh_other"] = &poolVolume{UUID: uuid.UUID{9}, Size: 4 << 20}
			})
			must(w.t, thePool().labels.Set("dh_other", claim.Label{Volume: uuid.UUID{9}, Tags: []string{"UPDATING"}}))
		}, failure.NoSpace, "beyond the reserve"},
		"no room, sparse": {func(w *world, s *localdisk.Service, _ *localdisk.Disk) {
			s.Config.Local.Sparse = true
			w.changed(func(s *poolState) { s.Free, s.Slack = 24<<20, 1<<20 })
		}, failure.NoSpace, "beyond the reserve"},
		"of oVirt": {func(_ *world, _ *localdisk.Service, d *localdisk.Disk) { d.Image, d.Volume = ovirtImage, ovirtVolume },
			failure.Usage, "use another one for VMs of oVirt"},
		"on a template": {func(_ *world, _ *localdisk.Service, d *localdisk.Disk) { d.Template = true }, failure.Usage, "backend"},
		"a name that is too long": {func(_ *world, _ *localdisk.Service, d *localdisk.Disk) { d.Target = strings.Repeat("v", 20) },
			failure.Usage, "backend"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "thin")
			s, d := service(), w.disk()
			c.arrange(w, s, &d)
			_, err := s.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
			if !errors.Is(err, c.kind) || !strings.Contains(failure.Line(err), c.says) {
				t.Errorf("got %v", failure.Line(err))
			}
			w.changed(func(s *poolState) { delete(s.Volumes, "dh_other") })
			if label, err := thePool().labels.Of(thinCopy); label != nil || err != nil {
				t.Errorf("left: %+v, %v", label, err)
			}
		})
	}
}

// With [local] sparse a copy is begun where there is some room, and nothing is granted.
func TestThinSparse(t *testing.T) {
	w := newWorld(t, "thin")
	w.changed(func(s *poolState) { s.Free, s.Slack = 26<<20, 1<<20 })
	s := service()
	s.Config.Local.Sparse = true
	must(t, s.Room(t.Context(), []localdisk.Disk{w.disk()}))
	w.changed(func(s *poolState) { s.Free, s.Slack = 64<<20, 0 })
	must(t, w.prestages())
	w.changed(func(s *poolState) {
		if s.Slack != 3<<20 || s.Free != 61<<20 {
			t.Errorf("what the copy may take was not granted: %+v", s)
		}
	})
}

// A ready copy is used without a master; one that cannot be made without it is made
// once it is back, whatever was noted of it.
func TestThinWithoutAMaster(t *testing.T) {
	w := newWorld(t, "thin")
	away := func(is bool) { w.changed(func(s *poolState) { s.MasterAway = is }) }
	away(true)
	if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "the master did not answer") {
		t.Fatalf("got %v", err)
	}
	all, err := service().List(t.Context())
	if must(t, err); len(all) != 1 || all[0].Copy.State != localdisk.Updating || all[0].Problem == "" {
		t.Errorf("%+v", all)
	}
	away(false)
	after := w.wroteRaw()
	w.onlyCopy()
	away(true)
	w.reboot()
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), after)
	w.changed(func(s *poolState) {
		if n := s.Volumes[thinCopy].Attached; n != 1 {
			t.Errorf("attached %d times", n)
		}
	})
}

// A host that was recovered finds its copies offline: they come back, and what is at
// another host is refused.
func TestThinAfterARecovery(t *testing.T) {
	w := newWorld(t, "thin")
	after := w.wroteRaw()
	w.reboot()
	at := func(host string) { w.changed(func(s *poolState) { s.Volumes[thinCopy].Host = host }) }
	at("h2")
	for range 2 {
		if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "it is at host h2; see `diskhook thin status`") {
			t.Fatalf("got %v", err)
		}
	}
	if err := service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}); !errors.Is(err, failure.Conflict) {
		t.Errorf("removed: %v", err)
	}
	at("")
	_, err := w.hook()
	must(t, err)
	w.same(w.stable(), after)
}

// Another volume under the name of a copy is not the copy, and a copy that is gone is
// not made again.
func TestThinOfAnotherVolume(t *testing.T) {
	w := newWorld(t, "thin")
	w.wroteRaw()
	w.reboot()
	var was uuid.UUID
	w.changed(func(s *poolState) {
		was = s.Volumes[thinCopy].UUID
		s.Volumes[thinCopy].UUID = uuid.UUID{7}
	})
	if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "is gone, and the guest has written to it") {
		t.Fatalf("got %v", err)
	}
	must(t, os.Remove(thePool().labels.Dir+"/"+thinCopy+".json"))
	if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "another volume took its place") {
		t.Fatalf("got %v", err)
	}
	w.changed(func(s *poolState) { s.Volumes[thinCopy].UUID = was })
	_, err := w.hook()
	must(t, err) // the receipt names it
	must(t, os.WriteFile(thePool().labels.Dir+"/"+thinCopy+".json", []byte("{"), 0o644))
	w.reboot()
	if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "not understood") {
		t.Fatalf("got %v", err)
	}
}

// A cluster in which no copy was made is never looked at, and one that is away is no
// reason not to list what there is.
func TestThinClusterThatIsAway(t *testing.T) {
	w := newWorld(t, "thin")
	s := service()
	s.Thin = hanging{t, thePool()}
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := s.Judge(t.Context(), nil); err != nil {
		t.Error(err)
	}
	must(t, w.prestages())
	s = service()
	s.Thin = nil
	all, err := s.List(t.Context())
	if must(t, err); len(all) != 1 || !strings.Contains(all[0].Problem, "there are no thin clusters here") {
		t.Errorf("%+v", all)
	}
	away, err := s.Away(t.Context())
	if must(t, err); len(away) != 1 {
		t.Errorf("%q", away)
	}
	judged, err := s.Judge(t.Context(), nil)
	must(t, err)
	if i := slices.IndexFunc(judged, func(j localdisk.Judged) bool { return j.Take }); i >= 0 {
		t.Errorf("would take %+v", judged[i])
	}
	s = service()
	s.Config.Thin.Cluster = "other" // what is in san stays there
	_, err = s.Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{})
	must(t, err)
	w.same(w.stable(), w.flat)
}

// hanging is a cluster whose disk nobody may ask.
type hanging struct {
	t *testing.T
	*pool
}

func (h hanging) Pool(ctx context.Context, cluster string) (localdisk.Pool, error) {
	h.t.Error("the cluster was looked at")
	return h.pool.Pool(ctx, cluster)
}
