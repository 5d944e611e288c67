// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

type data map[string]any

// definitions are the volumes of the host, by id.
func definitions() map[string]data {
	iscsi := func(lun int, more data) data {
		d := data{"target_portal": portal1, "target_iqn": mainTarget, "target_lun": lun}
		for key, value := range more {
			d[key] = value
		}
		return data{"driver_volume_type": "iscsi", "data": d}
	}
	locked := func(password string) data {
		return data{"driver_volume_type": "iscsi", "data": data{"target_portal": portal6, "target_iqn": lockedTarget, "target_lun": 5,
			"auth_method": "CHAP", "auth_username": chapUser, "auth_password": password}}
	}
	both := func(lun int) data {
		return iscsi(lun, data{"target_portals": []string{portal1, portal2}, "target_iqns": []string{mainTarget, mainTarget}, "target_luns": []int{lun, lun}})
	}
	return map[string]data{
		"one": iscsi(1, nil), "twice": both(2), "far": iscsi(300, nil), "hosted": both(7),
		"locked": locked(chapPassword), "wrong": locked("canary-wrong-6a1c"),
		"space1": {"driver_volume_type": "nvmeof", "data": data{"target_portal": "127.0.0.1", "target_port": 4420, "nqn": subsystem, "transport_type": "tcp", "ns_id": 1}},
		"space2": {"driver_volume_type": "nvmeof", "data": data{"target_nqn": subsystem, "vol_uuid": space2, "ns_id": 2,
			"portals": [][]string{{"127.0.0.1", "4420", "tcp"}, {"127.0.0.2", "4420", "TCP"}}}},
		"strange": {"driver_volume_type": "nvmeof", "data": data{"target_nqn": subsystem, "vol_uuid": space2, "ns_id": 1, "portals": [][]string{{"127.0.0.1", "4420", "tcp"}}}},
		"lv":      {"driver_volume_type": "local", "data": data{"device_path": "/dev/ours/lv"}},
		"file":    {"driver_volume_type": "nfs", "data": data{"export": "127.0.0.1:" + export, "name": "file", "options": "-o vers=4.2"}},
	}
}

// contentOf is the file behind a volume.
func contentOf(id string) string {
	switch id {
	case "twice":
		return "two"
	case "locked", "wrong":
		return "secret"
	}
	return id
}

func volumeLink(id string) string { return filepath.Join("/run/diskhook/volumes", id) }

func (m machine) defineAll() {
	m.Helper()
	for id, connection := range definitions() {
		text, err := json.Marshal(connection)
		m.must(err)
		r := m.try(string(text), "diskhook", "volume", "define", "--connection-info", "-", id)
		m.silent(r)
		if r.code != 0 {
			m.Fatal(r.output)
		}
	}
}

// volume calls a verb, with all that it would ever log.
func (m machine) volume(args ...string) result {
	m.Helper()
	r := m.try("", "diskhook", append([]string{"-v", "-v", "volume"}, args...)...)
	m.silent(r)
	return r
}

// silent wants no secret in what was printed.
func (m machine) silent(r result) {
	m.Helper()
	if strings.Contains(r.output, "canary") {
		m.Errorf("it tells a secret: %s", r.output)
	}
}

// attached attaches a volume, and wants its content where domains look for it.
func (m machine) attached(id string) string {
	m.Helper()
	r := m.volume("attach", id)
	if r.code != 0 {
		m.Fatalf("attach %s: exit code %d: %s", id, r.code, r.output)
	}
	m.Logf("attach of %s took %v", id, r.took)
	link := volumeLink(id)
	m.reads(link, pattern(contentOf(id)), 0)
	to, err := os.Readlink(link)
	m.must(err)
	// A subsystem shows its other namespaces as well, and those are no volumes.
	if others := m.run("diskhook", "volume", "devices", "-o", "name"); !strings.Contains(others, "/dev/vda") || strings.Contains(others, to) || strings.Contains(others, "/dev/sd") {
		m.Errorf("%s is %s, and devices that are no volumes are %s", id, to, others)
	}
	return link
}

