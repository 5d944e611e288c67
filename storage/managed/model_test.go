// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package managed_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
	"diskhook/storage/managed/database"
)

// model is what an operator believes of three volumes, two of which share an
// iSCSI session.
type model struct {
	*home
	volumes map[string]*believed
}

type believed struct {
	wwn      string
	attached bool
	unsure   bool   // a crash: half attached, attached, or not
	claim    string // the domain that has it
	byClaim  bool   // it was attached for the claim
}

// Whatever the order of calls, crashes and reboots: an attached volume is the
// right one and stays while others come and go, the domain that began finishes
// in one call, nobody else gets what a domain has, and in the end nothing is left.
func TestAnyOrderOfEventsConverges(t *testing.T) {
	checks := "12"
	if testing.Short() {
		checks = "3"
	}
	must(t, flag.Set("rapid.checks", checks))
	must(t, flag.Set("rapid.steps", "20"))
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{home: newHome(t), volumes: map[string]*believed{
			"v1": {wwn: "36001405aa"}, "v2": {wwn: "36001405bb"}, "v3": {wwn: "uuid.u-1"},
		}}
		m.define("v1", iscsi)
		m.define("v2", strings.ReplaceAll(iscsi, `"target_lun":1`, `"target_lun":2`))
		m.define("v3", nvme)
		rt.Repeat(map[string]func(*rapid.T){
			"attach": m.attach, "detach": m.detach, "release": m.release, "crash": m.crash,
			"reboot": m.reboot, "reconcile": m.reconcile, "storage away": m.away, "": m.check,
		})
		for id, v := range m.volumes {
			if v.claim == "" || v.unsure {
				v.claim = domain
			}
			must(t, m.Detach(t.Context(), id, v.claim))
		}
		m.clean()
		if t.Failed() {
			rt.Fatal("something was left")
		}
	})
}

func (m *model) draw(rt *rapid.T) (string, *believed) {
	id := rapid.SampledFrom([]string{"v1", "v2", "v3"}).Draw(rt, "volume")
	return id, m.volumes[id]
}

func by(rt *rapid.T) string {
	return rapid.SampledFrom([]string{"", domain, another}).Draw(rt, "domain")
}

func (m *model) attach(rt *rapid.T) {
	id, v := m.draw(rt)
	who := by(rt)
	_, err := m.fulfil(id, who)
	refused := errors.Is(err, failure.Conflict)
	switch {
	case err != nil && !refused:
		rt.Fatalf("%s for %q: %v", id, who, err)
	case v.unsure && who == domain && refused:
		rt.Fatalf("%s: the domain that began does not get it: %v", id, err)
	case v.unsure && refused:
		return
	case v.unsure: // whoever gets it has it, but who attached it?
		*v = believed{wwn: v.wwn, attached: true, claim: who, byClaim: m.byClaim(id)}
	case !v.attached && refused:
		rt.Fatalf("%s is free, and not for %q: %v", id, who, err)
	case !v.attached:
		*v = believed{wwn: v.wwn, attached: true, claim: who, byClaim: who != ""}
	case who == "" && managed.CodeOf(err) != managed.AlreadyAttached:
		rt.Fatalf("%s: %v", id, err)
	case who == "":
	case v.claim == "" && err == nil:
		v.claim = who
	case (v.claim == who) != (err == nil):
		rt.Fatalf("%s of %q for %q: %v", id, v.claim, who, err)
	}
}

// byClaim asks the database, where the model cannot know.
func (m *model) byClaim(id string) (attached bool) {
	m.eachClaim(func(volume string, by bool) { attached = attached || volume == id && by })
	return attached
}

func (m *model) detach(rt *rapid.T) {
	id, v := m.draw(rt)
	who := by(rt)
	err := m.Detach(m.t.Context(), id, who)
	switch {
	case err != nil && !errors.Is(err, failure.Conflict):
		rt.Fatalf("%s by %q: %v", id, who, err)
	case v.unsure && who == domain && err != nil:
		rt.Fatalf("%s: who began may not end: %v", id, err)
	case v.unsure && err != nil:
		return
	case !v.unsure && (v.claim == "" || v.claim == who || !v.attached) != (err == nil):
		rt.Fatalf("%s of %q by %q: %v", id, v.claim, who, err)
	case err == nil:
		*v = believed{wwn: v.wwn}
	}
}

