// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

const local = `{"driver_volume_type":"local","data":{"device_path":"/dev/drbd1"}}`

// localDevice makes the device of local.
func (h *home) localDevice() {
	h.t.Helper()
	must(h.t, os.MkdirAll(h.Dir+"/sys/class/block/drbd1", 0o755))
	must(h.t, os.WriteFile(h.Dir+"/sys/class/block/drbd1/size", []byte("8\n"), 0o600))
	must(h.t, os.WriteFile(h.Dir+"/dev/drbd1", nil, 0o600))
}

func (h *home) noLocalDevice() {
	h.t.Helper()
	must(h.t, errors.Join(os.RemoveAll(h.Dir+"/sys/class/block/drbd1"), os.Remove(h.Dir+"/dev/drbd1")))
}

// owner is the domain that has the volume.
func (h *home) owner(id string) string {
	h.t.Helper()
	all, err := h.List(h.t.Context())
	must(h.t, err)
	for _, v := range all {
		if v.ID == id {
			return v.Domain
		}
	}
	return ""
}

func (h *home) open(nodes ...string) {
	h.t.Helper()
	h.change(func(s *connectortest.Storage) { s.Open = nodes })
}

// node is what somebody opens who opens the volume.
func (h *home) node(id string) string {
	h.t.Helper()
	path, err := filepath.EvalSymlinks(h.Link(id))
	must(h.t, err)
	return strings.TrimPrefix(path, h.Dir)
}

// Whoever has a volume open has it: no domain gets it, and it stays.
func TestNobodyGetsWhatIsOpen(t *testing.T) {
	all := kinds()
	all["local"] = local
	for name, connection := range all {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.localDevice()
			if name == "nfs" { // another volume keeps the export mounted
				h.change(func(s *connectortest.Storage) { s.NFS["nas:/x"]["w"] = 4096 })
				_, err := h.attach("w", strings.ReplaceAll(nfs, `"name":"v"`, `"name":"w"`))
				must(t, err)
			}
			h.define("v1", connection)
			_, err := h.fulfil("v1", "")
			must(t, err)
			node := h.node("v1")
			h.open(node)
			refused := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, connector.ErrInUse) || !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "process 42") {
					t.Errorf("%s: %v", what, err)
				}
			}
			_, err = h.fulfil("v1", domain)
			refused("attach", err)
			refused("attach -n", second(h.ExplainAttach(t.Context(), managed.Request{ID: "v1", Domain: domain})))
			refused("detach", h.Detach(t.Context(), "v1", ""))
			refused("detach -n", second(h.ExplainDetach(t.Context(), "v1", "")))
			if h.owner("v1") != "" || h.node("v1") != node {
				t.Errorf("%s has %s", h.owner("v1"), h.node("v1"))
			}
			h.open()
			_, err = h.fulfil("v1", domain)
			must(t, err)
			h.open(node)
			_, err = h.fulfil("v1", domain) // its own guest
			must(t, err)
			h.open()
			must(t, h.Detach(t.Context(), "v1", domain))
		})
	}
}

// What this host uses by itself is not attached for anybody.
func TestDeviceOfTheHost(t *testing.T) {
	h := newHome(t)
	h.localDevice()
	h.define("v1", local)
	h.open("/dev/drbd1")
	_, err := h.fulfil("v1", domain)
	if !errors.Is(err, connector.ErrInUse) || failure.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	if info := h.info(); info != "[]" {
		t.Error(info)
	}
	// A running guest may be the one: a row that was lost comes back.
	must(t, h.Relink(t.Context(), managed.Request{ID: "v1", Domain: domain}))
	if owner := h.owner("v1"); owner != domain {
		t.Errorf("%q has it", owner)
	}
}

