// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a domain whose disk is bound with fill=instant. Its source is of a
// size that takes a while to read in at the rates of the tests.
type instant struct {
	*domain
	top  string
	want []byte // what the guest must find, but for the count of boots
}

const instantSize = 24 << 20

// startsAtOnce is such a domain, bound by apply and not started yet.
func startsAtOnce(t *testing.T, name string) *instant {
	t.Helper()
	d := &instant{domain: newDomain(t, name)}
	d.want = make([]byte, instantSize)
	for i := range d.want {
		d.want[i] = byte(i>>12) ^ byte(i>>3) | 1
	}
	copy(d.want, diskImage(false))
	base := append([]byte{}, d.want...)
	for i := instantSize / 2; i < instantSize; i++ {
		base[i] = 0xba
	}
	writeImage(t, filepath.Join(d.dir, "base.raw"), base)
	d.top = filepath.Join(d.dir, "top.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Join(d.dir, "base.raw"), "-F", "raw", d.top)
	part := filepath.Join(d.dir, "part")
	writeImage(t, part, d.want[instantSize/2:])
	clear(d.want[14<<20 : 16<<20])
	run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -s %s %d %d", part, instantSize/2, instantSize/2), "-c", "write -q -z 14M 2M", d.top)
	d.disks = diskXML("file", d.top, "qcow2", "vda")
	d.define()
	diskhook(t, 0, "domain", "apply", "--local", "vda=dir,fill=instant", name)
	return d
}

// overlay is the file of the copy.
func (d *instant) overlay() string { return strings.TrimSuffix(d.copy(), ".raw") + ".qcow2" }

// unsettled says what the receipt does.
func (d *instant) unsettled() bool {
	d.t.Helper()
	var r struct {
		Overlay *struct {
			Settled *time.Time `json:"settled"`
		} `json:"overlay"`
	}
	if err := json.Unmarshal([]byte(content(d.t, d.receiptPath())), &r); err != nil || r.Overlay == nil {
		d.t.Fatalf("receipt of no overlay: %v", err)
	}
	return r.Overlay.Settled == nil
}

// writes is what the guest does: a write that is flushed when this returns.
func (d *instant) writes(pattern byte, at, n int) {
	d.t.Helper()
	for _, command := range []string{fmt.Sprintf("write -P %d %d %d", pattern, at, n), "flush"} {
		out := run(d.t, "virsh", "qemu-monitor-command", d.uuid, "--hmp", `qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "`+command+`"`)
		if strings.Contains(out, "rror") || strings.Contains(out, "failed") {
			d.t.Fatalf("%s: %s", command, out)
		}
	}
	for i := at; i < at+n; i++ {
		d.want[i] = pattern
	}
}

// reads checks that the guest, which must not run, would find what it wrote.
func (d *instant) reads(boots byte) {
	d.t.Helper()
	flat := filepath.Join(d.dir, "flat")
	run(d.t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", d.overlay(), flat)
	holds(d.t, flat, after(d.want, boots))
}

// kill ends the emulator as a crash would.
func (d *instant) kill() {
	d.t.Helper()
	run(d.t, "kill", "-KILL", content(d.t, "/run/libvirt/qemu/"+d.name+".pid"))
	eventually(d.t, func() bool { return d.state() == "shut off" }, "libvirt does not see that QEMU is gone")
}

// settling starts to settle at a rate and waits until it is under way.
func (d *instant) settling(rate string) *exec.Cmd {
	d.t.Helper()
	cmd := exec.Command("/usr/bin/diskhook", "local", "settle", "--rate", rate, d.name, "vda")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = cmd.Process.Kill() })
	eventually(d.t, d.underWay, "the settling is not under way")
	return cmd
}

// underWay says that a part of what is to be settled is.
func (d *instant) underWay() bool {
	d.t.Helper()
	percent, found := strings.CutPrefix(d.status(), "settling ")
	n, err := strconv.Atoi(strings.TrimSuffix(percent, "%"))
	return found && err == nil && n > 0
}

// status is the column STATE of the disk in `local status`.
func (d *instant) status() string {
	d.t.Helper()
	table := run(d.t, "/usr/bin/diskhook", "local", "status", d.name)
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[0] == d.name {
			if fields[3] == "settling" {
				return "settling " + fields[4]
			}
			return fields[3]
		}
	}
	return ""
}

