// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
)

// A map that has lost its paths is there, and would keep a guest waiting for
// ever: a start looks for new ones, and is refused where there are none.
func TestMapWithoutPaths(t *testing.T) {
	h := newHome(t)
	h.define("v1", iscsi)
	_, err := h.fulfil("v1", "")
	must(t, err)
	lose := func() {
		t.Helper()
		must(t, h.WriteAttr(h.Dir+"/sys/bus/scsi/devices/3:0:0:1/delete", "1"))
		must(t, os.RemoveAll(h.Dir+"/sys/class/iscsi_session/session1"))
	}
	problem := func(want managed.Problem) {
		t.Helper()
		all, err := h.List(t.Context())
		if must(t, err); len(all) != 1 || all[0].Problem != want {
			t.Errorf("%+v", all)
		}
	}
	lose()
	problem(managed.NoPath)
	h.change(func(s *connectortest.Storage) { s.ISCSI["iqn.x:t"].Dead = []string{"10.0.0.5:3260"} })
	if told := h.told(h.ExplainAttach(t.Context(), managed.Request{ID: "v1", Domain: domain})); !strings.Contains(told, "# none of its paths works") || !strings.Contains(told, "--login") {
		t.Error(told)
	}
	if _, err := h.fulfil("v1", domain); err == nil {
		t.Error("a domain got it")
	}
	problem(managed.NoPath) // it was attached before, and stays
	must(t, h.Release(t.Context(), "v1", domain))
	h.change(func(s *connectortest.Storage) { s.ISCSI["iqn.x:t"].Dead = nil })
	_, err = h.fulfil("v1", domain)
	must(t, err)
	problem("")
	if owner := h.owner("v1"); owner != domain {
		t.Errorf("%q has it", owner)
	}
	must(t, h.Release(t.Context(), "v1", domain))
	problem("") // it was attached before, and stays
	must(t, h.Detach(t.Context(), "v1", ""))
	h.clean()
}

// Without its program nothing is begun, and a volume that is there is given out.
func TestMissingProgram(t *testing.T) {
	h := newHome(t)
	h.define("v1", iscsi)
	_, err := h.fulfil("v1", "")
	must(t, err)
	h.Service.Host.Find = func(name string) (string, error) {
		return "", failure.New(failure.Precondition, "%s: no such program", name)
	}
	_, err = h.fulfil("v1", domain)
	must(t, err)
	h.Service.Host.Find, err = nil, h.Detach(t.Context(), "v1", domain)
	must(t, err)
	h.Service.Host.Find = func(name string) (string, error) {
		return "", failure.New(failure.Precondition, "%s: no such program", name)
	}
	h.World.Forget()
	for what, err := range map[string]error{
		"attach":    second(h.fulfil("v1", domain)),
		"attach -n": second(h.ExplainAttach(t.Context(), managed.Request{ID: "v1", Domain: domain})),
		"of VDSM's": second(h.Connect(t.Context(), managed.Row{Connection: []byte(iscsi)})),
	} {
		if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), "iscsiadm: no such program") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if lines := h.Lines(); lines != nil {
		t.Errorf("ran %v", lines)
	}
	h.clean()
}
