// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func decimal(b byte) string { return strconv.Itoa(int(b)) }

// namespaces: NVMe over TCP, two volumes in one subsystem, one of them by both
// portals.
func namespaces(m machine) {
	m.unattachable("strange", 4, "another volume answers")
	m.attached("space1")
	link := m.attached("space2")
	if found, err := filepath.Glob("/sys/class/nvme/nvme*"); err != nil || len(found) != 2 {
		m.Errorf("controllers: %v, %v", found, err)
	}
	m.writes(link, 0x7e, 1<<20)
	m.refused(m.volume("detach", "space1"), 0)
	m.reads(link, pattern("space2"), 0)
	m.detached("space2")
	m.reads(filepath.Join(luns, "space2"), 0x7e, 1<<20)

	// It has grown while nobody looked, and grows while somebody does.
	grow := func(size int) {
		m.run("truncate", "-s", strconv.Itoa(size), filepath.Join(luns, "space1"))
		m.must(os.WriteFile(filepath.Join(configfs, "nvmet/subsystems", subsystem, "namespaces/1/revalidate_size"), []byte("1"), 0))
	}
	grow(2 * lunSize)
	link = m.attached("space1")
	has := func(size int) func() bool {
		return func() bool { return m.run("blockdev", "--getsize64", link) == strconv.Itoa(size) }
	}
	m.within("its new size", has(2*lunSize))
	grow(3 * lunSize)
	m.within("its new size", has(3*lunSize))
	m.detached("space1")
}

func localVolume(m machine) {
	m.run("vgcreate", "-ff", "-y", "ours", "/dev/vdb")
	m.refused(m.volume("attach", "lv"), 3, "volume lv")
	m.run("lvcreate", "-y", "-n", "lv", "-L", "16m", "ours")
	m.writes("/dev/ours/lv", pattern("lv"), 0)
	m.attached("lv")
	m.detached("lv")
	m.run("lvremove", "-y", "ours/lv")
}

func serverFileVolume(m machine) {
	m.must(os.MkdirAll(export, 0o755))
	m.run("truncate", "-s", strconv.Itoa(lunSize), filepath.Join(export, "file"))
	m.writes(filepath.Join(export, "file"), pattern("file"), 0)
	m.write("/etc/nfs.conf.d/short.conf", "[nfsd]\ngrace-time=10\nlease-time=10\n", 0o644)
	m.run("systemctl", "start", "nfs-server")
	m.run("exportfs", "-o", "rw,insecure,no_root_squash", "127.0.0.1:"+export)
	link := m.attached("file")
	m.writes(link, 0x66, 1<<20)
	m.detached("file")
	m.reads(filepath.Join(export, "file"), 0x66, 1<<20)
	m.run("systemctl", "stop", "nfs-server")
}

// vdsmHelper attaches and detaches as VDSM has it done, which keeps the rows.
func vdsmHelper(m machine) {
	call := func(verb string, row any) string {
		m.Helper()
		text, err := json.Marshal(row)
		m.must(err)
		r := m.try(string(text), "diskhook", "volume", "helper", verb)
		m.silent(r)
		if r.code != 0 {
			m.Fatalf("helper %s: exit code %d: %s", verb, r.code, r.output)
		}
		return r.output
	}
	connection := definitions()["locked"]
	var attachment map[string]string
	m.must(json.Unmarshal([]byte(call("attach", data{"connection_info": connection})), &attachment))
	if attachment["type"] != "block" || attachment["multipath_id"] != wwnOf("secret") {
		m.Errorf("attachment %v", attachment)
	}
	path := "/dev/mapper/" + attachment["multipath_id"]
	m.reads(path, pattern("secret"), 0)
	answer := call("detach", data{"vol_id": "v", "connection_info": connection, "path": path, "attachment": attachment, "multipath_id": attachment["multipath_id"]})
	if strings.TrimSpace(answer) != "{}" {
		m.Errorf("detach answers %q", answer)
	}
	m.noneLeft()
	var properties struct {
		Multipath bool   `json:"multipath"`
		Initiator string `json:"initiator"`
		NQN       string `json:"nqn"`
	}
	m.must(json.Unmarshal([]byte(call("connector_info", nil)), &properties))
	if !properties.Multipath || !strings.HasPrefix(properties.Initiator, "iqn.") || !strings.HasPrefix(properties.NQN, "nqn.") {
		m.Errorf("connector %+v", properties)
	}
}
