// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"diskhook/hooks/bindings"
	"diskhook/storage/atomicfile"
)

// beforeVMMigrateSource refuses on the host where the VM runs: on the other
// side VDSM asks nobody.
func beforeVMMigrateSource(_ context.Context, v *vm) error {
	_, _, d, err := v.readDomain()
	if err != nil {
		return err
	}
	if err := v.identified(d); err != nil {
		return err
	}
	bound, _, err := bindings.Resolve(d, v.written)
	if err != nil {
		return err
	}
	if err := bindings.Migratable(d, bound); err != nil {
		return err
	}
	return v.Forsaken(d, bound)
}

// afterVMDestroy comes after every end of a VM. Its failure stops nothing. The
// XML names the disks that the VM had at its end; others were unplugged while
// it ran, and are known by their receipts.
func afterVMDestroy(ctx context.Context, v *vm) error {
	d, bound, err := v.gone()
	if err == nil {
		// VDSM does not tell why the VM ended. A saved one has its mark, which
		// localdisk heeds.
		err = v.Release(ctx, d, bound, "destroyed")
	}
	return errors.Join(err, v.Local.ReleaseRest(ctx, v.id), v.Quorum.StopRest(ctx, v.id), v.ReleaseVolumes(ctx, bindings.Domain{UUID: v.id}))
}

// afterDiskHotunplug comes when QEMU has let go of a disk of a VM that goes on.
// A set or a volume that the disk used is free then; a local copy waits for the
// VM's end, as one that was unplugged on libvirt does.
func afterDiskHotunplug(ctx context.Context, v *vm) error {
	_, doc, err := v.readXML()
	if err != nil {
		return err
	}
	d := v.partOf(doc)
	bound, _, err := bindings.Resolve(d, v.written)
	if bound = but(bound, "local"); err != nil || len(bound) == 0 {
		return err
	}
	return v.Release(ctx, d, bound, "")
}

// gone reads a VM that does not run any more, as far as it can be read: a
// property may name a disk that it has no longer.
func (v *vm) gone() (bindings.Domain, []bindings.Bound, error) {
	_, _, d, err := v.readDomain()
	if err != nil {
		return d, nil, err
	}
	d.Partial = true
	bound, _, err := bindings.Resolve(d, v.written)
	return d, bound, err
}

// beforeVDSMStart runs as root before VDSM does, for the host and not for a
// VM. It does what tmpfiles.d has done on an installed host, and nothing slow.
func beforeVDSMStart(h *bindings.Host, log *slog.Logger) {
	for _, dir := range []string{h.Layout.Run(), h.Layout.Links(), h.Layout.Status(), h.Layout.Locks()} {
		if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
			log.Warn("make directory", "err", err)
		}
	}
	links, _ := filepath.Glob(filepath.Join(h.Layout.Links(), "*", "*"))
	for _, link := range links {
		if st, err := os.Lstat(link); err != nil || st.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if _, err := os.Stat(link); errors.Is(err, fs.ErrNotExist) {
			log.Info("stale link", "path", link, "removed", os.Remove(link) == nil)
			_ = os.Remove(filepath.Dir(link)) // if it was the last
		}
	}
}
