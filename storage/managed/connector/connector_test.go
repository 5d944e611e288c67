// SPDX-License-Identifier: Apache-2.0

package connector_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

const (
	gib      = 1 << 21 // sectors
	oneLUN   = `{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"iqn.2010-10.org.openstack:volume-1","target_lun":1}}`
	twoPaths = `{"driver_volume_type":"iscsi","data":{"target_portals":["10.0.0.5:3260","[fd00::5]:3260"],"target_iqns":["iqn.2010-10.org.openstack:volume-1","iqn.2010-10.org.openstack:volume-1"],"target_luns":[300,300],"target_portal":"10.0.0.5:3260","addressing_mode":"SAM2"}}`
	chap     = `{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"iqn.2010-10.org.openstack:volume-1","target_lun":"1","auth_method":"CHAP","auth_username":"u","auth_password":"canary #=1"}}`
	fc       = `{"driver_volume_type":"fibre_channel","data":{"target_wwn":["500A09AA00000001","500a09aa00000002"],"target_lun":7}}`
	nvmeV1   = `{"driver_volume_type":"nvmeof","data":{"target_portal":"1.1.1.1","target_port":4420,"nqn":"nqn.volume-1","transport_type":"tcp","ns_id":10}}`
	nvmeV2   = `{"driver_volume_type":"nvmeof","data":{"target_nqn":"nqn.volume-1","vol_uuid":"5C1E0F4C-7E1F-4B3A-9D5B-0A1B2C3D4E5F","portals":[["1.1.1.1","4420","tcp"],["1.1.1.2",4420,"TCP"]],"ns_id":10,"host_nqn":"nqn.host"}}`
	image    = `{"driver_volume_type":"rbd","data":{"name":"volumes/volume-1","hosts":["1.2.3.41","fd00::9"],"ports":["6789",6789],"cluster_name":"ceph","auth_enabled":true,"auth_username":"cinder","secret_type":"ceph","secret_uuid":"x","keyring":"[client.cinder]\n\tkey = AQcanary=="}}`
	localDev = `{"driver_volume_type":"local","data":{"device_path":"/dev/drbd1000"}}`
	nfsFile  = `{"driver_volume_type":"nfs","data":{"export":"nas:/vols","name":"volume-1","options":"-o vers=4.2,soft"},"mount_point_base":"/etc"}`

	uuid = "5c1e0f4c-7e1f-4b3a-9d5b-0a1b2c3d4e5f"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a host with storage for each connection above.
func world(t *testing.T) *connectortest.World {
	t.Helper()
	w, err := connectortest.New(t.TempDir())
	must(t, err)
	must(t, w.Change(func(s *connectortest.Storage) {
		lun := connectortest.LUN{Designator: "naa.6001405aa", Sectors: gib}
		s.ISCSI = map[string]*connectortest.Target{"iqn.2010-10.org.openstack:volume-1": {
			Portals: []string{"10.0.0.5:3260", "[fd00::5]:3260"},
			LUNs:    map[uint64]connectortest.LUN{1: lun, 300 + 0x4000: lun},
		}}
		s.FC = map[string]map[uint64]connectortest.LUN{"500a09aa00000001": {7: lun}, "500a09aa00000002": {7: lun}}
		s.NVMe = map[string]*connectortest.Subsystem{"nqn.volume-1": {
			Portals:    []string{"tcp 1.1.1.1 4420", "tcp 1.1.1.2 4420"},
			Namespaces: map[int]connectortest.Namespace{10: {UUID: uuid, Sectors: gib}, 11: {UUID: "other", Sectors: gib}},
		}}
		s.RBD = map[string]connectortest.Image{"volumes/volume-1": {ID: "abc", Keyring: "[client.cinder]\n\tkey = AQcanary==", Sectors: gib}}
		s.NFS = map[string]map[string]int{"nas:/vols": {"volume-1": 4096, "volume-2": 4096}}
	}))
	must(t, w.AddHBA(5, 0, "500a09aa00000001"))
	must(t, w.AddHBA(6, 3, "500a09aa00000002"))
	return w
}

func open(t *testing.T, h *connector.Host, document string) connector.Connector {
	t.Helper()
	info, err := connector.ParseInfo([]byte(document))
	must(t, err)
	c, err := h.Open("v1", info)
	must(t, err)
	return c
}

func host(w *connectortest.World) *connector.Host {
	return w.Host(slog.New(slog.DiscardHandler))
}

// What each connector runs and writes, what it returns, and that after its
// Detach nothing is left.
func TestConnectorsRun(t *testing.T) {
	record := []string{
		"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p PORTAL --interface default --op new",
		"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p PORTAL --op update -n node.startup -v manual -n node.session.scan -v manual -n node.session.initial_login_retry_max -v 2 -n 'node.conn[0].timeo.login_timeout' -v 15",
		"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p PORTAL --login",
	}
	login := func(portal string) []string {
		var lines []string
		for _, line := range record {
			lines = append(lines, strings.ReplaceAll(line, "PORTAL", portal))
		}
		return lines
	}
	mapping := []string{"multipathd show status", "multipath -a 36001405aa", "udevadm settle --timeout=10"}
	unmapping := []string{"blockdev --flushbufs /dev/dm-0", "multipath -f 36001405aa"}
	for name, tc := range map[string]struct {
		document       string
		set            func(*connectortest.Storage)
		attach, detach []string
		path, json     string
		wwn            string
		size           int64
	}{
		"iscsi without multipathd": {
			document: oneLUN,
			set:      func(s *connectortest.Storage) { s.Multipathd = false },
			attach: append(append([]string{"multipathd show status"}, login("10.0.0.5:3260")...),
				"write /sys/class/scsi_host/host3/scan 0 0 1", "write /sys/bus/scsi/devices/3:0:0:1/rescan 1",
				"multipathd show status", "multipathd show status"),
			detach: []string{"blockdev --flushbufs /dev/sda", "write /sys/bus/scsi/devices/3:0:0:1/delete 1",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p 10.0.0.5:3260 --logout",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 --op delete"},
			path: "/dev/sda", json: `{"path":"/dev/sda","scsi_wwn":"36001405aa","type":"block"}`, wwn: "36001405aa", size: gib * 512,
		},
		"iscsi, its paths discovered": {
			document: oneLUN,
			attach: append(append(append([]string{"multipathd show status",
				"iscsiadm -m discovery -t sendtargets -I default -p 10.0.0.5:3260 -o nonpersistent"}, login("10.0.0.5:3260")...), login("'[fd00::5]:3260'")...),
				append([]string{"write /sys/class/scsi_host/host3/scan 0 0 1", "write /sys/class/scsi_host/host4/scan 0 0 1",
					"write /sys/bus/scsi/devices/3:0:0:1/rescan 1", "write /sys/bus/scsi/devices/4:0:0:1/rescan 1"},
					append(mapping, "multipathd add path sda", "multipathd add path sdb")...)...),
			detach: append(append([]string{}, unmapping...), "write /sys/bus/scsi/devices/3:0:0:1/delete 1", "write /sys/bus/scsi/devices/4:0:0:1/delete 1",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p 10.0.0.5:3260 --logout",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p '[fd00::5]:3260' --logout",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 --op delete"),
			path: "/dev/mapper/36001405aa", json: `{"multipath_id":"36001405aa","path":"/dev/dm-0","scsi_wwn":"36001405aa","type":"block"}`, wwn: "36001405aa", size: gib * 512,
		},
		"iscsi, two paths, a high lun": {
			document: twoPaths,
			attach: append(append(append([]string{"multipathd show status"}, login("10.0.0.5:3260")...), login("'[fd00::5]:3260'")...),
				append([]string{"write /sys/class/scsi_host/host3/scan 0 0 16684", "write /sys/class/scsi_host/host4/scan 0 0 16684",
					"write /sys/bus/scsi/devices/3:0:0:16684/rescan 1", "write /sys/bus/scsi/devices/4:0:0:16684/rescan 1"},
					append(mapping, "multipathd add path sda", "multipathd add path sdb")...)...),
			detach: append(append([]string{}, unmapping...), "write /sys/bus/scsi/devices/3:0:0:16684/delete 1", "write /sys/bus/scsi/devices/4:0:0:16684/delete 1",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p 10.0.0.5:3260 --logout",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p '[fd00::5]:3260' --logout",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p 10.0.0.5:3260 --op delete",
				"iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p '[fd00::5]:3260' --op delete"),
			path: "/dev/mapper/36001405aa", json: `{"multipath_id":"36001405aa","path":"/dev/dm-0","scsi_wwn":"36001405aa","type":"block"}`, wwn: "36001405aa", size: gib * 512,
		},
		"fibre channel": {
			document: fc,
			attach: append([]string{"write /sys/class/scsi_host/host5/scan 0 0 7", "write /sys/class/scsi_host/host6/scan 0 3 7",
				"write /sys/bus/scsi/devices/5:0:0:7/rescan 1", "write /sys/bus/scsi/devices/6:0:3:7/rescan 1"},
				append(mapping, "multipathd add path sda", "multipathd add path sdb")...),
			detach: append(append([]string{}, unmapping...), "write /sys/bus/scsi/devices/5:0:0:7/delete 1", "write /sys/bus/scsi/devices/6:0:3:7/delete 1"),
			path:   "/dev/mapper/36001405aa", json: `{"multipath_id":"36001405aa","path":"/dev/dm-0","scsi_wwn":"36001405aa","type":"block"}`, wwn: "36001405aa", size: gib * 512,
		},
		"nvme v1": {
			document: nvmeV1,
			attach:   []string{"modprobe -- nvme-tcp", "nvme connect -t tcp -n nqn.volume-1 -a 1.1.1.1 -s 4420 -Q 128 -l -1", "write /sys/class/nvme/nvme0/rescan_controller 1"},
			detach:   []string{"blockdev --flushbufs /dev/nvme0n10", "nvme disconnect -d nvme0"},
			path:     "/dev/nvme0n10", json: `{"path":"/dev/nvme0n10","type":"block"}`, wwn: "uuid." + uuid, size: gib * 512,
		},
		"nvme v2": {
			document: nvmeV2,
			attach: []string{"modprobe -- nvme-tcp", "nvme connect -t tcp -n nqn.volume-1 -a 1.1.1.1 -s 4420 -Q 128 -l -1 -q nqn.host", "nvme connect -t tcp -n nqn.volume-1 -a 1.1.1.2 -s 4420 -Q 128 -l -1 -q nqn.host",
				"write /sys/class/nvme/nvme0/rescan_controller 1", "write /sys/class/nvme/nvme1/rescan_controller 1"},
			detach: []string{"blockdev --flushbufs /dev/nvme0n10", "nvme disconnect -d nvme0", "nvme disconnect -d nvme1"},
			path:   "/dev/nvme0n10", json: `{"path":"/dev/nvme0n10","type":"block"}`, wwn: "uuid." + uuid, size: gib * 512,
		},
		"rbd": {
			document: image,
			attach:   []string{"rbd map --cluster ceph --id cinder --conf /run/diskhook/managed/v1/ceph.conf --keyring /run/diskhook/managed/v1/keyring -- volumes/volume-1"},
			detach:   []string{"rbd unmap -- /dev/rbd0"},
			path:     "/dev/rbd/volumes/volume-1", json: `{"conf":"/run/diskhook/managed/v1/ceph.conf","path":"/dev/rbd0","type":"block"}`, wwn: "rbd.f00d.1.abc", size: gib * 512,
		},
		"nfs": {
			document: nfsFile,
			attach:   []string{"mount -t nfs -o nosuid,nodev,noexec,vers=4.2,soft -- nas:/vols /run/diskhook/mounts/EXPORT"},
			detach:   []string{"umount -- /run/diskhook/mounts/EXPORT"},
			path:     "/run/diskhook/mounts/EXPORT/volume-1", json: `{"path":"/run/diskhook/mounts/EXPORT/volume-1","type":"file"}`, size: 4096,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t)
			if tc.set != nil {
				must(t, w.Change(tc.set))
			}
			c := open(t, host(w), tc.document)
			a, err := c.Attach(t.Context())
			must(t, err)
			if diff := cmp.Diff(ordered(tc.attach), ordered(named(w.Lines()))); diff != "" {
				t.Error("attach:", diff)
			}
			if got := named([]string{strings.ReplaceAll(a.Path, w.Dir, ""), strings.ReplaceAll(string(a.JSON), w.Dir, "")}); got[0] != tc.path || got[1] != tc.json {
				t.Errorf("attached %v", got)
			}
			if diff := cmp.Diff(connector.Identity{WWN: tc.wwn, Size: tc.size}, a.Identity); diff != "" {
				t.Error(diff)
			}
			if now, err := host(w).Look(a.Path); err != nil || now.Size != tc.size {
				t.Errorf("look: %+v %v", now, err)
			}
			w.Forget()
			must(t, c.Detach(t.Context(), a, nil))
			if diff := cmp.Diff(tc.detach, named(w.Lines())); diff != "" {
				t.Error("detach:", diff)
			}
			if left := w.Left(); left != nil {
				t.Errorf("left: %v", left)
			}
			// Once more, with nothing there and nothing known.
			must(t, c.Detach(t.Context(), connector.Attachment{}, nil))
		})
	}
}

