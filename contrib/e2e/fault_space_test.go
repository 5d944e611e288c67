// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noRoomFor wants a start and the command line to refuse a copy for want of
// space, with the same words, and nothing to be left.
func (m machine) noRoomFor(d domain, words ...string) {
	m.Helper()
	m.unchanged(func() {
		m.vetoed(d, append(words, "disk vda")...)
		m.refused(m.prestage(d), 6, append(words, "disk vda")...)
	})
	m.notReady(d, "vda")
}

func groupFull(m machine) {
	d := m.bind(named("group-full", disk{"vda", "lvm", "one"}))
	m.run("lvcreate", "-y", "-Wy", "-n", "filler", "-l", "100%FREE", "ovirt-local")
	m.noRoomFor(d, "vg ovirt-local", "bytes are needed", "vgextend ovirt-local")
	m.run("lvremove", "-y", "ovirt-local/filler")
	m.converges(d)
	m.forget(d)
}

// poolFull: data and metadata of a thin pool run full, and are given the room
// that the message asks for.
func poolFull(m machine) {
	m.scenario("data", func(m machine) {
		m.run("lvcreate", "-y", "-n", "narrow", "--type", "thin-pool", "-L", "8m", "ovirt-local")
		m.run("lvchange", "--errorwhenfull", "y", "ovirt-local/narrow")
		m.finally("lvremove", "-y", "ovirt-local/narrow")
		m.configured(map[string]string{"local.pool": `"narrow"`})
		d := m.bind(named("pool-full", disk{"vda", "lvmthin", "slow"}))
		m.vetoed(d, "disk vda", "o space left on device", "lvextend -L +SIZE ovirt-local/narrow")
		m.notReady(d, "vda")
		m.refused(m.prestage(d), 6, "disk vda", "o space left on device", "lvextend")
		m.notReady(d, "vda")
		m.run("lvextend", "-L", "+48m", "ovirt-local/narrow")
		m.converges(d)
		m.forget(d)
	})
	m.scenario("metadata", func(m machine) {
		m.run("lvcreate", "-y", "-n", "crowded", "--type", "thin-pool", "-L", "40m", "--poolmetadatasize", "2m", "ovirt-local")
		m.finally("lvremove", "-y", "ovirt-local/crowded")
		m.run("lvcreate", "-y", "-n", "anchor", "-V", "4m", "--thinpool", "crowded", "ovirt-local")
		m.crowd("ovirt--local-crowded-tpool", 96)
		m.configured(map[string]string{"local.pool": `"crowded"`})
		d := m.bind(named("metadata-full", disk{"vda", "lvmthin", "one"}))
		m.noRoomFor(d, "ovirt-local/crowded", "metadata", "full", "lvextend --poolmetadatasize +SIZE ovirt-local/crowded")
		m.run("lvextend", "--poolmetadatasize", "+4m", "ovirt-local/crowded")
		m.converges(d)
		m.forget(d)
	})
}

// crowd makes thin devices that LVM knows nothing of, each of which takes a
// block or two, until so many percent of the pool's metadata are in use. A
// program run for each would take minutes here.
func (m machine) crowd(pool string, percent int) {
	m.Helper()
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	m.must(err)
	defer control.Close()
	for device := 1000; ; device++ {
		m.must(messageTarget(control, pool, fmt.Sprintf("create_thin %d", device)))
		if device%20 != 0 {
			continue
		}
		used, of := 0, 0
		status := strings.Fields(m.run("dmsetup", "status", pool))
		if _, err := fmt.Sscanf(status[4], "%d/%d", &used, &of); err != nil {
			m.Fatalf("status %q: %v", status, err)
		}
		if 100*used >= percent*of {
			m.Logf("%d of %d blocks of metadata are in use by %d devices", used, of, device-1000)
			return
		}
	}
}

// messageTarget sends a message to the one target of a device-mapper device:
// DM_TARGET_MSG, linux/dm-ioctl.h. A struct dm_ioctl of 312 bytes, then sector
// and text.
func messageTarget(control *os.File, device, text string) error {
	const header, command = 312, 0xc138fd0e
	b := make([]byte, header+8+len(text)+1)
	for at, value := range map[int]uint32{0: 4, 12: uint32(len(b)), 16: header} { // version, data_size, data_start
		binary.NativeEndian.PutUint32(b[at:], value)
	}
	copy(b[48:48+127], device)
	copy(b[header+8:], text)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), command, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return fmt.Errorf("%s: %s: %w", device, text, errno)
	}
	return nil
}

