// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// This file runs in the test guest only, as root: it makes the volume group
// ovirt-local with the thin pool pool0 on /dev/vdb, and a file system for images
// and for the old hook's temporary file on /dev/vdc.

const (
	images   = "/srv/images"
	diskSize = 4 << 30
	domain   = "6a7e5d52-5d3e-4a5f-9c55-0a0c6e4a6d5f"
)

// counting is a Runner that keeps the LVM commands it ran.
type counting struct {
	command.Runner
	mu    sync.Mutex
	lines []string
	took  time.Duration
}

func (c *counting) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	if filepath.Base(cmd.Name) != "lvm" {
		return c.Runner.Run(ctx, cmd)
	}
	from := time.Now()
	result, err := c.Runner.Run(ctx, cmd)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, cmd.String())
	c.took += time.Since(from)
	return result, err
}

func (c *counting) reset() {
	c.mu.Lock()
	c.lines, c.took = nil, 0
	c.mu.Unlock()
}

// readyInGuest starts a domain with four ready thin copies, cold (inactive, as
// after a reboot), and counts LVM commands.
func readyInGuest(ctx context.Context, out io.Writer) error {
	service, runs, err := setUp(ctx)
	if err != nil {
		return err
	}
	var disks []localdisk.Disk
	for _, target := range []string{"vda", "vdb", "vdc", "vdd"} {
		path := filepath.Join(images, target+".raw")
		if err := shell(ctx, `qemu-img create -q -f raw "$1" 16M && qemu-io -f raw -c 'write -P 7 0 16M' "$1" >/dev/null`, path); err != nil {
			return err
		}
		disk := copyOf(target, imagecheck.Layer{Path: path, Format: "raw"})
		if _, err := fillOne(ctx, service, disk); err != nil {
			return err
		}
		disks = append(disks, disk)
	}

	var times []time.Duration
	const starts = 5
	for range starts {
		if err := shell(ctx, "vgchange -q -an ovirt-local && udevadm settle"); err != nil {
			return err
		}
		runs.reset()
		from := time.Now()
		placed, err := service.Fulfil(ctx, disks, localdisk.Waiting{Deadline: time.Minute})
		if err != nil {
			return err
		}
		times = append(times, time.Since(from))
		if len(placed) != len(disks) {
			return fmt.Errorf("%d of %d disks are in place", len(placed), len(disks))
		}
	}
	fmt.Fprintf(out, "  %d LVM commands for %d disks, %.0f ms (median of %d starts):\n", len(runs.lines), len(disks), milliseconds(median(times)), starts)
	for _, line := range runs.lines {
		fmt.Fprintf(out, "    %s\n", line)
	}
	return nil
}

// filling is what one fill took, and how much of that was LVM: a command takes
// a second under emulation and 40 ms elsewhere.
type filling struct{ all, lvm time.Duration }

func (f filling) data() time.Duration { return f.all - f.lvm }

// fillInGuest fills a thin volume from a three-layer chain, once as diskhook
// does and once as oVirt's hook did: through a file, then dd, which leaves out
// zeros. They take turns; the better one of each counts.
func fillInGuest(ctx context.Context, out io.Writer) error {
	service, runs, err := setUp(ctx)
	if err != nil {
		return err
	}
	chain, err := threeLayers(ctx)
	if err != nil {
		return err
	}
	var ours, old filling
	for i := range 2 {
		disk := copyOf("vd"+string(rune('a'+i)), chain...)
		runs.reset()
		took, err := fillOne(ctx, service, disk)
		if err != nil {
			return err
		}
		ours = better(ours, filling{took, runs.took})

		before, err := oldHook(ctx, chain[0].Path)
		if err != nil {
			return err
		}
		old = better(old, before)

		if err := shell(ctx, `
			lvm lvchange -q -ay -K "ovirt-local/$2"
			qemu-img compare -q -f raw -F qcow2 "/dev/ovirt-local/$2" "$1"
			qemu-img compare -q -f raw -F qcow2 /dev/ovirt-local/old "$1"
			lvm lvremove -q -y ovirt-local/old "ovirt-local/$2"`, chain[0].Path, disk.CopyName()); err != nil {
			return fmt.Errorf("the copies differ from their source: %w", err)
		}
	}
	fmt.Fprintf(out, "  4 GiB, 1.5 GiB of it data, in three layers; both results were compared with the source\n")
	fmt.Fprintf(out, "  %-44s %7s  %s\n", "", "all", "without LVM commands")
	for _, line := range []struct {
		name string
		took filling
	}{{"diskhook", ours}, {"qemu-img convert to a file, dd conv=sparse", old}} {
		fmt.Fprintf(out, "  %-44s %5.1f s  %5.1f s\n", line.name, line.took.all.Seconds(), line.took.data().Seconds())
	}
	fmt.Fprintf(out, "  diskhook is %.1f × faster; %.1f × without LVM commands, which emulation slows down most\n",
		ratio(old.all, ours.all), ratio(old.data(), ours.data()))
	return nil
}