// detached detaches a volume that was the only one, and wants nothing to be left.
func (m machine) detached(id string) {
	m.Helper()
	r := m.volume("detach", id)
	if r.code != 0 {
		m.Fatalf("detach %s: exit code %d: %s", id, r.code, r.output)
	}
	m.Logf("detach of %s took %v", id, r.took)
	m.noneLeft()
}

// unattachable wants an attach to be refused, and nothing to be left of it.
func (m machine) unattachable(id string, code int, words ...string) {
	m.Helper()
	m.refused(m.volume("attach", id), code, append(words, "volume "+id)...)
	m.noneLeft()
}

// noneLeft wants neither session nor device nor record of any volume.
func (m machine) noneLeft() {
	m.Helper()
	var left []string
	look := func() bool {
		left = nil
		for _, pattern := range []string{
			"/sys/class/iscsi_session/*", "/sys/bus/scsi/devices/*:*:*:*", "/sys/class/nvme/*", "/sys/class/block/nvme*", "/dev/mapper/*", "/dev/nvme*n*",
			"/etc/iscsi/nodes/*", "/etc/iscsi/send_targets/*", "/etc/iscsi/.diskhook*",
			"/run/diskhook/volumes/*", "/run/diskhook/volumes/.*", "/run/diskhook/managed/*", "/run/diskhook/mounts/*",
		} {
			found, err := filepath.Glob(pattern)
			m.must(err)
			left = append(left, found...)
		}
		left = slices.DeleteFunc(left, func(path string) bool { return path == "/dev/mapper/control" || path == "/dev/mapper/ours-lv" })
		return len(left) == 0
	}
	// Of nodes and links udev has to hear first.
	for until := time.Now().Add(patience); !look() && time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
	}
	if len(left) > 0 {
		m.Errorf("left: %v", left)
	}
	if broken := m.run("find", "/dev/disk", "-xtype", "l"); broken != "" {
		m.Errorf("links that lead nowhere: %s", broken)
	}
	if r := m.volume("reconcile", "-n"); r.code != 0 {
		m.Errorf("reconcile: exit code %d: %s", r.code, r.output)
	}
}

// paths are the SCSI devices, and the states the kernel has them in.
func (m machine) paths() map[string]string {
	m.Helper()
	all := map[string]string{}
	found, err := filepath.Glob("/sys/bus/scsi/devices/*:*:*:*/state")
	m.must(err)
	for _, file := range found {
		state, _ := os.ReadFile(file)
		all[filepath.Base(filepath.Dir(file))] = strings.TrimSpace(string(state))
	}
	return all
}

// hasPaths wants a volume to have so many SCSI devices, under one multipath map.
// It may have come with the first of them.
func (m machine) hasPaths(id string, n int) {
	m.Helper()
	target, err := filepath.EvalSymlinks(volumeLink(id))
	m.must(err)
	m.within(fmt.Sprintf("%d paths of %s", n, target), func() bool {
		slaves, err := filepath.Glob("/sys/class/block/" + filepath.Base(target) + "/slaves/*")
		m.must(err)
		return len(slaves) == n
	})
}

// secrets looks for the passwords in all that outlives a command, or that others
// than root can read.
func secrets(m machine) {
	if log := m.run("sh", "-c", "journalctl -b -q --no-pager | grep -F canary || true"); log != "" {
		m.Errorf("in the journal: %s", log)
	}
	found := m.run("sh", "-c", "grep -rIlF -D skip canary /etc /var /run /tmp /usr/local 2>/dev/null | grep -v '^/usr/local/sbin/target$' || true")
	binary := m.run("sh", "-c", "grep -rlF -D skip canary /var/lib/diskhook || true")
	for _, path := range strings.Fields(found + "\n" + binary) {
		st, err := os.Stat(path)
		m.must(err)
		allowed := slices.ContainsFunc([]string{"/etc/diskhook/volumes.d/", "/var/lib/diskhook/", "/etc/iscsi/nodes/"}, func(dir string) bool { return strings.HasPrefix(path, dir) })
		if !allowed || st.Mode().Perm()&0o077 != 0 {
			m.Errorf("%s: mode %v, and a secret is in it", path, st.Mode())
		}
	}
	if !strings.Contains(found, "/etc/diskhook/volumes.d/locked.json") {
		m.Errorf("it was not looked where the secret has to be: %q", found)
	}
}
