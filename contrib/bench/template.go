// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// templateInGuest makes the copies of twenty domains at once whose disks have
// one base of 2 GiB of data and 1 MiB of their own, beside that of one domain.
// Each begins without a template, so both times have its one copy in them.
func templateInGuest(ctx context.Context, out io.Writer) error {
	service, runs, err := setUp(ctx)
	if err != nil {
		return err
	}
	service.Config.Local.Cache = "auto"
	const count = 20
	err = shell(ctx, `
		cd "$1"
		head -c 536870912 /dev/urandom >noise
		qemu-img create -q -f qcow2 base.qcow2 4G
		for at in 0 512 1024 1536; do qemu-io -f qcow2 -c "write -s noise ${at}M 512M" base.qcow2 >/dev/null; done
		i=0
		while [ $i -lt "$2" ]; do
			qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "top$i.qcow2"
			qemu-io -f qcow2 -c "write -s noise 3000M 1M" "top$i.qcow2" >/dev/null
			i=$((i + 1))
		done
		rm noise; sync`, images, fmt.Sprint(count))
	if err != nil {
		return err
	}
	var one, twenty filling
	for _, part := range []struct {
		domains int
		took    *filling
	}{{1, &one}, {count, &twenty}} {
		if err := shell(ctx, "echo 3 >/proc/sys/vm/drop_caches"); err != nil {
			return err
		}
		runs.reset()
		from := time.Now()
		if err := fillAll(ctx, service, part.domains); err != nil {
			return err
		}
		*part.took = filling{time.Since(from), runs.took}
		if err := sameAsSources(ctx, service, part.domains); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "  a base with 2 GiB of data; the copies were compared with their sources\n")
	fmt.Fprintf(out, "  %-44s %5.1f s\n", "one domain, which makes the template", one.all.Seconds())
	fmt.Fprintf(out, "  %-44s %5.1f s, of all LVM commands one after the other %.1f s\n", "twenty at once, one of which makes it", twenty.all.Seconds(), twenty.lvm.Seconds())
	fmt.Fprintf(out, "  %.2f × the time of one\n", ratio(twenty.all, one.all))
	return nil
}

func clonesOf(domains int) []localdisk.Disk {
	disks := make([]localdisk.Disk, domains)
	for i := range disks {
		disks[i] = copyOf("vda",
			imagecheck.Layer{Path: filepath.Join(images, fmt.Sprintf("top%d.qcow2", i)), Format: imagecheck.QCOW2},
			imagecheck.Layer{Path: filepath.Join(images, "base.qcow2"), Format: imagecheck.QCOW2})
		disks[i].Domain = uuid.NewSHA1(uuid.NameSpaceURL, fmt.Append(nil, i)).String()
	}
	return disks
}

// fillAll does what the copy processes of so many domains do.
func fillAll(ctx context.Context, service *localdisk.Service, domains int) error {
	for _, dir := range []string{service.Layout.Locks(), service.Layout.Status()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	var all sync.WaitGroup
	failed := make([]error, domains)
	for i, disk := range clonesOf(domains) {
		all.Go(func() {
			file := filepath.Join(service.Layout.Status(), disk.Domain+".job")
			job, err := json.Marshal(localdisk.Job{ID: disk.Domain, Disk: disk})
			if err == nil {
				err = os.WriteFile(file, job, 0o600)
			}
			if err == nil {
				err = service.Fill(ctx, file)
			}
			failed[i] = err
		})
	}
	all.Wait()
	return errors.Join(failed...)
}

// sameAsSources compares all copies, of which one template must have been made,
// and removes everything.
func sameAsSources(ctx context.Context, service *localdisk.Service, domains int) error {
	templates, err := service.Templates(ctx)
	if err != nil || len(templates) != 1 || templates[0].Clones != domains {
		return errors.Join(fmt.Errorf("templates: %+v", templates), err)
	}
	for _, disk := range clonesOf(domains) {
		err := shell(ctx, `
			lvm lvchange -q -ay -K "ovirt-local/$2"
			qemu-img compare -q -f raw -F qcow2 "/dev/ovirt-local/$2" "$1"
			lvm lvchange -q -an "ovirt-local/$2"`, disk.Source[0].Path, disk.CopyName())
		if err != nil {
			return fmt.Errorf("%s differs from its source: %w", disk.CopyName(), err)
		}
		if err := service.Remove(ctx, disk.Domain, disk.Key(), localdisk.GiveUp{}); err != nil {
			return err
		}
	}
	return service.EvictTemplate(ctx, templates[0].Name, localdisk.WipeNone)
}