// small replaces a directory by a file system with a little room, until the
// scenario has ended. full takes all of it, and what it returns gives it back.
func (m machine) small(dir string, options string) (full func() (free func())) {
	m.Helper()
	aside := "/root/aside" + strings.ReplaceAll(dir, "/", "-")
	m.run("cp", "-a", dir, aside)
	m.run("mount", "-t", "tmpfs", "-o", options, "small", dir)
	m.run("cp", "-a", aside+"/.", dir)
	m.finally("sh", "-euc", `cp -a "$0/." "$1"; rm -r "$1"/filler* || true; umount "$0"; cp -a "$1/." "$0"; rm -r "$1"`, dir, aside)
	return func() func() {
		m.Helper()
		m.run("sh", "-uc", `dd if=/dev/zero of="$0/filler" bs=4k 2>/dev/null; while true >"$0/filler.$((i = ${i:-0} + 1))"; do :; done 2>/dev/null; df "$0" | tail -n 1`, dir)
		return func() { m.run("sh", "-c", `rm "$0"/filler*`, dir) }
	}
}

// stateFull: what is to be remembered cannot be written. Nothing that was is lost.
func stateFull(m machine) {
	const dir = "/var/lib/diskhook"
	absent := m.bind(named("state-absent", disk{"vda", "lvmthin", "one"}))
	fresh := m.bind(named("state-fresh", disk{"vda", "lvm", "one"}))
	m.refused(m.prestage(fresh), 0)
	full := m.small(dir, "size=256k,nr_inodes=64,mode=711")
	free := full()
	receipts := func() string {
		return m.run("sh", "-c", `find "$0" -name '*.json' -exec sha256sum {} + | sort`, filepath.Join(dir, "receipts"))
	}
	before := receipts()

	m.started(steady())
	m.stopped(steady())
	m.unchanged(func() {
		m.vetoed(fresh, "disk vda", dir, "no space left on device")
		m.refused(m.try("", "diskhook", "local", "remove", "--discard-guest-data", steady().id, "vda"), 6, dir, "no space left on device")
	})
	if exists(fresh.link("vda")) {
		m.Error("a disk has its path, and that it is used is not on record")
	}
	m.vetoed(absent, "disk vda", dir, "no space left on device")
	m.notReady(absent, "vda")
	m.refused(m.prestage(absent), 6, "disk vda", dir, "no space left on device")
	m.notReady(absent, "vda")
	if after := receipts(); after != before {
		m.Errorf("receipts before:\n%s\nafter:\n%s", before, after)
	}

	free()
	m.unchangedBut(fresh.copyName("vda"), func() { m.converges(fresh) })
	m.converges(absent)
	m.forget(fresh, absent)
}

// runFull: no lock, link, job or status can be written.
func runFull(m machine) {
	const dir = "/run/diskhook"
	d := m.bind(named("run-full", disk{"vda", "lvm", "one"}))
	full := m.small(dir, "size=1m,nr_inodes=400,mode=755")
	free := full()
	m.unchanged(func() {
		m.vetoed(d, dir, "no space left on device")
		m.refused(m.prestage(d), 6, "no space left on device")
		m.vetoed(steady(), dir, "no space left on device")
	})
	m.notReady(d, "vda")
	if exists(steady().node("vda")) {
		m.Error("a vetoed start left its volume active")
	}
	free()
	m.converges(d)

	// It runs full in the middle of a copy, of which nobody can read then how far
	// it is: the copy does not mind.
	m.forget(d)
	m.configured(map[string]string{"local.rate": rate})
	late := m.bind(named("run-late", disk{"vda", "lvm", "slow"}))
	ended := m.starting(late)
	free = full()
	if r := <-ended; r.code != 0 && !strings.Contains(r.output, "no space left on device") {
		m.Errorf("exit code %d: %s", r.code, r.output)
	}
	if r := m.receipt(late.id, "vda"); r == nil {
		m.Error("the copy ended with its status")
	}
	free()
	m.configure(nil)
	m.unchangedBut(late.copyName("vda"), func() { m.started(late) })
	m.same(late)
	m.stopped(late)
	m.forget(late)
	if left, err := os.ReadDir(dir); err != nil || len(left) == 0 {
		m.Error(fmt.Sprint("nothing is left of ", dir, ": ", err))
	}
}
