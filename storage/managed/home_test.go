// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
)

const (
	domain  = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	another = "7a0b1c2d-3e4f-4a5b-8c6d-7e8f90a1b2c3"

	iscsi = `{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"iqn.x:t","target_lun":1,"auth_method":"CHAP","auth_username":"u","auth_password":"canary"}}`
	fc    = `{"driver_volume_type":"fibre_channel","data":{"target_wwn":["500a09aa00000001"],"target_lun":7}}`
	nvme  = `{"driver_volume_type":"nvmeof","data":{"target_portal":"1.1.1.1","target_port":4420,"nqn":"nqn.s","transport_type":"tcp","ns_id":1}}`
	rbd   = `{"driver_volume_type":"rbd","data":{"name":"p/i","hosts":["1.2.3.4"],"ports":["6789"],"auth_username":"c","keyring":"[client.c]\n\tkey = canary"}}`
	nfs   = `{"driver_volume_type":"nfs","data":{"export":"nas:/x","name":"v"}}`
)

// kinds are a volume of each connector that takes something from the host.
func kinds() map[string]string {
	return map[string]string{"iscsi": iscsi, "fibre_channel": fc, "nvmeof": nvme, "rbd": rbd, "nfs": nfs}
}

// home is a host with storage, and diskhook on it.
type home struct {
	*connectortest.World
	*managed.Service
	t testing.TB
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHome(t testing.TB) *home {
	t.Helper()
	w, err := connectortest.New(t.TempDir())
	must(t, err)
	h := &home{World: w, Service: service(w), t: t}
	h.change(func(s *connectortest.Storage) {
		lun := connectortest.LUN{Designator: "naa.6001405aa", Sectors: 2048}
		s.ISCSI = map[string]*connectortest.Target{"iqn.x:t": {
			Portals: []string{"10.0.0.5:3260"}, Username: "u", Password: "canary",
			LUNs: map[uint64]connectortest.LUN{1: lun, 2: {Designator: "naa.6001405bb", Sectors: 2048}},
		}}
		s.FC = map[string]map[uint64]connectortest.LUN{"500a09aa00000001": {7: lun}}
		s.NVMe = map[string]*connectortest.Subsystem{"nqn.s": {Portals: []string{"tcp 1.1.1.1 4420"}, Namespaces: map[int]connectortest.Namespace{1: {UUID: "u-1", Sectors: 2048}}}}
		s.RBD = map[string]connectortest.Image{"p/i": {ID: "1", Keyring: "[client.c]\n\tkey = canary", Sectors: 2048}}
		s.NFS = map[string]map[string]int{"nas:/x": {"v": 4096}}
	})
	must(t, w.AddHBA(5, 0, "500a09aa00000001"))
	return h
}

func service(w *connectortest.World) *managed.Service {
	return &managed.Service{
		Layout: host.Layout{Root: w.Dir}, Database: filepath.Join(w.Dir, "var/lib/diskhook/managed.db"),
		Host: w.Host(slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler), Boot: w.Boot,
	}
}

func (h *home) change(change func(*connectortest.Storage)) {
	h.t.Helper()
	must(h.t, h.Change(change))
}

func (h *home) define(id, connection string) {
	h.t.Helper()
	must(h.t, h.Define(h.t.Context(), id, []byte(connection)))
}

// attach asks as VDSM does, with the connection in the request.
func (h *home) attach(id, connection string) (managed.Attached, error) {
	return h.Attach(h.t.Context(), managed.Request{ID: id, Connection: json.RawMessage(connection)})
}

// fulfil asks for a defined volume on behalf of a domain.
func (h *home) fulfil(id, domain string) (managed.Attached, error) {
	return h.Attach(h.t.Context(), managed.Request{ID: id, Domain: domain})
}

func (h *home) info(ids ...string) string {
	h.t.Helper()
	all, err := h.VolumesInfo(h.t.Context(), ids...)
	must(h.t, err)
	b, err := json.Marshal(all)
	must(h.t, err)
	return strings.ReplaceAll(string(b), h.Dir, "")
}

// clean fails when anything of a volume is left on the host, but for the
// definition and what locks are made of.
func (h *home) clean() {
	h.t.Helper()
	if left := h.Left(); left != nil {
		h.t.Errorf("left on the host: %v", left)
	}
	if info := h.info(); info != "[]" {
		h.t.Errorf("left in the database: %s", info)
	}
	if findings, err := h.Reconcile(h.t.Context(), false); err != nil || findings != nil {
		h.t.Errorf("reconcile: %v %v", findings, err)
	}
}

// path is where the volume is, through its link.
func (h *home) path(id string) string {
	h.t.Helper()
	to, err := os.Readlink(h.Link(id))
	must(h.t, err)
	if _, err := os.Stat(to); err != nil {
		h.t.Error(err)
	}
	return strings.TrimPrefix(to, h.Dir)
}

// The test binary also is a process that can be killed: a verb, the world's
// directory, a volume, and for attach a domain.
// It also is each program that connectors run.
func TestMain(m *testing.M) {
	if connectortest.IsProgram(os.Args[0]) {
		os.Exit(connectortest.Main(os.Args))
	}
	if len(os.Args) > 4 && os.Args[1] == "managed" {
		w, err := connectortest.New(os.Args[3])
		if err == nil {
			err = verb(service(w), os.Args[2], os.Args[4])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, failure.Line(err))
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func verb(s *managed.Service, verb, id string) (err error) {
	switch ctx := context.Background(); verb {
	case "attach":
		_, err = s.Attach(ctx, managed.Request{ID: id, Domain: domain})
	case "detach":
		err = s.Detach(ctx, id, domain)
	case "release":
		err = s.Release(ctx, id, domain)
	case "reconcile":
		_, err = s.Reconcile(ctx, true)
	}
	return err
}
