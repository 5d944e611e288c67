// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"errors"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

// What real programs and a real kernel do, and the others did not.

// A guest partitions its disk, and the host makes devices of that, which hold
// the map. They are in nobody's way unless somebody has one open.
func TestDetachOfPartitions(t *testing.T) {
	w := world(t)
	c := open(t, host(w), oneLUN)
	was, err := c.Attach(t.Context())
	must(t, err)
	must(t, w.Partition("36001405aa"))
	for what, node := range map[string]string{"a partition": "/dev/dm-1", "all of it": "/dev/dm-0"} {
		must(t, w.Change(func(s *connectortest.Storage) { s.Open = []string{node} }))
		w.Forget()
		if err := c.Detach(t.Context(), was, nil); !errors.Is(err, connector.ErrInUse) {
			t.Errorf("with %s open: %v", what, err)
		}
		if _, err := c.ExplainDetach(t.Context(), was, nil); !errors.Is(err, connector.ErrInUse) {
			t.Errorf("with %s open, explained: %v", what, err)
		}
		if lines := strings.Join(w.Lines(), "\n"); strings.Contains(lines, "multipath") {
			t.Errorf("with %s open: ran %s", what, lines)
		}
	}
	must(t, w.Change(func(s *connectortest.Storage) { s.Open = nil }))
	must(t, c.Detach(t.Context(), was, nil))
	if left := w.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// multipathd refuses a path that udev has just told it of, and makes its map.
func TestMultipathdSaysNo(t *testing.T) {
	w := world(t)
	must(t, w.Change(func(s *connectortest.Storage) { s.SaysNo = true }))
	c := open(t, host(w), oneLUN)
	was, err := c.Attach(t.Context())
	must(t, err)
	if was.Path != w.Dir+"/dev/mapper/36001405aa" {
		t.Errorf("it is %s", was.Path)
	}
	must(t, c.Detach(t.Context(), was, nil))

	must(t, w.Change(func(s *connectortest.Storage) { s.Blacklist = []string{"36001405aa"} }))
	if _, err := c.Attach(t.Context()); !errors.Is(err, connector.ErrNoMultipath) || !strings.Contains(err.Error(), "multipathd add") {
		t.Errorf("no map: %v", err)
	}
}

// multipathd makes a map while a path is looked at: the map goes with it.
func TestMapThatComesDuringDetach(t *testing.T) {
	w := world(t)
	must(t, w.Change(func(s *connectortest.Storage) { s.Multipathd = false }))
	h := host(w)
	c := open(t, h, oneLUN)
	was, err := c.Attach(t.Context())
	must(t, err)
	look, made := h.InUse, false
	late := *h
	late.InUse = func(path string) (string, bool, error) {
		if !made {
			made = true
			must(t, w.Change(func(s *connectortest.Storage) { s.Multipathd = true }))
			_, err := w.Run(t.Context(), command.Cmd{Name: "multipathd", Args: []string{"add", "path", "sda"}})
			must(t, err)
		}
		return look(path)
	}
	must(t, open(t, &late, oneLUN).Detach(t.Context(), was, nil))
	if left := w.Left(); !made || len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// udev looks at a device when its last user closes it; that is no use of it.
func TestDetachWhileUdevLooks(t *testing.T) {
	w := world(t)
	c := open(t, host(w), oneLUN)
	was, err := c.Attach(t.Context())
	must(t, err)
	must(t, w.Change(func(s *connectortest.Storage) { s.Probed = []string{"/dev/dm-0"} }))
	must(t, c.Detach(t.Context(), was, nil))
	if left := w.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The same between the look and the removal of the map.
func TestDetachWhileUdevBegins(t *testing.T) {
	w := world(t)
	h := host(w)
	look := h.InUse
	h.InUse = func(path string) (string, bool, error) {
		holder, used, err := look(path)
		must(t, w.Change(func(s *connectortest.Storage) { s.Probed = []string{"/dev/dm-0"} }))
		return holder, used, err
	}
	c := open(t, h, oneLUN)
	was, err := c.Attach(t.Context())
	must(t, err)
	must(t, c.Detach(t.Context(), was, nil))
	if left := w.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Without its module nvme-cli has nothing to write to; a kernel that has none is told of.
func TestNVMeWithoutModule(t *testing.T) {
	w := world(t)
	_, err := open(t, host(w), strings.Replace(nvmeV1, `"tcp"`, `"rdma"`, 1)).Attach(t.Context())
	if !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "nvme-rdma") {
		t.Errorf("%v (%s)", err, failure.HintOf(err))
	}
}

// Monitors may have names. The kernel gets their addresses.
func TestMonitorsWithNames(t *testing.T) {
	w := world(t)
	must(t, w.Change(func(s *connectortest.Storage) {
		s.RBD = map[string]connectortest.Image{"p/i": {ID: "1", Sectors: 8}}
	}))
	named := `{"driver_volume_type":"rbd","data":{"name":"p/i","hosts":["mon.example"],"ports":["6789"]}}`
	c := open(t, host(w), named)
	was, err := c.Attach(t.Context())
	must(t, err)
	_, err = c.Attach(t.Context()) // finds it
	must(t, err)
	// The image of that name in another cluster is another image.
	if err := open(t, host(w), strings.Replace(named, "mon.example", "10.0.0.9", 1)).Detach(t.Context(), was, nil); err != nil || len(w.Left()) == 0 {
		t.Errorf("%v, left: %v", err, w.Left())
	}
	unknown := open(t, host(w), strings.Replace(named, "mon.example", "nosuch", 1))
	if err := unknown.Detach(t.Context(), was, nil); !errors.Is(err, failure.Temporary) || !strings.Contains(err.Error(), "monitor nosuch") {
		t.Errorf("%v", err)
	}
	must(t, c.Detach(t.Context(), was, nil))
	must(t, unknown.Detach(t.Context(), was, nil)) // nothing is mapped, and nobody asked
	if left := w.Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
