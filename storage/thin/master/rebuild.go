// SPDX-License-Identifier: Apache-2.0

package master

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// Rebuilt is what RebuildMap found.
type Rebuilt struct {
	Epoch   uint64          `json:"epoch"`
	Volumes []RebuiltVolume `json:"volumes"`
	Hosts   []string        `json:"hosts"` // that have to join again
}

// RebuiltVolume is a volume of a map that was made anew.
type RebuiltVolume struct {
	Number uint32 `json:"number"`
	Name   string `json:"name"` // its UUID, if no copy of the map had its name
	Source Source `json:"source"`
}

// RebuildMap makes the map anew when both of its copies are lost, or the newest one
// is: out of the hosts' metadata and the stored mappings, with the names that a copy
// still has. All volumes are offline then, every host has to join again, and this
// host is master of a new epoch. No host may have a pool meanwhile, which is what
// stopped says; without it this is a failure.Precondition. Where two parts claim
// the same block it changes nothing and names them. A map that is whole is left
// alone.
func (m *Master) RebuildMap(ctx context.Context, stopped bool) (Rebuilt, error) {
	var out Rebuilt
	if !stopped {
		err := failure.New(failure.Precondition, "the map is made anew from metadata that no pool may be changing")
		return out, failure.Hint(err, "run `diskhook thin stop` on every host, then `diskhook thin check --rebuild-map --offline`")
	}
	err := m.locked(ctx, func() error {
		g, err := m.label(ctx)
		if err == nil {
			err = m.missingMap(ctx)
		}
		if err != nil {
			return err
		}
		return group.With(ctx, m.Group, layout.MapName, true, func(dev group.Volume) error {
			_, stamp, err := layout.ReadMap(dev, m.Cluster)
			if !errors.Is(err, layout.ErrDamaged) && !errors.Is(err, layout.ErrInvalid) && !errors.Is(err, layout.ErrEmpty) {
				out.Epoch = stamp.Epoch
				return err
			}
			own := *m // for the time of this
			r := rebuilding{Master: &own, dev: dev, out: &out, m: layout.NewMap(g)}
			own.Group = group.Guarded(m.Group, r.still)
			return r.all(ctx)
		})
	})
	return out, err
}

// missingMap makes the map's volume, should even that be gone, as long as it is in a new
// cluster; one that was cut off becomes that long again.
func (m *Master) missingMap(ctx context.Context) error {
	short := false
	err := group.With(ctx, m.Group, layout.MapName, false, func(dev group.Volume) error {
		short = dev.Size() < mapBytes
		return nil
	})
	if errors.Is(err, failure.NotFound) || err == nil && short {
		return m.Group.Create(ctx, layout.MapName, mapBytes)
	}
	return err
}

// label is the geometry of the data, which one that has grown still has.
func (m *Master) label(ctx context.Context) (layout.Geometry, error) {
	var g layout.Geometry
	err := group.With(ctx, m.Group, layout.DataName, false, func(dev group.Volume) error {
		var err error
		if g, err = layout.ReadLabel(dev, m.Cluster); errors.Is(err, layout.ErrGrown) {
			return nil
		}
		return err
	})
	return g, err
}

// rebuilding is a RebuildMap that runs.
type rebuilding struct {
	*Master
	dev   group.Volume
	out   *Rebuilt
	epoch uint64     // the highest that was seen
	m     layout.Map // what becomes the map; it begins as one that has nothing
	old   layout.Map // the newest copy that can be read, perhaps empty

	hosts   []remains
	volumes []claim
}

// remains is what a host's volume says.
type remains struct {
	lv     uuid.UUID
	header layout.HostHeader
	stamp  layout.Stamp
	maps   map[uint32]device // by volume
}

// device is a volume in a host's metadata.
type device struct {
	generation uint64
	runs       []layout.MappingRun // bases unknown
}

// claim is a volume with what it says that it has.
type claim struct {
	id      uuid.UUID
	copies  []layout.MappingCopy // newest first
	mapping layout.Mapping
	next    uint64 // generation
	source  Source
}

func (r *rebuilding) all(ctx context.Context) error {
	for _, step := range []func(context.Context) error{r.frame, r.parts} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	for i := range r.volumes {
		r.volumes[i].judge(r.hosts)
	}
	if err := r.unique(); err != nil {
		return err
	}
	if err := r.compose(); err != nil {
		return err
	}
	return r.write(ctx)
}

