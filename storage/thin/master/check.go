// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// Finding is something that is not as it should be.
type Finding struct {
	Object string `json:"object"`         // "map", "volume NAME", "host NAME", "lv NAME"
	Rule   int    `json:"rule,omitempty"` // of package invariant
	Text   string `json:"text"`
	Hint   string `json:"hint,omitempty"`
}

// CheckOptions say what Check may look at.
type CheckOptions struct {
	// Offline says that no host has a pool, so that the metadata of all can be read;
	// otherwise only those of fenced hosts are.
	Offline bool
	// Images are what is known of hosts' metadata from elsewhere, by number: this
	// host's own, read through a metadata snapshot.
	Images map[uint32]invariant.Image
}

// Check looks at everything on the group: whether each part can be read, whether
// they agree (package invariant), and what nobody refers to. It changes nothing,
// and every host may do it; what a master does at the same time may be found half
// done. An error says that it could not look.
func (m *Master) Check(ctx context.Context, o CheckOptions) ([]Finding, error) {
	var c checking
	err := m.locked(ctx, func() error {
		err := m.read(ctx, false, func(s *session) error {
			c = checking{session: s, o: o, cluster: invariant.Cluster{Map: s.m, Mappings: map[uint32]layout.Mapping{}, Images: map[uint32]invariant.Image{}}}
			return c.all(ctx)
		})
		if failure.KindOf(err) == failure.Problems {
			c.found("map", 0, err) // it cannot be read, and all else follows from it
			return nil
		}
		return err
	})
	return c.findings, err
}

// checking is a Check that runs.
type checking struct {
	*session
	o        CheckOptions
	cluster  invariant.Cluster
	findings []Finding
}

func (c *checking) found(object string, rule int, err error) {
	c.findings = append(c.findings, Finding{object, rule, failure.OneLine(err.Error()), failure.HintOf(err)})
}

func (c *checking) all(ctx context.Context) error {
	for _, look := range []func(context.Context) error{c.label, c.volumes, c.hosts, c.strays} {
		if err := errors.Join(look(ctx), ctx.Err()); err != nil {
			return err
		}
	}
	for _, v := range invariant.Check(c.cluster) {
		c.findings = append(c.findings, Finding{Object: "cluster", Rule: v.Rule, Text: v.Text})
	}
	return nil
}

func (c *checking) label(ctx context.Context) error {
	err := group.With(ctx, c.Group, layout.DataName, false, func(dev group.Volume) error {
		g, err := layout.ReadLabel(dev, c.Cluster)
		if err == nil && g != c.m.Geometry {
			err = failure.New(failure.Problems, "%s: its label says %d blocks of %d bytes, the map %d of %d", dev.Name(), g.Blocks, g.BlockSize, c.m.Blocks, c.m.BlockSize)
			err = failure.Hint(err, "run `diskhook thin grow`")
		}
		return err
	})
	return c.take("lv "+layout.DataName, err)
}

// take makes a finding of an error that says something about the group, and gives
// back one that says that it cannot be seen.
func (c *checking) take(object string, err error) error {
	if err == nil {
		return nil
	}
	if kind := failure.KindOf(err); kind == nil || kind == failure.Temporary {
		return fmt.Errorf("%s: %w", object, err)
	}
	c.found(object, 0, err)
	return nil
}

func (c *checking) volumes(ctx context.Context) error {
	for _, v := range c.m.Volumes {
		stored, err := c.mapping(ctx, v, v.Stored())
		if err == nil {
			c.cluster.Mappings[v.Number] = stored
		}
		if v.State == layout.Suspect {
			err = failure.New(failure.Problems, "it is suspect: what its host wrote last may be lost")
			err = failure.Hint(err, "export and examine it, then run `diskhook thin attach --suspect %s`", v.Name)
		}
		if err := c.take("volume "+v.Name, err); err != nil {
			return err
		}
	}
	return nil
}

func (c *checking) hosts(ctx context.Context) error {
	for _, h := range c.m.Hosts {
		if h.State == layout.Recovered {
			continue
		}
		err := c.onHost(ctx, h.UUID, false, func(dev group.Volume) error { return c.host(ctx, dev, h) })
		if h.State == layout.Fenced && err == nil {
			err = failure.New(failure.Problems, "it is fenced (%s), and its volumes wait", h.Evidence)
			err = failure.Hint(err, "run `diskhook thin recover %s` on the master", h.Name)
		}
		if err := c.take("host "+h.Name, err); err != nil {
			return err
		}
	}
	return nil
}

func (c *checking) host(ctx context.Context, dev group.Volume, h layout.HostRecord) error {
	header, _, err := layout.ReadHost(dev, c.Cluster, h.UUID)
	if err != nil {
		return err
	}
	switch {
	case header.Number != h.Number:
		err = failure.New(failure.Problems, "%s: it is of host %d, the map has host %d", dev.Name(), header.Number, h.Number)
	case header.Sequence < h.Sequence:
		err = failure.New(failure.Problems, "%s: its last request is %d, the map has one more recent, %d", dev.Name(), header.Sequence, h.Sequence)
	}
	if err != nil {
		return failure.Hint(err, "fence the host, run `diskhook thin recover %s`, then `diskhook thin init-host --rejoin %s`", h.Name, h.Name)
	}
	if image, ok := c.o.Images[h.Number]; ok {
		c.cluster.Images[h.Number] = image
		return nil
	}
	if !c.o.Offline && h.State != layout.Fenced {
		return nil
	}
	return c.image(ctx, window{dev, header.Windows[header.Active]}, h)
}

// image reads a host's metadata, as thin_check does, and for what they say.
func (c *checking) image(ctx context.Context, active window, h layout.HostRecord) error {
	if err := sound(ctx, active); err != nil {
		if !errors.Is(err, metadata.ErrDamaged) {
			return err
		}
		return unreadable(h, err)
	}
	reader, err := metadata.Open(active)
	if err != nil {
		return err
	}
	c.cluster.Images[h.Number], err = handover.Image(ctx, reader)
	return err
}

// strays are volumes that nobody refers to.
func (c *checking) strays(ctx context.Context) error {
	list, err := c.Group.List(ctx)
	if err != nil {
		return err
	}
	for _, lv := range list {
		id, suffix, _ := layout.ParseName(lv.Name)
		err := failure.New(failure.Problems, "the map does not have it")
		switch {
		case suffix == layout.Thin && !slices.ContainsFunc(c.m.Volumes, func(v layout.VolumeRecord) bool { return v.UUID == id }):
			c.found("lv "+lv.Name, 0, failure.Hint(err, "run `diskhook thin gc` on the master"))
		case suffix == layout.Host && !slices.ContainsFunc(c.m.Hosts, func(h layout.HostRecord) bool { return h.UUID == id }):
			c.found("lv "+lv.Name, 0, failure.Hint(err, "run `diskhook thin init-host` again on the master, or remove it with `lvremove`"))
		}
	}
	return nil
}
