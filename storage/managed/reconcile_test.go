// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
	"diskhook/storage/managed/database"
)

// row writes into the database what a call that was cut off would have.
func (h *home) row(change func(*database.Tx) error) {
	h.t.Helper()
	db, err := database.Open(h.t.Context(), h.Database)
	must(h.t, err)
	must(h.t, errors.Join(db.Update(h.t.Context(), change), db.Close()))
}

func (h *home) boot() string {
	h.t.Helper()
	boot, err := h.World.Boot()
	must(h.t, err)
	return boot
}

// runs says which domains run.
func (h *home) runs(domains ...string) {
	active := map[string]bool{}
	for _, d := range domains {
		active[d] = true
	}
	h.Active = func(context.Context) (map[string]bool, error) { return active, nil }
}

// A start that began after the look keeps its volume.
func TestReconcileAndAStart(t *testing.T) {
	for _, before := range []string{"", domain} { // attached for the domain, or before
		h := newHome(t)
		h.define("v1", nvme)
		if before == "" {
			_, err := h.fulfil("v1", "")
			must(t, err)
		}
		_, err := h.fulfil("v1", domain)
		must(t, err)
		looks := 0
		h.Active = func(context.Context) (map[string]bool, error) {
			looks++
			return map[string]bool{domain: looks > 1}, nil
		}
		_, err = h.Reconcile(t.Context(), true)
		must(t, err)
		if owner := h.owner("v1"); owner != domain || looks != 2 {
			t.Errorf("%q has it, after %d looks", owner, looks)
		}
	}
}

// What Reconcile finds, what it says it would do, and what is there once it has.
func TestReconcile(t *testing.T) {
	attached := func(connection, domain string) func(*home) {
		return func(h *home) {
			h.define("v1", connection)
			_, err := h.fulfil("v1", domain)
			must(h.t, err)
		}
	}
	lost := func(h *home) {
		_, err := h.Run(h.t.Context(), command.Cmd{Name: "nvme", Args: []string{"disconnect", "-d", "nvme0"}})
		must(h.t, err)
	}
	gone := func(h *home) { h.clean() }
	stays := func(h *home) {
		if !strings.Contains(h.info(), `"vol_id":"v1"`) {
			h.t.Error("the volume was forgotten")
		}
	}
	for name, tc := range map[string]struct {
		make  []func(*home)
		want  *managed.Finding
		after func(*home)
	}{
		"nothing": {[]func(*home){attached(nvme, domain)}, nil, stays},
		"a row of an earlier boot": {[]func(*home){attached(iscsi, domain), func(h *home) { must(h.t, h.Reboot()) }},
			&managed.Finding{Problem: managed.EarlierBoot, Action: "detach"}, gone},
		"a row without outcome": {[]func(*home){func(h *home) {
			h.row(func(tx *database.Tx) error { return tx.Record("v1", []byte(nvme), h.boot()) })
		}}, &managed.Finding{Problem: managed.Incomplete, Action: "detach"}, gone},
		"a device that vanished": {[]func(*home){attached(nvme, ""), lost}, &managed.Finding{Problem: managed.Vanished, Action: "detach"}, gone},
		"a device that vanished under a guest": {[]func(*home){attached(nvme, domain), lost},
			&managed.Finding{Problem: managed.VanishedUsed}, stays},
		"no link": {[]func(*home){attached(nvme, domain), func(h *home) { must(h.t, os.Remove(h.Link("v1"))) }},
			&managed.Finding{Problem: managed.NoLink, Action: "link"}, func(h *home) { h.path("v1") }},
		"a link elsewhere": {[]func(*home){attached(nvme, domain), func(h *home) {
			must(h.t, os.Remove(h.Link("v1")))
			must(h.t, os.Symlink("/dev/sda", h.Link("v1")))
		}}, &managed.Finding{Problem: managed.NoLink, Action: "link"}, func(h *home) {
			if got := h.path("v1"); got != "/dev/nvme0n1" {
				h.t.Error(got)
			}
		}},
		"a link without a volume": {[]func(*home){func(h *home) {
			must(h.t, os.MkdirAll(h.Links(), 0o755))
			must(h.t, os.Symlink("/dev/sda", h.Link("v1")))
		}}, &managed.Finding{Problem: managed.StrayLink, Action: "remove link"}, gone},
		"a claim without a volume": {[]func(*home){func(h *home) {
			h.row(func(tx *database.Tx) error {
				return tx.SetClaim(database.Claim{Volume: "v1", Domain: domain, Boot: h.boot()})
			})
		}}, &managed.Finding{Problem: managed.StrayClaim, Action: "remove claim"}, gone},
		"another device": {[]func(*home){attached(nvme, domain), func(h *home) {
			must(h.t, os.WriteFile(h.Dir+"/sys/class/block/nvme0n1/wwid", []byte("uuid.other"), 0o600))
		}}, &managed.Finding{Problem: managed.OtherDevice}, stays},
		"a row that nobody understands": {[]func(*home){func(h *home) {
			h.row(func(tx *database.Tx) error {
				return tx.Record("v1", []byte(`{"driver_volume_type":"storpool","data":{}}`), h.boot())
			})
		}}, &managed.Finding{Problem: managed.BadRow}, stays},
		"a start that was killed": {[]func(*home){func(h *home) {
			h.row(func(tx *database.Tx) error {
				return errors.Join(tx.Record("v1", []byte(nvme), h.boot()), tx.SetClaim(database.Claim{Volume: "v1", Domain: domain, Boot: h.boot(), Attached: true}))
			})
		}}, &managed.Finding{Problem: managed.Incomplete, Action: "detach"}, gone},
		"a domain that has ended": {[]func(*home){attached(nvme, domain), func(h *home) { h.runs(another) }},
			&managed.Finding{Problem: managed.Ended, Action: "release"}, gone},
		"one whose volume was attached before": {[]func(*home){attached(nvme, ""), func(h *home) {
			_, err := h.fulfil("v1", domain)
			must(h.t, err)
			h.runs()
		}}, &managed.Finding{Problem: managed.Ended, Action: "release"}, func(h *home) {
			if h.owner("v1") != "" || h.path("v1") == "" {
				h.t.Error(h.info())
			}
		}},
		"one whose volume has vanished": {[]func(*home){attached(nvme, domain), lost, func(h *home) { h.runs() }},
			&managed.Finding{Problem: managed.Ended, Action: "release"}, gone},
		"a domain that runs": {[]func(*home){attached(nvme, domain), func(h *home) { h.runs(domain) }}, nil, stays},
		"a libvirt that does not answer": {[]func(*home){attached(nvme, domain), func(h *home) {
			h.Active = func(context.Context) (map[string]bool, error) { return nil, errors.New("no answer") }
		}}, nil, stays},
		"what VDSM is attaching": {[]func(*home){func(h *home) {
			h.row(func(tx *database.Tx) error { return tx.Record("v1", []byte(nvme), "") })
		}}, &managed.Finding{Problem: managed.Incomplete}, stays},
		"what VDSM has attached": {[]func(*home){func(h *home) {
			h.localDevice()
			h.row(func(tx *database.Tx) error {
				return errors.Join(tx.Record("v1", []byte(`{"driver_volume_type":"storpool","data":{}}`), ""), tx.Attached(database.Volume{ID: "v1", Path: h.Dir + "/dev/drbd1"}))
			})
		}}, nil, stays},
		"what vanished from VDSM": {[]func(*home){func(h *home) {
			h.row(func(tx *database.Tx) error {
				return errors.Join(tx.Record("v1", []byte(nvme), ""), tx.Attached(database.Volume{ID: "v1", Path: h.Dir + "/dev/nvme0n1"}))
			})
		}}, &managed.Finding{Problem: managed.Vanished}, stays},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			for _, step := range tc.make {
				step(h)
			}
			before := h.info()
			var want []managed.Finding
			if tc.want != nil {
				tc.want.Volume = "v1"
				want = []managed.Finding{*tc.want}
			}
			h.Forget()
			got, err := h.Reconcile(t.Context(), false)
			must(t, err)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if lines := h.Lines(); lines != nil || h.info() != before {
				t.Errorf("a look ran %v and left %s", lines, h.info())
			}
			got, err = h.Reconcile(t.Context(), true)
			must(t, err)
			if want != nil {
				want[0].Done = want[0].Action != ""
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			tc.after(h)
		})
	}
}

