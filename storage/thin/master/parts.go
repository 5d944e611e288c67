// SPDX-License-Identifier: Apache-2.0

package master

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// parts reads all that a map is made of.
func (r *rebuilding) parts(ctx context.Context) error {
	list, err := r.Group.List(ctx)
	if err != nil {
		return err
	}
	for _, lv := range list {
		id, suffix, _ := layout.ParseName(lv.Name)
		switch suffix {
		case layout.Host:
			err = r.host(ctx, id)
		case layout.Thin:
			err = r.volume(ctx, id)
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fmt.Errorf("%s: %w", lv.Name, err)
		}
	}
	return nil
}

func (r *rebuilding) volume(ctx context.Context, id uuid.UUID) error {
	return r.onThin(ctx, id, false, func(dev group.Volume) error {
		copies, err := layout.MappingCopies(dev, r.Cluster, id)
		if errors.Is(err, layout.ErrEmpty) {
			return nil // a create that did not end
		}
		if err != nil {
			return lost(err, "the volume")
		}
		for _, c := range copies {
			r.see(c.Stamp)
		}
		r.volumes = append(r.volumes, claim{id: id, copies: copies})
		return nil
	})
}

// lost says how to go on without a part that cannot be read.
func lost(err error, what string) error {
	return failure.Hint(failure.Wrap(failure.Problems, err),
		"if %s is given up, remove the logical volume with `lvremove`, and run `diskhook thin check --rebuild-map --offline` again", what)
}

func (r *rebuilding) host(ctx context.Context, id uuid.UUID) error {
	return r.onHost(ctx, id, false, func(dev group.Volume) error {
		header, stamp, err := layout.ReadHost(dev, r.Cluster, id)
		if errors.Is(err, layout.ErrEmpty) {
			return nil // a join that did not end
		}
		if err != nil {
			return lost(err, "what its host wrote")
		}
		r.see(stamp)
		active := window{dev, header.Windows[header.Active]}
		if err := sound(ctx, active); err != nil {
			return lost(err, "what its host wrote")
		}
		devices, err := devicesOf(active)
		r.hosts = append(r.hosts, remains{id, header, stamp, devices})
		return err
	})
}

// devicesOf are the volumes in a host's metadata.
func devicesOf(active window) (map[uint32]device, error) {
	reader, err := metadata.Open(active)
	if err != nil {
		return nil, err
	}
	all := map[uint32]device{}
	for d, err := range reader.Devices() {
		if err != nil {
			return nil, err
		}
		if d.ID == 0 || d.ID > layout.MaxVolume {
			continue // disk 0, and what is the host's own
		}
		out := device{generation: d.Transaction}
		for run, err := range reader.Mappings(d.ID) {
			if err != nil {
				return nil, err
			}
			out.runs = append(out.runs, layout.MappingRun{Virtual: run.Origin, Physical: run.Data, Length: run.Length})
		}
		all[d.ID] = out
	}
	return all, nil
}

// blocksOf is every block that a mapping has.
func blocksOf(m layout.Mapping) extent.Set {
	runs := make([]extent.Extent, len(m.Runs))
	for i, r := range m.Runs {
		runs[i] = extent.Extent{Start: r.Physical, Length: r.Length}
	}
	return extent.Of(runs...)
}

// relabel is a mapping in which the blocks of one set are of a base, and all others
// private.
func relabel(m layout.Mapping, of extent.Set, base uint32) layout.Mapping {
	var runs []layout.MappingRun
	for _, r := range m.Runs {
		whole := extent.Of(extent.Extent{Start: r.Physical, Length: r.Length})
		for number, part := range map[uint32]extent.Set{base: whole.Intersect(of), 0: whole.Minus(of)} {
			for _, e := range part {
				runs = append(runs, layout.MappingRun{Virtual: r.Virtual + e.Start - r.Physical, Physical: e.Start, Length: e.Length, Base: number})
			}
		}
	}
	slices.SortFunc(runs, func(a, b layout.MappingRun) int { return cmp.Compare(a.Virtual, b.Virtual) })
	m.Runs = runs
	return m
}