// sourceAway takes the shared storage away for good.
func (d *instant) sourceAway() {
	d.t.Helper()
	for _, file := range []string{"base.raw", "top.qcow2"} {
		if err := os.Remove(filepath.Join(d.dir, file)); err != nil {
			d.t.Fatal(err)
		}
	}
}

// TestInstantStart: a guest runs at once, and is settled while it does.
func TestInstantStart(t *testing.T) {
	d := startsAtOnce(t, "instant")
	source := digest(t, filepath.Join(d.dir, "base.raw"), d.top)
	definition := d.dumped()
	says(t, definition, "type='qcow2'", "source file='"+d.link()+"'", "error_policy='stop'")
	if exists(d.overlay()) {
		t.Error("the copy was made before the first start")
	}
	d.start()
	d.boots(1)
	if st, err := os.Stat(d.overlay()); err != nil || st.Size() > 2<<20 {
		t.Errorf("its data was copied: %d bytes, %v", st.Size(), err)
	}
	if to, err := os.Readlink(d.link()); err != nil || to != d.overlay() {
		t.Errorf("the stable path leads to %q, %v", to, err)
	}
	if s := d.status(); s != "overlay" {
		t.Errorf("its state is %q", s)
	}
	d.writes(0x77, 6<<20, 64<<10)
	d.writes(0x78, 20<<20+4096, 8<<10)

	diskhook(t, 0, "local", "settle", "instant")
	if d.unsettled() || d.status() != "ready" {
		t.Errorf("it is not settled, but %s", d.status())
	}
	says(t, diskhook(t, 0, "local", "settle", "instant"), "nothing to do")
	if s := d.state(); s != "running" {
		t.Fatalf("the guest is %s", s)
	}
	d.writes(0x79, 9<<20, 4096)
	if now := digest(t, filepath.Join(d.dir, "base.raw"), d.top); now != source {
		t.Error("the source was changed")
	}
	if now := d.dumped(); now != definition {
		t.Errorf("its definition was changed:\n%s\n%s", definition, now)
	}
	d.sourceAway()
	d.kill()
	d.reads(1)
	d.start()
	d.boots(2)
	d.destroy()
	d.reads(2)
}

// TestInstantStartIsKilled: the emulator dies while its disk is settled. The
// guest's flushed writes are there, and the settling goes on.
func TestInstantStartIsKilled(t *testing.T) {
	for _, settleToo := range []bool{false, true} {
		t.Run(fmt.Sprintf("settle too %v", settleToo), func(t *testing.T) {
			d := startsAtOnce(t, fmt.Sprintf("killed%v", settleToo))
			d.start()
			d.boots(1)
			d.writes(0x77, 6<<20, 64<<10)
			settle := d.settling("2M")
			d.writes(0x78, 22<<20, 64<<10)
			if settleToo {
				_ = settle.Process.Kill()
				_ = settle.Wait()
			}
			d.kill()
			if !d.unsettled() {
				t.Fatal("it was settled before the emulator died")
			}
			began := time.Now()
			d.start()
			d.boots(2)
			if took := time.Since(began); took > time.Minute {
				t.Errorf("the start took %v", took)
			}
			if !settleToo {
				_ = settle.Process.Signal(syscall.SIGTERM)
				_ = settle.Wait()
			}
			if !d.unsettled() {
				t.Error("it was settled meanwhile")
			}
			diskhook(t, 0, "local", "settle", "--all")
			if d.unsettled() {
				t.Error("it is not settled")
			}
			d.kill()
			d.sourceAway()
			d.reads(2)
			d.start()
			d.boots(3)
			d.destroy()
			d.reads(3)
		})
	}
}

// TestInstantSourceLostTooEarly: QEMU takes the source out of the image's header
// before it has written all of the image. Nothing is lost if it dies then.
func TestInstantSourceLostTooEarly(t *testing.T) {
	d := startsAtOnce(t, "early")
	d.start()
	d.boots(1)
	d.writes(0x77, 6<<20, 64<<10)
	run(t, "virsh", "-q", "blockpull", d.uuid, "vda", "--wait")
	d.kill()
	if below := run(t, "qemu-img", "info", "-f", "qcow2", d.overlay()); strings.Contains(below, "backing file") {
		t.Fatal("the header names the source still")
	}
	d.start()
	d.boots(2)
	d.destroy()
	d.reads(2)
	diskhook(t, 0, "local", "settle", "early")
	d.sourceAway()
	d.start()
	d.boots(3)
	d.destroy()
	d.reads(3)
}