func better(a, b filling) filling {
	if a.all == 0 || b.all < a.all {
		return b
	}
	return a
}

// oldHook runs the commands of oVirt's localdisk hook for an absent copy.
func oldHook(ctx context.Context, top string) (filling, error) {
	steps := []struct {
		lvm    bool
		script string
	}{
		{true, `lvm lvs -q --reportformat json -o name,attr,tags,size --select 'lv_name="old"' ovirt-local >/dev/null`},
		{false, `qemu-img info --output json "$1" >/dev/null`},
		{true, `lvm lvcreate -q -y -n old --addtag UPDATING --virtualsize "$2b" --thinpool pool0 ovirt-local`},
		{false, `qemu-img convert -t none -T none -f qcow2 -O raw "$1" /srv/images/localdisk.tmp`},
		{false, `dd if=/srv/images/localdisk.tmp of=/dev/ovirt-local/old bs=1M iflag=direct oflag=direct conv=sparse status=none`},
		{true, `lvm lvchange -q --deltag UPDATING ovirt-local/old`},
		{false, `rm /srv/images/localdisk.tmp`},
	}
	var took filling
	for _, step := range steps {
		from := time.Now()
		if err := shell(ctx, step.script, top, fmt.Sprint(diskSize)); err != nil {
			return took, err
		}
		took.all += time.Since(from)
		if step.lvm {
			took.lvm += time.Since(from)
		}
	}
	return took, nil
}

func setUp(ctx context.Context) (*localdisk.Service, *counting, error) {
	if _, err := os.Stat("/dev/vdb"); err != nil {
		return nil, nil, fmt.Errorf("not in the test guest: %w", err)
	}
	if err := shell(ctx, `
		mkfs.ext4 -q /dev/vdc
		mkdir -p /srv/images
		mount /dev/vdc /srv/images
		vgs -q ovirt-local >/dev/null 2>&1 || vgcreate -q ovirt-local /dev/vdb
		lvcreate -q -y -L 10G -T ovirt-local/pool0`); err != nil {
		return nil, nil, err
	}
	layout := host.Layout{}
	config := host.Defaults(layout)
	config.Paths.Roots = []string{images}
	config.Local.Backend = "lvmthin"
	config.Local.Cache = "off" // a full copy is what is measured
	runs := &counting{Runner: command.System{}}
	return &localdisk.Service{
		Layout: layout, Config: config, Run: runs,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}, runs, nil
}

func copyOf(target string, source ...imagecheck.Layer) localdisk.Disk {
	return localdisk.Disk{
		Domain: domain, DomainName: "bench", Target: target, Backend: "lvmthin", OnStop: localdisk.Keep,
		Source: source, Create: true,
	}
}

// fillOne does what the copy process does, in this process.
func fillOne(ctx context.Context, service *localdisk.Service, disk localdisk.Disk) (time.Duration, error) {
	if err := os.MkdirAll(service.Layout.Locks(), 0o750); err != nil {
		return 0, err
	}
	job, err := json.Marshal(localdisk.Job{ID: "bench-" + disk.Target, Disk: disk})
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(service.Layout.Status(), 0o755); err != nil {
		return 0, err
	}
	file := filepath.Join(service.Layout.Status(), "bench.job")
	if err := os.WriteFile(file, job, 0o600); err != nil {
		return 0, err
	}
	from := time.Now()
	err = service.Fill(ctx, file)
	return time.Since(from), err
}

// threeLayers makes base ← middle ← top, each with data of its own, and random
// data, so that nothing is cheaper than on a real disk.
func threeLayers(ctx context.Context) ([]imagecheck.Layer, error) {
	err := shell(ctx, `
		cd "$1"
		head -c 536870912 /dev/urandom >noise
		layer() { qemu-img create -q -f qcow2 $2 "$1" 4G; qemu-io -f qcow2 -c "write -s noise $3 512M" "$1" >/dev/null; }
		layer base.qcow2 '' 0
		layer middle.qcow2 '-b base.qcow2 -F qcow2' 1000M
		layer top.qcow2 '-b middle.qcow2 -F qcow2' 3000M
		rm noise; sync; echo 3 >/proc/sys/vm/drop_caches`, images)
	chain := []imagecheck.Layer{}
	for _, name := range []string{"top", "middle", "base"} {
		chain = append(chain, imagecheck.Layer{Path: filepath.Join(images, name+".qcow2"), Format: "qcow2"})
	}
	return slices.Clip(chain), err
}

func shell(ctx context.Context, script string, arguments ...string) error {
	run := exec.CommandContext(ctx, "sh", append([]string{"-euc", script, "sh"}, arguments...)...)
	run.Stderr = os.Stderr
	return run.Run()
}