// One device by two names is one volume.
func TestOneDeviceByTwoNames(t *testing.T) {
	for name, c := range map[string][2]string{
		"a link":    {local, strings.ReplaceAll(local, "drbd1", "link")},
		"nvme":      {nvme, `{"driver_volume_type":"nvmeof","data":{"target_nqn":"nqn.s","vol_uuid":"u-1","portals":[["1.1.1.1","4420","tcp"]]}}`},
		"two paths": {iscsi, fc},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.localDevice()
			must(t, os.Symlink("drbd1", h.Dir+"/dev/link"))
			h.change(func(s *connectortest.Storage) { s.Multipathd = false })
			h.define("v1", c[0])
			h.define("v2", c[1])
			_, err := h.fulfil("v1", domain)
			must(t, err)
			node := h.node("v1")
			_, err = h.fulfil("v2", another)
			if !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "is volume v1 on this host") || failure.HintOf(err) != "run `diskhook volume detach v1` if it is not needed any more" {
				t.Errorf("%v; %s", err, failure.HintOf(err))
			}
			if h.node("v1") != node || h.info("v2") != "[]" {
				t.Errorf("%s", h.info())
			}
			must(t, h.Detach(t.Context(), "v1", domain))
			_, err = h.fulfil("v2", another)
			must(t, err)
			must(t, h.Detach(t.Context(), "v2", another))
			h.noLocalDevice()
			h.clean()
		})
	}
}

// The row of an earlier boot names what is another volume by now.
func TestRowWhoseDeviceIsAnotherVolumes(t *testing.T) {
	for _, multipathd := range []bool{true, false} {
		h := newHome(t)
		h.change(func(s *connectortest.Storage) { s.Multipathd = multipathd })
		_, err := h.attach("old", iscsi)
		must(t, err)
		must(t, h.Reboot())
		h.define("v1", iscsi)
		_, err = h.fulfil("v1", domain)
		must(t, err)
		node := h.node("v1")
		if told := h.told(h.ExplainDetach(t.Context(), "old", "")); strings.Contains(told, "logout") {
			t.Error(told)
		}
		if _, err := h.Reconcile(t.Context(), true); err != nil || h.node("v1") != node || h.info("old") != "[]" {
			t.Errorf("multipathd %t: %v %s", multipathd, err, h.info())
		}
		must(t, h.Release(t.Context(), "v1", domain))
		h.clean()
	}
}

// A running domain whose row was lost gets nothing taken away where its volume
// cannot be attached.
func TestRelinkThatFailsTakesNothing(t *testing.T) {
	h := newHome(t)
	h.define("v1", nvme)
	_, err := h.fulfil("v1", domain)
	must(t, err)
	must(t, os.Remove(h.Database))
	h.change(func(s *connectortest.Storage) { s.NVMe["nqn.s"].Namespaces = nil })
	must(t, os.Remove(h.Dir+"/dev/nvme0n1"))
	if err := h.Relink(t.Context(), managed.Request{ID: "v1", Domain: domain}); err == nil {
		t.Error("attached")
	}
	if owner := h.owner("v1"); owner != domain {
		t.Errorf("%q has it", owner)
	}
	if _, err := os.Lstat(h.Link("v1")); err != nil {
		t.Error(err)
	}
	must(t, h.Release(t.Context(), "v1", domain))
	h.clean()
}

// A device that became another one under its name is let go before it is
// compared with what the volume was.
func TestWayOutOfAnotherDevice(t *testing.T) {
	h := newHome(t)
	h.define("v1", nvme)
	_, err := h.fulfil("v1", "")
	must(t, err)
	must(t, os.WriteFile(h.Dir+"/sys/class/block/nvme0n1/wwid", []byte("uuid.other"), 0o600))
	_, err = h.fulfil("v1", domain)
	if !errors.Is(err, connector.ErrMismatch) || failure.HintOf(err) != "run `diskhook volume detach v1`, then this again" {
		t.Errorf("%v; %s", err, failure.HintOf(err))
	}
	must(t, h.Detach(t.Context(), "v1", ""))
	_, err = h.fulfil("v1", domain)
	must(t, err)
}
