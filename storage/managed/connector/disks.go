// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// Which disks of the kernel's a volume is, by its connection alone, so that a
// device can be told from others as soon as it appears.

func (c *iscsi) Disks(context.Context) []string        { return disksOf(c.paths(c.mine())) }
func (f *fibreChannel) Disks(context.Context) []string { return disksOf(f.paths()) }
func (n *nfs) Disks(context.Context) []string          { return nil }

// Disks of an adapter's volumes only the adapter knows.
func (a *adapter) Disks(context.Context) []string { return nil }

func (l *local) Disks(context.Context) []string {
	name, err := l.host.device(l.host.at(l.path))
	if err != nil {
		return nil
	}
	return []string{name}
}

func (n *nvmeof) Disks(context.Context) []string {
	name, err := n.namespace()
	if err != nil || name == "" {
		return nil
	}
	return []string{name}
}

func (r *rbd) Disks(ctx context.Context) []string {
	name, err := r.mapped(ctx)
	if err != nil || name == "" {
		return nil
	}
	return []string{name}
}

func disksOf(paths []scsiPath) []string {
	var all []string
	for _, p := range paths {
		all = append(all, p.disk)
	}
	return all
}

// Beneath is what a device lies on: itself, the disk that it is a partition of,
// and the paths of a multipath map. Logical volumes and what else somebody built
// on disks is not looked through.
type Beneath struct {
	Disks []string // kernel names
	WWIDs []string // of multipath maps
}

// Beneath follows a device node down to disks.
func (h *Host) Beneath(path string) (Beneath, error) {
	name, err := h.device(path)
	if err != nil {
		return Beneath{}, err
	}
	b := Beneath{Disks: []string{name}}
	for i := 0; i < len(b.Disks); i++ {
		dir := h.at("sys/class/block", b.Disks[i])
		var below []string
		if resolved, err := filepath.EvalSymlinks(dir); err == nil && exists(filepath.Join(dir, "partition")) {
			below = append(below, filepath.Base(filepath.Dir(resolved)))
		}
		kind, of, _ := strings.Cut(attr(dir, "dm/uuid"), "-")
		if isMap := kind == strings.TrimSuffix(mapPrefix, "-"); isMap || strings.HasPrefix(kind, "part") && strings.HasPrefix(of, mapPrefix) {
			if isMap {
				b.WWIDs = append(b.WWIDs, of)
			}
			for _, slave := range h.glob(filepath.Join("sys/class/block", b.Disks[i], "slaves/*")) {
				below = append(below, filepath.Base(slave))
			}
		}
		for _, d := range below {
			if !slices.Contains(b.Disks, d) {
				b.Disks = append(b.Disks, d)
			}
		}
	}
	return b, nil
}

// Has says whether the device lies on the volume, which may be attached or not.
func (b Beneath) Has(ctx context.Context, h *Host, was Attachment, c Connector) bool {
	if was.MultipathID != "" && slices.Contains(b.WWIDs, was.MultipathID) {
		return true
	}
	if was.Path != "" {
		if name, err := h.device(was.Path); err == nil && slices.Contains(b.Disks, name) {
			return true
		}
	}
	return c != nil && slices.ContainsFunc(c.Disks(ctx), func(d string) bool { return slices.Contains(b.Disks, d) })
}

// How a volume that has grown becomes larger here: each path is asked again, and
// then the map over them. The kernel takes the new size of a mapped image, and
// the server's of a file, without being told.

func (c *iscsi) Rescan(ctx context.Context, was Attachment) error {
	return c.host.rescanSCSI(ctx, c.paths(c.mine()), was.MultipathID)
}

func (f *fibreChannel) Rescan(ctx context.Context, was Attachment) error {
	return f.host.rescanSCSI(ctx, f.paths(), was.MultipathID)
}

func (n *nvmeof) Rescan(context.Context, Attachment) error { return n.rescan() }
func (r *rbd) Rescan(context.Context, Attachment) error    { return nil }
func (n *nfs) Rescan(context.Context, Attachment) error    { return nil }

// Rescan leaves it to who made the device.
func (l *local) Rescan(context.Context, Attachment) error { return nil }

// Rescan looks at the devices themselves: VDSM's contract has no verb for it.
func (a *adapter) Rescan(ctx context.Context, was Attachment) error {
	b, err := a.host.Beneath(was.Path)
	if err != nil {
		return nil //nolint:nilerr // it is a file, or a device of a kind of its own
	}
	return a.host.rescanSCSI(ctx, slices.DeleteFunc(a.host.scsiDevices(anywhere), func(p scsiPath) bool {
		return !slices.Contains(b.Disks, p.disk)
	}), was.MultipathID)
}

func anywhere([4]uint64, string) bool { return true }

func (h *Host) rescanSCSI(ctx context.Context, paths []scsiPath, multipathID string) error {
	id, err := h.sameVolume(paths)
	switch {
	case err != nil:
		return err
	case multipathID != "" && len(paths) > 0 && id != multipathID:
		return failure.New(failure.Conflict, "%w: the multipath map is %s, and its paths are %s", ErrMismatch, multipathID, id)
	}
	var failed []error
	for _, dm := range h.mapsOver(paths, multipathID) {
		name := attr(h.at("sys/class/block", dm), "dm/name")
		if !word(name, "_-.:+#=@") {
			continue
		}
		if _, err := h.Run.Run(ctx, command.Cmd{Name: "multipathd", Args: []string{"resize", "map", name}, Timeout: multipathTime}); err != nil {
			failed = append(failed, fmt.Errorf("multipath map %s: resize: %w", name, err))
		}
	}
	return errors.Join(failed...)
}