// see remembers an epoch.
func (r *rebuilding) see(s layout.Stamp) { r.epoch = max(r.epoch, s.Epoch) }

// still fails if somebody else has made the map anew meanwhile. It is asked before what
// was read is written, and before each change of LVM's metadata.
func (r *rebuilding) still() error {
	now, stamp, err := layout.ReadMap(r.dev, r.Cluster)
	switch {
	case err == nil && now.Claim != r.m.Claim:
		return deposed(stamp, r.epoch)
	case err == nil || errors.Is(err, layout.ErrEmpty):
		return nil
	case !errors.Is(err, layout.ErrDamaged) && !errors.Is(err, layout.ErrInvalid):
		return err
	}
	copies, err := layout.MapCopies(r.dev, r.Cluster)
	for _, c := range copies {
		if c.Stamp.Epoch > r.epoch {
			return deposed(c.Stamp, r.epoch)
		}
	}
	return err
}

// frame is what a copy of the map still says.
func (r *rebuilding) frame(context.Context) error {
	copies, err := layout.MapCopies(r.dev, r.Cluster)
	if err != nil {
		return err
	}
	for _, c := range slices.Backward(copies) { // the newest one last
		r.see(c.Stamp)
		if c.Err == nil {
			r.old = c.Map
		}
	}
	r.m.NextHost, r.m.NextVolume, r.m.NextBase = max(1, r.old.NextHost), max(1, r.old.NextVolume), max(1, r.old.NextBase)
	last, err := r.remembered()
	r.see(layout.Stamp{Epoch: last.Epoch})
	return err
}

// judge decides what a volume has: the metadata of the host that had it last, unless
// a mapping was stored after that. One of the generation right after may be that
// of a detach, which has the same, or of one that was not committed to.
func (c *claim) judge(hosts []remains) {
	newest := c.copies[0]
	c.mapping, c.source, c.next = newest.Mapping, FromStored, newest.Stamp.Generation+1
	var at device
	for _, h := range hosts {
		if d, ok := h.maps[newest.Mapping.Number]; ok && d.generation > at.generation {
			at = d
		}
	}
	if at.generation > 0 && newest.Stamp.Generation <= at.generation+1 {
		c.mapping.Runs, c.source = at.runs, FromMetadata
	}
	c.next = max(c.next, at.generation+1)
}

// unique leaves out what a create left that did not end, and refuses any other two
// volumes of one number.
func (r *rebuilding) unique() error {
	slices.SortFunc(r.volumes, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.mapping.Number, b.mapping.Number), cmp.Compare(b.next, a.next), cmp.Compare(len(b.mapping.Runs), len(a.mapping.Runs)))
	})
	var kept []claim
	for _, c := range r.volumes {
		if r.deleted(c) {
			continue
		}
		if last := len(kept) - 1; last >= 0 && kept[last].mapping.Number == c.mapping.Number {
			if c.copies[0].Stamp.Generation > 1 || len(c.mapping.Runs) > 0 {
				return r.both(kept[last], c, fmt.Sprintf("number %d", c.mapping.Number))
			}
			continue
		}
		kept = append(kept, c)
	}
	r.volumes = kept
	return nil
}

// deleted says whether a copy of the map knows that there is no such volume any more:
// its number was given, to one that it does not have.
func (r *rebuilding) deleted(c claim) bool {
	had := slices.ContainsFunc(r.old.Volumes, func(v layout.VolumeRecord) bool { return v.UUID == c.id })
	return c.mapping.Number < r.old.NextVolume && !had
}

// both says that two volumes claim the same.
func (r *rebuilding) both(a, b claim, what string) error {
	err := failure.New(failure.Problems, "%s and %s both have %s", layout.Thin.Name(a.id), layout.Thin.Name(b.id), what)
	return failure.Hint(err, "find out which one is not needed any more (a volume that was deleted), remove it with `lvremove`, and run `diskhook thin check --rebuild-map --offline` again")
}

