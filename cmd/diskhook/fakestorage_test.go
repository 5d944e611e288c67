// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"diskhook/storage/command"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
)

const fakeStorageVariable = "DISKHOOK_FAKE_STORAGE"

// fakeStorage has volumes come from the world of a script instead of the
// kernel. Programs are processes, whose command lines are in the file argv.
func fakeStorage(s *managed.Service) error {
	if os.Getenv(fakeStorageVariable) == "" {
		return nil
	}
	w, err := connectortest.New(os.Getenv("DISKHOOK_ROOT"))
	if err != nil {
		return err
	}
	adapters := s.Host.Adapters
	s.Host, s.Boot = w.Host(s.Log), w.Boot
	s.Host.Run, s.Host.Find, s.Host.Adapters = command.System{}, command.Find, adapters
	return nil
}

// storage: a host with storage for a volume of each type.
// storage open NODE…: somebody has these open.
// storage other: the LUN of iSCSI is another volume.
// storage grown: it has been enlarged.
// storage single: no multipathd runs.
// storage reboot: all that memory held is lost.
func storage(ts *testscript.TestScript, _ bool, args []string) {
	w, err := connectortest.New(ts.Getenv("DISKHOOK_ROOT"))
	ts.Check(err)
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case "":
		ts.Setenv(fakeStorageVariable, "1")
		ts.Check(connectortest.Install(ts.Getenv("DISKHOOK_TOOLS"), filepath.Join(filepath.Dir(ts.Getenv("DISKHOOK_DOMAIN_PROGRAM")), "diskhook")))
		ts.Check(w.AddHBA(5, 0, "500a09aa00000001"))
		ts.Check(w.Change(furnish))
	case "open":
		ts.Check(w.Change(func(s *connectortest.Storage) { s.Open = args[1:] }))
	case "other":
		ts.Check(w.Change(func(s *connectortest.Storage) {
			s.ISCSI["iqn.x:t"].LUNs[1] = connectortest.LUN{Designator: "naa.6001405ff", Sectors: 2048}
		}))
	case "grown":
		ts.Check(w.Change(func(s *connectortest.Storage) {
			s.ISCSI["iqn.x:t"].LUNs[1] = connectortest.LUN{Designator: "naa.6001405aa", Sectors: 4096}
		}))
	case "single":
		ts.Check(w.Change(func(s *connectortest.Storage) { s.Multipathd = false }))
	case "reboot":
		ts.Check(w.Reboot())
		ts.Check(w.AddHBA(5, 0, "500a09aa00000001"))
	default:
		ts.Fatalf("storage %s: no such verb", verb)
	}
}

func furnish(s *connectortest.Storage) {
	s.ISCSI = map[string]*connectortest.Target{"iqn.x:t": {
		Portals: []string{"10.0.0.5:3260"}, Username: "u", Password: "canary-chap",
		LUNs: map[uint64]connectortest.LUN{1: {Designator: "naa.6001405aa", Sectors: 2048}, 2: {Designator: "naa.6001405bb", Sectors: 2048}},
	}}
	s.FC = map[string]map[uint64]connectortest.LUN{"500a09aa00000001": {7: {Designator: "naa.6001405cc", Sectors: 2048}}}
	s.NVMe = map[string]*connectortest.Subsystem{"nqn.s": {Portals: []string{"tcp 1.1.1.1 4420"}, Namespaces: map[int]connectortest.Namespace{1: {UUID: "u-1", Sectors: 2048}}}}
	s.RBD = map[string]connectortest.Image{"p/i": {ID: "1", Keyring: "[client.c]\n\tkey = canary-ring", Sectors: 2048}}
	s.NFS = map[string]map[string]int{"nas:/x": {"v": 4096}}
}