func (m *model) release(rt *rapid.T) {
	id, v := m.draw(rt)
	who := rapid.SampledFrom([]string{domain, another}).Draw(rt, "domain")
	if err := m.Release(m.t.Context(), id, who); err != nil {
		rt.Fatalf("%s by %q: %v", id, who, err)
	}
	switch {
	case v.unsure || v.claim != who:
	case v.byClaim:
		*v = believed{wwn: v.wwn}
	default:
		v.claim = ""
	}
}

// crash kills a verb of the first domain after some steps.
func (m *model) crash(rt *rapid.T) {
	id, v := m.draw(rt)
	verb := rapid.SampledFrom([]string{"attach", "detach"}).Draw(rt, "verb")
	step := rapid.IntRange(1, 10).Draw(rt, "step")
	out, err := m.process(verb, id, fmt.Sprintf("DISKHOOK_FAILPOINT=#%d=kill", step))
	theirs := v.attached && !v.unsure && v.claim != "" && v.claim != domain
	if theirs {
		if err == nil || !strings.Contains(out, "has it") {
			rt.Fatalf("%s of another: %v %s", id, err, out)
		}
		return
	}
	if err != nil && out != "" {
		rt.Fatalf("%s %s was not killed: %v %s", verb, id, err, out)
	}
	v.unsure = true
}

func (m *model) reboot(rt *rapid.T) {
	must(m.t, m.Reboot())
	for _, v := range m.volumes {
		*v = believed{wwn: v.wwn}
	}
}

func (m *model) reconcile(rt *rapid.T) {
	findings, err := m.Reconcile(m.t.Context(), true)
	if err != nil {
		rt.Fatal(err)
	}
	for _, f := range findings {
		v := m.volumes[f.Volume]
		// A claim makes a half attached volume its domain's to finish.
		if !f.Done && !v.unsure {
			rt.Fatalf("%+v", f)
		}
	}
}

// away has an attach fail, since the storage does not answer; that takes
// nothing from volumes that are attached.
func (m *model) away(rt *rapid.T) {
	id, v := m.draw(rt)
	if v.attached || v.unsure {
		return
	}
	var iscsi, nvme []string
	m.change(func(s *connectortest.Storage) {
		iscsi, nvme = s.ISCSI["iqn.x:t"].Portals, s.NVMe["nqn.s"].Portals
		s.ISCSI["iqn.x:t"].LUNs, s.NVMe["nqn.s"].Portals = nil, nil
	})
	_, err := m.fulfil(id, domain)
	m.change(func(s *connectortest.Storage) {
		s.ISCSI["iqn.x:t"].Portals, s.NVMe["nqn.s"].Portals = iscsi, nvme
		s.ISCSI["iqn.x:t"].LUNs = map[uint64]connectortest.LUN{1: {Designator: "naa.6001405aa", Sectors: 2048}, 2: {Designator: "naa.6001405bb", Sectors: 2048}}
	})
	if err == nil || errors.Is(err, failure.Conflict) {
		rt.Fatalf("%s without its storage: %v", id, err)
	}
}

// check looks at every volume of which the model is sure.
func (m *model) check(rt *rapid.T) {
	for id, v := range m.volumes {
		if v.unsure || !v.attached {
			continue
		}
		to, err := os.Readlink(m.Link(id))
		if err != nil {
			rt.Fatalf("%s: %v", id, err)
		}
		if now, err := m.Service.Host.Look(to); err != nil || now.WWN != v.wwn {
			rt.Fatalf("%s is %+v, %v", id, now, err)
		}
	}
}

// eachClaim tells what claims there are, and whether each attached its volume.
func (h *home) eachClaim(tell func(volume string, attached bool)) {
	h.t.Helper()
	db, err := database.Open(h.t.Context(), h.Database)
	must(h.t, err)
	claims, err := db.Claims(h.t.Context())
	must(h.t, errors.Join(err, db.Close()))
	for volume, claim := range claims {
		tell(volume, claim.Attached)
	}
}