// What cannot be done is said, and the rest is done.
func TestReconcileSaysWhatItCouldNotDo(t *testing.T) {
	h := newHome(t)
	h.row(func(tx *database.Tx) error {
		return errors.Join(tx.Record("v1", []byte(nvme), h.boot()), tx.Record("v2", []byte(rbd), h.boot()))
	})
	_, err := h.Run(t.Context(), command.Cmd{Name: "modprobe", Args: []string{"--", "nvme-tcp"}})
	must(t, err)
	_, err = h.Run(t.Context(), command.Cmd{Name: "nvme", Args: strings.Fields("connect -t tcp -n nqn.s -a 1.1.1.1 -s 4420")})
	must(t, err)
	h.change(func(s *connectortest.Storage) { s.Open = []string{"/dev/nvme0n1"} })
	got, err := h.Reconcile(t.Context(), true)
	must(t, err)
	if len(got) != 2 || got[0].Done || !strings.Contains(got[0].Error, "qemu-system-x86") || !got[1].Done {
		t.Errorf("%+v", got)
	}
	if info := h.info(); !strings.Contains(info, `"v1"`) || strings.Contains(info, `"v2"`) {
		t.Error(info)
	}
}

// A row that VDSM wrote in its own file has no boot: VDSM's rule holds, by
// which the path alone decides.
func TestRowsOfVDSM(t *testing.T) {
	h := newHome(t)
	_, err := h.attach("v1", nvme)
	must(t, err)
	h.row(func(tx *database.Tx) error {
		return errors.Join(tx.Record("v1", []byte(nvme), ""), tx.Attached(database.Volume{ID: "v1", Path: h.Dir + "/dev/nvme0n1", Attachment: []byte(`{}`)}))
	})
	_, err = h.attach("v1", nvme)
	coded(t, err, managed.AlreadyAttached)
	if !errors.Is(err, failure.Conflict) {
		t.Error(err)
	}
	must(t, h.Detach(t.Context(), "v1", ""))
	h.clean()
	h.row(func(tx *database.Tx) error {
		return tx.Record("v1", []byte(`{"driver_volume_type":"storpool","data":{}}`), "")
	})
	if err := h.Detach(t.Context(), "v1", ""); failure.HintOf(err) != "VDSM has attached it: run `vdsm-client ManagedVolume detach_volume vol_id=v1`" {
		t.Errorf("%v; %s", err, failure.HintOf(err))
	}
}
