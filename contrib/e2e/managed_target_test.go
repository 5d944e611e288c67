// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// The storage: the kernel's own targets, in the same machine, set up through
// configfs (Documentation/target and Documentation/nvme of the kernel).
const (
	configfs = "/sys/kernel/config"
	luns     = "/srv/luns"
	lunSize  = 32 << 20

	// The target main is at two portals; locked is at another, and asks for a name
	// and a password.
	mainTarget, lockedTarget = "iqn.2026-11.test:main", "iqn.2026-11.test:locked"
	portal1, portal2         = "127.0.0.1:3260", "127.0.0.2:3260"
	portal6                  = "[::1]:3260"
	chapUser, chapPassword   = "diskhook", "canary-chap-2d5f0b17"

	subsystem = "nqn.2026-11.test:main"
	// spaces are namespaces 1, 2 of it.
	space1, space2 = "11111111-aaaa-4bbb-8ccc-000000000001", "22222222-aaaa-4bbb-8ccc-000000000002"
)

// backing are the files behind the LUNs by name, with what their storage
// answers to who asks which volume it is: hexadecimal digits that become its WWN.
var backing = map[string]string{
	"one": "0000000000000000000000001", "two": "0000000000000000000000002", "far": "0000000000000000000000300",
	"secret": "0000000000000000000000005", "other": "0000000000000000000000009", "hosted": "0000000000000000000000007",
}

// wwnOf is the WWN as multipath writes it: NAA 6, LIO's company id, the digits.
func wwnOf(name string) string { return "36001405" + backing[name] }

// lunsOf are the LUNs of each target.
var lunsOf = map[string]map[int]string{
	mainTarget:   {1: "one", 2: "two", 300: "far", 7: "hosted"},
	lockedTarget: {5: "secret"},
}

// targetScript sets the targets up, once per boot. The unit for it stands for a
// storage that can be reached some time after the network's devices are there.
const targetScript = `#!/bin/bash
set -euo pipefail
sleep "${1:-0}"
modprobe -a configfs target_core_mod target_core_file iscsi_target_mod nvmet nvmet-tcp
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
cd /sys/kernel/config/target
volume() { # NAME SERIAL
	mkdir -p "core/fileio_0/$1"
	echo "fd_dev_name=/srv/luns/$1,fd_dev_size=$(stat -c %s "/srv/luns/$1")" >"core/fileio_0/$1/control"
	echo "$2" >"core/fileio_0/$1/wwn/vpd_unit_serial"
	echo 1 >"core/fileio_0/$1/enable"
}
target() { # IQN AUTHENTICATION PORTAL…
	mkdir -p "iscsi/$1/tpgt_1"
	local tpg=iscsi/$1/tpgt_1 portal
	echo "$2" >"$tpg/attrib/authentication"
	echo 1 >"$tpg/attrib/generate_node_acls"
	echo 1 >"$tpg/attrib/cache_dynamic_acls"
	echo 0 >"$tpg/attrib/demo_mode_write_protect"
	for portal in "${@:3}"; do mkdir "$tpg/np/$portal"; done
}
lun() { # IQN LUN NAME
	mkdir "iscsi/$1/tpgt_1/lun/lun_$2"
	ln -s "/sys/kernel/config/target/core/fileio_0/$3" "iscsi/$1/tpgt_1/lun/lun_$2/$3"
}
namespace() { # NUMBER UUID
	mkdir "$subsystem/namespaces/$1"
	echo -n "/srv/luns/space$1" >"$subsystem/namespaces/$1/device_path"
	echo "$2" >"$subsystem/namespaces/$1/device_uuid"
	echo 1 >"$subsystem/namespaces/$1/enable"
}
port() { # NUMBER ADDRESS
	local port=/sys/kernel/config/nvmet/ports/$1
	mkdir "$port"
	echo ipv4 >"$port/addr_adrfam"
	echo tcp >"$port/addr_trtype"
	echo "$2" >"$port/addr_traddr"
	echo 4420 >"$port/addr_trsvcid"
	ln -s "$subsystem" "$port/subsystems/"
}
`

// targets writes the script and the unit, and the files of the volumes. Each
// volume has a pattern of its own at its start.
func (m machine) targets() {
	m.Helper()
	m.must(os.MkdirAll(luns, 0o700))
	script := targetScript
	for name, serial := range backing {
		script += fmt.Sprintf("volume %s %s\n", name, serial)
	}
	script += fmt.Sprintf("target %s 0 %s %s\ntarget %s 1 %s\n", mainTarget, portal1, portal2, lockedTarget, portal6)
	script += fmt.Sprintf("echo -n %[1]s >iscsi/%[3]s/tpgt_1/auth/userid\necho -n %[2]s >iscsi/%[3]s/tpgt_1/auth/password\n", chapUser, chapPassword, lockedTarget)
	for iqn, all := range lunsOf {
		for number, name := range all {
			script += fmt.Sprintf("lun %s %d %s\n", iqn, number, name)
		}
		script += fmt.Sprintf("echo 1 >iscsi/%s/tpgt_1/enable\n", iqn)
	}
	script += fmt.Sprintf("subsystem=%s/nvmet/subsystems/%s\nmkdir $subsystem\necho 1 >$subsystem/attr_allow_any_host\n", configfs, subsystem)
	script += fmt.Sprintf("namespace 1 %s\nnamespace 2 %s\nport 1 127.0.0.1\nport 2 127.0.0.2\n", space1, space2)
	m.write("/usr/local/sbin/target", script, 0o700)
	m.write("/etc/systemd/system/target.service", `[Unit]
Before=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/target 8
[Install]
WantedBy=network-online.target
`, 0o644)
	for _, name := range contents {
		m.run("truncate", "-s", fmt.Sprint(lunSize), filepath.Join(luns, name))
		m.writes(filepath.Join(luns, name), pattern(name), 0)
	}
	m.run("/usr/local/sbin/target")
}

// contents are all that a volume may hold, pattern the byte that it is made of.
var contents = []string{"one", "two", "far", "secret", "other", "hosted", "space1", "space2", "lv", "file"}

func pattern(name string) byte { return byte(0x51 + slices.Index(contents, name)) }

func portalGroup(iqn string) string {
	return filepath.Join(configfs, "target/iscsi", iqn, "tpgt_1")
}

// shows puts another file behind a LUN of the target main, as a storage does
// that gives the number to the next volume.
func (m machine) shows(lun int, now, then string) {
	m.Helper()
	dir := filepath.Join(portalGroup(mainTarget), "lun", fmt.Sprintf("lun_%d", lun))
	m.run("rm", filepath.Join(dir, now))
	m.run("rmdir", dir)
	m.run("mkdir", dir)
	m.run("ln", "-s", filepath.Join(configfs, "target/core/fileio_0", then), dir+"/"+then)
}

// enable switches the target main on or off. Off, it ends its sessions.
func (m machine) enable(on string) {
	m.Helper()
	m.must(os.WriteFile(filepath.Join(portalGroup(mainTarget), "enable"), []byte(on), 0))
}

// unreachable has nothing reach an address any more, until reachable.
func (m machine) unreachable(address string) (reachable func()) {
	m.Helper()
	route := []string{"unreachable", address + "/32", "table", "local"}
	m.run("ip", append([]string{"route", "add"}, route...)...)
	return func() { m.run("ip", append([]string{"route", "del"}, route...)...) }
}
