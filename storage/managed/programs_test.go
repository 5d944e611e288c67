// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package managed_test

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/managed/connector/connectortest"
)

// The same with programs that are processes, run as on a host: they are found,
// get their arguments and files, and neither their argv nor what is logged of
// them has a secret, even where the Runner has a log of its own and a program
// repeats what it was given.
func TestProgramsAsProcesses(t *testing.T) {
	h := newHome(t)
	exe, err := os.Executable()
	must(t, err)
	must(t, connectortest.Install(h.Dir+"/programs", exe))
	t.Setenv("DISKHOOK_TOOLS", h.Dir+"/programs")
	t.Setenv("DISKHOOK_ROOT", h.Dir)
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.Service.Host.Run = command.System{Log: logger}
	h.Service.Host.Log, h.Service.Log = logger, logger

	for id, connection := range kinds() {
		h.define(id, connection)
		_, err := h.fulfil(id, domain)
		must(t, err)
		h.path(id)
		must(t, h.Release(t.Context(), id, domain))
		h.clean()
	}
	h.change(func(s *connectortest.Storage) {
		s.ISCSI["iqn.x:t"].Password = "another"
		s.RBD["p/i"] = connectortest.Image{Keyring: "another"}
	})
	var said string
	for _, id := range []string{"iscsi", "rbd"} {
		_, err := h.fulfil(id, domain)
		if err == nil {
			t.Fatalf("%s: attached with a wrong secret", id)
		}
		said += err.Error()
		h.clean()
	}
	argv, err := os.ReadFile(h.Dir + "/argv")
	must(t, err)
	for _, program := range []string{"iscsiadm", "multipath", "multipathd", "nvme", "rbd", "mount", "umount", "blockdev"} {
		if !strings.Contains("\n"+string(argv), "\n"+program+" ") {
			t.Errorf("%s did not run", program)
		}
	}
	said += string(argv) + log.String()
	if !strings.Contains(said, "***") || strings.Contains(said, "canary") {
		t.Errorf("a secret is told, or the programs repeated none: %s", said)
	}
}
