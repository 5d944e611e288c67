// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

// What is told is what is done: each command line is run, in this order, and
// telling it runs nothing that changes anything.
func TestExplained(t *testing.T) {
	tests := []struct {
		name, document string
		without        bool // multipathd
		attach         []string
	}{
		{name: "iscsi", document: chap, attach: []string{
			"iscsiadm -m discovery -t sendtargets -I default -p 10.0.0.5:3260 -o nonpersistent",
			"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p 10.0.0.5:3260 --login",
			"# write user and password into that record",
		}},
		{name: "two paths", document: twoPaths, attach: []string{"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p '[fd00::5]:3260' --login"}},
		{name: "without multipathd", document: oneLUN, without: true, attach: []string{"# multipathd does not run: the device of one path is used"}},
		{name: "fc", document: fc, attach: []string{"echo '0 0 7' > /sys/class/scsi_host/host5/scan", "echo '0 3 7' > /sys/class/scsi_host/host6/scan"}},
		{name: "nvme", document: nvmeV2, attach: []string{"nvme connect -t tcp -n nqn.volume-1 -a 1.1.1.2 -s 4420 -Q 128 -l -1 -q nqn.host"}},
		{name: "rbd", document: image, attach: []string{"# write /run/diskhook/managed/v1/keyring"}},
		{name: "nfs", document: nfsFile},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := world(t)
			must(t, w.Change(func(s *connectortest.Storage) { s.Multipathd = !test.without }))
			c := open(t, host(w), test.document)

			told, err := c.Explain(t.Context())
			must(t, err)
			text := strings.ReplaceAll(strings.Join(told, "\n"), w.Dir, "")
			for _, want := range test.attach {
				if !strings.Contains("\n"+text+"\n", "\n"+want+"\n") {
					t.Errorf("%q is not told: %s", want, text)
				}
			}
			if strings.Contains(text, "canary") {
				t.Errorf("a secret is told: %s", text)
			}
			if left := w.Left(); left != nil {
				t.Errorf("telling it did something: %v", left)
			}
			w.Forget()
			was, err := c.Attach(t.Context())
			must(t, err)
			follows(t, w, told)
			if told, err = c.Explain(t.Context()); err != nil || strings.Contains(strings.Join(told, "\n"), "login") || strings.Contains(strings.Join(told, "\n"), "nvme connect") {
				t.Errorf("attached, it would do %q, %v", told, err)
			}

			told, err = c.ExplainDetach(t.Context(), was, nil)
			must(t, err)
			w.Forget()
			must(t, c.Detach(t.Context(), was, nil))
			if diff := cmp.Diff(commands(w, told), done(w)); diff != "" {
				t.Errorf("detach (-told +done):\n%s", diff)
			}
			told, err = c.ExplainDetach(t.Context(), was, nil)
			must(t, err)
			// A record is deleted again, since a crash may have left one.
			if told = slices.DeleteFunc(told, func(l string) bool { return strings.HasSuffix(l, "--op delete") }); len(told) > 0 {
				t.Errorf("detached, it would do %q", told)
			}
		})
	}
}

// follows fails unless what was told was done, in its order.
func follows(t *testing.T, w *connectortest.World, told []string) {
	t.Helper()
	did := done(w)
	for _, line := range commands(w, told) {
		i := slices.Index(did, line)
		if i < 0 {
			t.Fatalf("%q was told, and not done: %q", line, did)
		}
		if !strings.HasPrefix(line, "iscsiadm") { // logins go side by side
			did = did[i+1:]
		}
	}
}

// commands are the lines of programs and of writes to sysfs, as World has them.
func commands(w *connectortest.World, told []string) []string {
	var all []string
	for _, line := range told {
		line = strings.ReplaceAll(line, w.Dir, "")
		if value, path, ok := strings.Cut(strings.TrimPrefix(line, "echo "), " > "); ok && strings.HasPrefix(line, "echo ") {
			all = append(all, "write "+path+" "+strings.Trim(value, "'"))
			continue
		}
		if word, _, _ := strings.Cut(line, " "); !slices.Contains([]string{"#", "mkdir", "rm", "rmdir"}, word) {
			all = append(all, line)
		}
	}
	return all
}

// done is what World saw, but for questions.
func done(w *connectortest.World) []string {
	return slices.DeleteFunc(w.Lines(), func(line string) bool { return line == "multipathd show status" })
}

func TestExplainDetachOfWhatIsOpen(t *testing.T) {
	for _, test := range []struct{ document, node string }{
		{oneLUN, "/dev/dm-0"}, {fc, "/dev/dm-0"}, {nvmeV1, "/dev/nvme0n10"}, {image, "/dev/rbd0"},
	} {
		w := world(t)
		c := open(t, host(w), test.document)
		was, err := c.Attach(t.Context())
		must(t, err)
		must(t, w.Change(func(s *connectortest.Storage) { s.Open = []string{test.node} }))
		if _, err := c.ExplainDetach(t.Context(), was, nil); err == nil || !strings.Contains(err.Error(), "in use by process 42") {
			t.Errorf("%s is open, and detach would: %v", test.node, err)
		}
	}
}

func TestDevices(t *testing.T) {
	w := world(t)
	h := host(w)
	foreign := open(t, h, fc)
	_, err := foreign.Attach(t.Context())
	must(t, err)
	own := open(t, h, nvmeV1)
	mine, err := own.Attach(t.Context())
	must(t, err)
	for path, value := range map[string]string{
		"sda1/partition": "1", "sda1/size": "100", "loop0/size": "8", "sr0/size": "8", "vda/size": "4096", "vda/vda1/partition": "1",
		"dm-7/dm/uuid": "LVM-x", "dm-7/size": "8", "vdb/size": "0", "nvme0c0n10/size": "8",
	} {
		must(t, w.Write("sys/class/block/"+path, value))
	}
	want := []connector.Device{
		{Path: "/dev/mapper/36001405aa", Kind: "multipath", Identity: connector.Identity{WWN: "36001405aa", Size: 1 << 30}, Paths: []string{"/dev/sda", "/dev/sdb"}},
		{Path: "/dev/nvme0n11", Kind: "nvme", Identity: connector.Identity{WWN: "uuid.other", Size: 1 << 30}},
		{Path: "/dev/vda", Kind: "virtio", Identity: connector.Identity{Size: 2 << 20}, UsedBy: []string{"vda1"}},
	}
	if diff := cmp.Diff(want, devices(w, h, mine)); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	// Of a crash that lost the path, the WWID is enough; the paths of its map
	// are no devices either.
	if diff := cmp.Diff(want[1:], devices(w, h, mine, connector.Attachment{MultipathID: "36001405aa"})); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}

func devices(w *connectortest.World, h *connector.Host, but ...connector.Attachment) []connector.Device {
	all := h.Devices(but)
	for i := range all {
		all[i].Path = strings.TrimPrefix(all[i].Path, w.Dir)
		for j := range all[i].Paths {
			all[i].Paths[j] = strings.TrimPrefix(all[i].Paths[j], w.Dir)
		}
	}
	return all
}