// named gives the mount point of an export the name that the table has for it.
func named(lines []string) []string {
	var all []string
	for _, line := range lines {
		all = append(all, regexp.MustCompile(`mounts/[0-9a-f]{32}`).ReplaceAllString(line, "mounts/EXPORT"))
	}
	return all
}

// ordered puts what is said to one portal together: logins go side by side.
// What comes before and after keeps its order, and so do the steps of each.
func ordered(lines []string) []string {
	var before, first, second, after []string
	for _, line := range lines {
		switch {
		case strings.Contains(line, "-m node") && strings.Contains(line, "-p 10.0.0.5:3260"):
			first = append(first, line)
		case strings.Contains(line, "-m node"):
			second = append(second, line)
		case len(first)+len(second) == 0:
			before = append(before, line)
		default:
			after = append(after, line)
		}
	}
	return append(append(append(before, first...), second...), after...)
}

// A LUN that the storage gave to another volume, while a lost detach had left
// the old device: the kernel's old answer is not believed, and the old map goes.
func TestLUNOfAnotherVolume(t *testing.T) {
	w := world(t)
	c := open(t, host(w), oneLUN)
	if _, err := c.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, w.Change(func(s *connectortest.Storage) {
		for _, target := range s.ISCSI {
			target.LUNs[1] = connectortest.LUN{Designator: "naa.6001405bb", Sectors: gib}
		}
	}))
	if _, err := c.Attach(t.Context()); !errors.Is(err, connector.ErrMismatch) {
		t.Fatalf("%v", err)
	}
	must(t, c.Detach(t.Context(), connector.Attachment{}, nil))
	a, err := c.Attach(t.Context())
	must(t, err)
	if a.Identity.WWN != "36001405bb" {
		t.Errorf("%+v", a.Identity)
	}
}

