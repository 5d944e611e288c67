// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
	"diskhook/storage/managed/database"
)

// which is the volume that a node of the host is, or "".
func (h *home) which(node string) string {
	h.t.Helper()
	id, err := h.Which(h.t.Context(), h.Dir+"/dev/"+node)
	if err != nil && !errors.Is(err, failure.NotFound) {
		h.t.Errorf("%s: %v", node, err)
	}
	return id
}

// Every device of a volume is known as its: paths, map, partitions; and nothing
// else is.
func TestWhich(t *testing.T) {
	for name, c := range map[string]struct {
		connection string
		nodes      []string
	}{
		"iscsi":         {iscsi, []string{"sda", "dm-0", "mapper/36001405aa", "dm-1"}},
		"fibre_channel": {fc, []string{"sda", "dm-0"}},
		"nvmeof":        {nvme, []string{"nvme0n1"}},
		"rbd":           {rbd, []string{"rbd0", "rbd/p/i"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.define("v1", c.connection)
			_, err := h.fulfil("v1", domain)
			must(t, err)
			if name == "iscsi" {
				must(t, h.Partition("36001405aa"))
			}
			must(t, h.Write("sys/class/block/sdz/size", "8"))
			must(t, h.Write("dev/sdz", ""))
			for _, node := range c.nodes {
				if got := h.which(node); got != "v1" {
					t.Errorf("%s: %q", node, got)
				}
			}
			if got := h.which("sdz"); got != "" {
				t.Errorf("another disk is %q", got)
			}
			// The row goes, and the definition tells; then nothing does.
			h.row(func(tx *database.Tx) error { return tx.Forget("v1") })
			if got := h.which(c.nodes[0]); got != "v1" {
				t.Errorf("defined: %q", got)
			}
			must(t, os.RemoveAll(h.Dir+"/etc/diskhook/volumes.d"))
			if got := h.which(c.nodes[0]); got != "" {
				t.Errorf("undefined: %q", got)
			}
		})
	}
	h := newHome(t)
	if _, err := h.Which(t.Context(), h.Dir+"/etc/machine-id"); !errors.Is(err, failure.Precondition) {
		t.Errorf("a file: %v", err)
	}
	if _, err := h.Which(t.Context(), h.Dir+"/dev/none"); !errors.Is(err, failure.NotFound) {
		t.Errorf("nothing: %v", err)
	}
}

// during is a runner that has something looked at while a program runs.
type during struct {
	command.Runner
	program string
	look    func()
}

func (d during) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	if strings.HasPrefix(strings.Join(cmd.Argv(), " "), d.program) {
		d.look()
	}
	return d.Runner.Run(ctx, cmd)
}

// udev asks while the volume is being attached: its row has no path yet. No
// lock keeps the answer back.
func TestWhichWhileItIsAttached(t *testing.T) {
	h, asked := newHome(t), false
	h.Service.Host.Run = during{h.World, "multipathd add path", func() {
		asked = true
		if got := h.which("sda"); got != "v1" {
			t.Errorf("%q", got)
		}
	}}
	_, err := h.attach("v1", iscsi)
	must(t, err)
	if !asked {
		t.Error("not asked")
	}
}

// A volume that its storage has enlarged: the paths, the map, what is known of it.
func TestRescan(t *testing.T) {
	grow := func(h *home, sectors int64) {
		h.change(func(s *connectortest.Storage) {
			lun := connectortest.LUN{Designator: "naa.6001405aa", Sectors: sectors}
			s.ISCSI["iqn.x:t"].LUNs[1], s.FC["500a09aa00000001"][7] = lun, lun
			s.NVMe["nqn.s"].Namespaces[1] = connectortest.Namespace{UUID: "u-1", Sectors: sectors}
			s.NFS["nas:/x"]["v"] = int(sectors * 512)
		})
	}
	for name, c := range map[string]struct{ connection, ran string }{
		"iscsi":         {iscsi, "multipathd resize map 36001405aa"},
		"fibre_channel": {fc, "multipathd resize map 36001405aa"},
		"nvmeof":        {nvme, "write /sys/class/nvme/nvme0/rescan_controller 1"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.define("v1", c.connection)
			if _, _, err := h.Rescan(t.Context(), "v1"); !errors.Is(err, failure.NotFound) || !strings.Contains(failure.HintOf(err), "volume attach v1") {
				t.Errorf("not attached: %v", err)
			}
			_, err := h.fulfil("v1", domain)
			must(t, err)
			rescan := func(before, after int64) {
				t.Helper()
				b, a, err := h.Rescan(t.Context(), "v1")
				if err != nil || b != before*512 || a != after*512 {
					t.Errorf("%d %d %v", b, a, err)
				}
			}
			rescan(2048, 2048)
			grow(h, 4096)
			h.Forget()
			rescan(2048, 4096)
			if lines := strings.Join(h.Lines(), "\n"); !strings.Contains(lines, c.ran) {
				t.Errorf("%s\nlacks %s", lines, c.ran)
			}
			rescan(4096, 4096)
			grow(h, 1024)
			if _, _, err := h.Rescan(t.Context(), "v1"); !errors.Is(err, connector.ErrMismatch) || !strings.Contains(failure.HintOf(err), "volume detach v1") {
				t.Errorf("smaller: %v", err)
			}
			// What it has grown to it must have ever after.
			must(t, h.Release(t.Context(), "v1", domain))
			grow(h, 2048)
			if _, err := h.fulfil("v1", domain); !errors.Is(err, connector.ErrMismatch) {
				t.Errorf("as it was before: %v", err)
			}
		})
	}
	h := newHome(t)
	_, err := h.attach("v1", iscsi)
	must(t, err)
	h.change(func(s *connectortest.Storage) {
		s.ISCSI["iqn.x:t"].LUNs[1] = connectortest.LUN{Designator: "naa.6001405cc", Sectors: 4096}
	})
	if _, _, err := h.Rescan(t.Context(), "v1"); !errors.Is(err, connector.ErrMismatch) {
		t.Errorf("another: %v", err)
	}
}
