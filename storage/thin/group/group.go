// SPDX-License-Identifier: Apache-2.0

// Package group is the shared volume group of a thin cluster, as one host sees it:
// the logical volumes that package layout names, made, opened and removed.
//
// The group is one of lvmlockd(8), or a plain one on a shared LUN that every host
// sees. In both only the cluster's master makes, extends and removes volumes; the
// others activate and read what is there, so that nobody overwrites LVM's
// metadata with an older view of them. A host may have a volume active that the
// master extended or removed since: Open compares lengths and refreshes, and asks
// the group first whether the volume is still there.
//
// Everything that several hosts look at is activated shared: the master reads the
// requests in every UUID.host, and hosts read hosts and UUID.thin. Only UUID.raw
// and UUID.vhd, which a guest writes, are activated exclusively. That no two hosts
// write one volume's metadata is kept by the map and by fencing. A group of lvmlockd
// extends and removes nothing that a host has active: what is active all the time, as
// hosts and UUID.host are, is extended there only while the cluster is stopped.
//
// What the cluster makes carries the cluster's tag. A volume that has one of its
// names without it is somebody else's and is refused.
package group

import (
	"context"
	"errors"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// Volume is an open volume of the group. Name is its path.
type Volume interface {
	layout.Device
	Close() error
}

// LV is what the group knows of a volume.
type LV struct {
	Name   string
	Bytes  uint64
	Active *bool // on this host; nil where nobody can tell
	// Foreign ones have a name of the cluster's, and are not of it.
	Foreign bool
}

// Group is the shared volume group. Names are those of package layout; any other
// is failure.Usage. Sizes are bytes and are rounded up as the group needs it.
type Group interface {
	// Open makes a volume's device here, of its present length, and opens it. One
	// that is not there is failure.NotFound.
	Open(ctx context.Context, name string, write bool) (Volume, error)
	// Path is the device node of a volume that is active.
	Path(name string) string
	// Create makes a volume of at least so many bytes, empty as layout.Wipe makes
	// it. One that the cluster made before stays as it is, but is extended where
	// it is smaller. Somebody else's is a failure.Conflict. For the master only.
	Create(ctx context.Context, name string, bytes uint64) error
	// Extend makes a volume at least so long. For the master only.
	Extend(ctx context.Context, name string, bytes uint64) error
	// Remove removes a volume that nobody has open; one that is gone is fine. For
	// the master only.
	Remove(ctx context.Context, name string) error
	// Deactivate takes a volume's device away from this host, if there is one.
	Deactivate(ctx context.Context, name string) error
	// List is every volume with a name of package layout, by name.
	List(ctx context.Context) ([]LV, error)
	// Free is how many bytes are left for volumes.
	Free(ctx context.Context) (uint64, error)
}

// With opens a volume for the time of do. The device of a UUID.thin goes away
// after it, as there may be thousands of them and the master has to be able to
// remove any; unless somebody else on this host has it open.
func With(ctx context.Context, g Group, name string, write bool, do func(Volume) error) error {
	v, err := g.Open(ctx, name, write)
	if err != nil {
		return err
	}
	err = errors.Join(do(v), v.Close())
	if _, suffix, _ := layout.ParseName(name); suffix != layout.Thin {
		return err
	}
	if gone := g.Deactivate(context.WithoutCancel(ctx), name); !errors.Is(gone, failure.Conflict) {
		err = errors.Join(err, gone)
	}
	return err
}

// Glance opens for reading what is active of a volume here, as it is, and asks the group
// nothing. It may be shorter than the group has it by now, or no more be there for the
// group: for who reads from it what says by itself whether it counts, again and again,
// and goes to Open where it does not.
func Glance(g Group, name string) (Volume, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	v, err := layout.Open(g.Path(name), false)
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Guarded is a group that asks may right before each change of LVM's metadata, and
// makes none if that fails. A group that is not lvmlockd's has nothing else that keeps
// a master which was paused, and has a successor by now, from writing an old view of
// them. What remains is the time that one command of LVM takes: a host that stops
// in the middle of one and goes on after its successor's first change must be
// fenced, or the group be one of lvmlockd.
func Guarded(g Group, may func() error) Group {
	if own, ok := g.(interface{ guarded(func() error) Group }); ok {
		return own.guarded(may)
	}
	return guard{g, may}
}

type guard struct {
	Group
	may func() error
}

func (g guard) Create(ctx context.Context, name string, bytes uint64) error {
	if err := g.may(); err != nil {
		return err
	}
	return g.Group.Create(ctx, name, bytes)
}

func (g guard) Extend(ctx context.Context, name string, bytes uint64) error {
	if err := g.may(); err != nil {
		return err
	}
	return g.Group.Extend(ctx, name, bytes)
}

func (g guard) Remove(ctx context.Context, name string) error {
	if err := g.may(); err != nil {
		return err
	}
	return g.Group.Remove(ctx, name)
}

// Lost is an error of who opened the map and read it, with the way out where the map is
// not there, or empty, and was there: the group has volumes that only a cluster with a
// map gets. No cluster can be begun then.
func Lost(ctx context.Context, g Group, err error) error {
	if !errors.Is(err, failure.NotFound) && !errors.Is(err, layout.ErrEmpty) {
		return err
	}
	list, unseen := g.List(ctx)
	if unseen != nil {
		return err // which says enough
	}
	for _, lv := range list {
		if _, suffix, _ := layout.ParseName(lv.Name); !lv.Foreign && (suffix == layout.Host || suffix == layout.Thin) {
			return failure.Hint(err, "the map is lost, and %s is there: run `diskhook thin stop` on every host, then `diskhook thin check --rebuild-map --offline` on one of them", lv.Name)
		}
	}
	return err
}

// check refuses names that no cluster has.
func check(name string) error {
	if _, _, ok := layout.ParseName(name); !ok && name != layout.MapName && name != layout.DataName {
		return failure.New(failure.Usage, "volume %q: no volume of a thin cluster has such a name", name)
	}
	return nil
}

// absent says that a volume is not there.
func absent(object string) error {
	err := failure.New(failure.NotFound, "%s: there is no such volume", object)
	return failure.Hint(err, "see `diskhook thin status` and `lvs`; a cluster begins with `diskhook thin init-cluster`")
}