// A session, a subsystem and a mount stay as long as another volume needs them.
func TestSharedThingsStay(t *testing.T) {
	for name, tc := range map[string]struct{ first, second, shared string }{
		"iscsi": {oneLUN, strings.ReplaceAll(oneLUN, `"target_lun":1`, `"target_lun":5`), "sys/class/iscsi_session/session1"},
		"nvme":  {nvmeV1, strings.ReplaceAll(nvmeV1, `"ns_id":10`, `"ns_id":11`), "sys/class/nvme/nvme0"},
		"nfs":   {nfsFile, strings.ReplaceAll(nfsFile, "volume-1", "volume-2"), "run/diskhook/mounts/*/volume-2"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t)
			must(t, w.Change(func(s *connectortest.Storage) {
				for _, target := range s.ISCSI {
					target.LUNs[5] = connectortest.LUN{Designator: "naa.6001405bb", Sectors: gib}
				}
			}))
			first, second := open(t, host(w), tc.first), open(t, host(w), tc.second)
			a, err := first.Attach(t.Context())
			must(t, err)
			b, err := second.Attach(t.Context())
			must(t, err)
			must(t, first.Detach(t.Context(), a, []connector.Connector{second}))
			if there, err := filepath.Glob(filepath.Join(w.Dir, tc.shared)); len(there) != 1 || err != nil {
				t.Errorf("%s: %v %v", tc.shared, there, err)
			}
			if _, err := os.Stat(b.Path); err != nil {
				t.Error(err)
			}
			must(t, second.Detach(t.Context(), b, nil))
			if left := w.Left(); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// A path that the kernel lost, and a session that is gone, do not hinder Detach.
func TestDetachOfWhatVanished(t *testing.T) {
	w := world(t)
	c := open(t, host(w), oneLUN)
	a, err := c.Attach(t.Context())
	must(t, err)
	for _, address := range []string{"3:0:0:1", "4:0:0:1"} { // the map is left without paths
		must(t, w.WriteAttr(filepath.Join(w.Dir, "sys/bus/scsi/devices", address, "delete"), "1"))
	}
	w.Forget()
	must(t, c.Detach(t.Context(), a, nil))
	if left := w.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
	if lines := strings.Join(w.Lines(), "\n"); !strings.HasPrefix(lines, "multipathd disablequeueing map 36001405aa\nmultipath -f 36001405aa\n") {
		t.Errorf("ran %s", lines)
	}
}

// A record that a power cut damaged, which iscsiadm can neither use nor delete.
func TestDamagedRecord(t *testing.T) {
	w := world(t)
	damage := func() {
		dir := filepath.Join(w.Dir, "etc/iscsi/nodes/iqn.2010-10.org.openstack:volume-1")
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "10.0.0.5,3260"), []byte("# BEGIN RECORD 2.1.8\nnode.na"), 0o600))
	}
	c := open(t, host(w), oneLUN)
	damage()
	a, err := c.Attach(t.Context())
	must(t, err)
	must(t, c.Detach(t.Context(), a, nil))
	damage()
	must(t, c.Detach(t.Context(), connector.Attachment{}, nil))
	if left := w.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}