// compose makes the map: blocks that several volumes map become a base.
func (r *rebuilding) compose() error {
	var once, more extent.Set
	for _, c := range r.volumes {
		mapped := blocksOf(c.mapping)
		more = more.Union(once.Intersect(mapped))
		once = once.Union(mapped)
	}
	for i, c := range r.volumes {
		// What a stored mapping calls its own nobody else may have.
		if c.source == FromStored && c.mapping.Private().Overlaps(more) {
			for j, other := range r.volumes {
				if i != j && blocksOf(other.mapping).Overlaps(c.mapping.Private()) {
					return r.both(c, other, fmt.Sprintf("blocks %v", blocksOf(other.mapping).Intersect(c.mapping.Private())))
				}
			}
		}
	}
	for _, c := range r.volumes {
		for _, copied := range c.copies {
			for _, run := range copied.Mapping.Runs {
				r.m.NextBase = max(r.m.NextBase, run.Base+1)
			}
		}
	}
	base := r.m.NextBase
	if !more.Empty() {
		r.m.NextBase++
		r.m.Give(more, layout.Owner{Kind: layout.OfBase, Number: base})
	}
	for i := range r.volumes {
		if err := r.add(&r.volumes[i], more, base); err != nil {
			return err
		}
	}
	return r.addHosts()
}

// add gives the map a volume.
func (r *rebuilding) add(c *claim, more extent.Set, base uint32) error {
	c.mapping = relabel(c.mapping, more, base)
	v := layout.VolumeRecord{Number: c.mapping.Number, UUID: c.id, Name: c.id.String(), Size: c.mapping.Size, State: layout.Offline}
	for _, o := range r.old.Volumes {
		if o.UUID == c.id {
			v.Name, v.Size = o.Name, max(v.Size, o.Size)
			c.next = max(c.next, o.Generation+1)
			if o.State == layout.Suspect {
				v.State = layout.Suspect
			}
		}
	}
	for _, run := range c.mapping.Runs { // a volume that was made larger since
		v.Size = max(v.Size, (run.Virtual+run.Length)*r.m.BlockSize)
	}
	c.mapping.Size, v.Generation = v.Size, c.next
	if !c.mapping.Of(base).Empty() {
		v.Bases = []uint32{base}
	}
	r.m.Volumes = append(r.m.Volumes, v)
	r.m.NextVolume = max(r.m.NextVolume, v.Number+1)
	r.m.Give(c.mapping.Private(), layout.Owner{Kind: layout.OfVolume, Number: v.Number})
	r.out.Volumes = append(r.out.Volumes, RebuiltVolume{v.Number, v.Name, c.source})
	return c.mapping.Check()
}

// addHosts gives the map the hosts, none of which has a part in the cluster.
func (r *rebuilding) addHosts() error {
	slices.SortFunc(r.hosts, func(a, b remains) int { return cmp.Compare(a.header.Number, b.header.Number) })
	for _, h := range r.hosts {
		r.m.Hosts = append(r.m.Hosts, layout.HostRecord{
			Number: h.header.Number, UUID: h.lv, Name: h.header.Name, State: layout.Recovered, Evidence: "the map was made anew, with its pool stopped",
		})
		r.m.NextHost = max(r.m.NextHost, h.header.Number+1)
		r.out.Hosts = append(r.out.Hosts, h.header.Name)
	}
	return r.m.Check()
}

// write makes it all count: mappings, headers that no host can go on from, and last
// the map.
func (r *rebuilding) write(ctx context.Context) error {
	if err := r.still(); err != nil {
		return err
	}
	epoch := r.epoch + 1
	s := &session{Master: r.Master, dev: r.dev, m: r.m, stamp: layout.Stamp{Epoch: epoch}}
	for i, c := range r.volumes {
		kept := c.copies[0].Stamp.Generation
		if err := s.storeBeside(ctx, r.m.Volumes[i], kept, c.next, c.mapping); err != nil {
			return err
		}
	}
	for i, h := range r.hosts {
		err := r.onHost(ctx, h.lv, true, func(dev group.Volume) error { return s.seal(dev, r.m.Hosts[i], h.header, h.stamp) })
		if err != nil {
			return err
		}
	}
	if err := r.still(); err != nil {
		return err
	}
	r.m.Claim = uuid.New()
	if err := r.remember(reign{Epoch: epoch, Claim: r.m.Claim}); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.master.rebuild"); err != nil {
		return err
	}
	r.out.Epoch = epoch
	_, err := layout.RestoreMap(s.dev, r.Cluster, epoch, r.m)
	if errors.Is(err, failure.NoSpace) {
		if err = s.widen(ctx); err == nil {
			_, err = layout.RestoreMap(s.dev, r.Cluster, epoch, r.m)
			err = errors.Join(err, s.dev.Close())
		}
	}
	return err
}