// TestInstantSourceIsGone: as long as it is not settled the guest never sees
// anything else than its source.
func TestInstantSourceIsGone(t *testing.T) {
	d := startsAtOnce(t, "gone")
	d.start()
	d.boots(1)
	d.destroy()
	back := moved(t, d.top)
	d.startVetoed("domain gone: disk vda: it is not settled", d.top, "cannot be read", "`diskhook local settle gone vda`", "`diskhook local recreate --discard-guest-data gone vda`")
	back()
	d.start()
	d.boots(2)
	d.destroy()
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 1 12M 4k", d.top)
	d.startVetoed("domain gone: disk vda: it is not settled", "changed since")
}

// copyFile is the file that the stable path leads to.
func (d *instant) copyFile() string {
	d.t.Helper()
	to, err := os.Readlink(d.link())
	if err != nil {
		d.t.Fatal(err)
	}
	return to
}

// allocated is how many bytes a file takes up.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestInstantToRaw: the disk goes over to a raw copy while its guest runs.
func TestInstantToRaw(t *testing.T) {
	for _, settled := range []bool{false, true} {
		t.Run(fmt.Sprintf("settled %v", settled), func(t *testing.T) {
			d := startsAtOnce(t, fmt.Sprintf("raw%v", settled))
			d.start()
			d.boots(1)
			d.writes(0x77, 6<<20, 64<<10)
			if settled {
				diskhook(t, 0, "local", "settle", d.name)
			}
			diskhook(t, 0, "local", "settle", "--raw", d.name, "vda")
			if s := d.state(); s != "running" {
				t.Fatalf("the guest is %s", s)
			}
			raw := d.copyFile()
			if exists(d.overlay()) || !strings.HasSuffix(raw, ".raw") {
				t.Errorf("the overlay is there, or the stable path leads to %s", raw)
			}
			if room := allocated(t, raw); room < instantSize {
				t.Errorf("%d bytes are reserved, of %d", room, instantSize)
			}
			d.writes(0x78, 20<<20+4096, 8<<10)
			definition := d.dumped()
			says(t, definition, "type='raw'", "source file='"+d.link()+"'", "fill=\"start\"")
			if strings.Contains(definition[strings.Index(definition, "<devices>"):], "qcow2") {
				t.Errorf("the definition opens an image:\n%s", definition)
			}
			if s := d.status(); s != "ready" {
				t.Errorf("its state is %q", s)
			}
			says(t, diskhook(t, 0, "local", "settle", d.name), "nothing to do")
			d.sourceAway()
			d.kill()
			holds(t, raw, after(d.want, 1))
			d.start()
			d.boots(2)
			d.destroy()
			holds(t, raw, after(d.want, 2))
			diskhook(t, 0, "local", "resize", d.name, "vda", "32M")
			diskhook(t, 0, "domain", "revert", "--discard-guest-data", d.name)
			if left, err := filepath.Glob("/var/lib/diskhook/local/dh_" + d.uuid + "*"); err != nil || len(left) > 0 {
				t.Errorf("left behind: %q, %v", left, err)
			}
		})
	}
}

// TestInstantToRawIsKilled: before the pivot a crash costs the raw copy alone.
func TestInstantToRawIsKilled(t *testing.T) {
	d := startsAtOnce(t, "rawkilled")
	d.start()
	d.boots(1)
	d.writes(0x77, 6<<20, 64<<10)
	settle := exec.Command("/usr/bin/diskhook", "local", "settle", "--raw", "--rate", "2M", d.name, "vda")
	if err := settle.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = settle.Process.Kill() })
	eventually(t, func() bool {
		return strings.Contains(run(t, "virsh", "dumpxml", d.uuid), "<mirror")
	}, "no mirror is under way")
	d.writes(0x78, 22<<20, 64<<10)
	_ = settle.Process.Kill()
	_ = settle.Wait()
	d.kill()
	d.start()
	d.boots(2)
	d.destroy()
	d.reads(2)
	d.start()
	d.boots(3)
	diskhook(t, 0, "local", "settle", "--raw", d.name, "vda")
	raw := d.copyFile()
	d.kill()
	holds(t, raw, after(d.want, 3))
}
