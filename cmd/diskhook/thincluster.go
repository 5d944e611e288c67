// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/master"
)

func thinClusterVerbs(p *program) []*cli.Command {
	return []*cli.Command{
		p.verb("init-cluster", "make a cluster of an empty volume group, with this host as its master", "CLUSTER", thinInitCluster,
			&cli.StringFlag{Name: "vg", Usage: "the shared volume group `VG`"},
			&cli.StringFlag{Name: "dir", Usage: "a directory `DIR` of files instead, to try things: no host can start on it"},
			&cli.StringFlag{Name: "capacity", Usage: "with --dir: let its files have `SIZE` together"},
			&cli.StringFlag{Name: "size", Aliases: []string{"s"}, Usage: "give volumes `SIZE` together (default: nine tenths of what is free, less in a small group)"},
			&cli.StringFlag{Name: "block-size", Usage: "allocate in blocks of `SIZE`, a multiple of 64K (default: by the size)"},
			dryRunFlag()),
		p.thinVerb("init-host", "let a host into the cluster, this one by default (on the master)", "[HOST]", thinInitHost,
			&cli.BoolFlag{Name: "rejoin", Usage: "also one that was in it before: it was fenced, or left, and its pool does not run"},
			dryRunFlag()),
	}
}

func thinInitCluster(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	words, err := operands(c, "CLUSTER")
	if err != nil {
		return err
	}
	config, err := p.config()
	if err != nil {
		return err
	}
	d, err := newDefinition(p, c, words[0])
	if err != nil {
		return err
	}
	var shape master.Shape
	for flag, into := range map[string]*uint64{"size": &shape.Bytes, "block-size": &shape.BlockSize} {
		if *into, err = sizeFlag(c, flag); err != nil {
			return err
		}
	}
	t := p.openCluster(config, d)
	if _, is, err := t.master().Reigns(c.Context); err == nil && is {
		if err := t.hasShape(c.Context, shape); err != nil {
			return err
		}
		return p.change(f, c.Bool("dry-run"), thinClusterNamed(d.Name), nil, nil) // it is made
	}
	shape, err = t.master().Plan(c.Context, shape)
	switch {
	case errors.Is(err, lvm.ErrNoVG):
		return failure.Hint(err, "make it of the LUN with `vgcreate %s DEVICE`; if it is there, look why LVM does not see it (`pvs -a`)", d.VG)
	case err != nil:
		return err
	}
	steps := []string{
		"# write " + filepath.Join(p.layout.Definitions("clusters"), d.Name+".json"),
		fmt.Sprintf("# make %s of %s and %s in %s", layout.DataName, size(int64(shape.Bytes)), layout.MapName, d.VG+d.Dir),
	}
	return p.change(f, c.Bool("dry-run"), thinClusterNamed(d.Name), steps, func() (string, error) {
		_, err := cluster.Load(p.layout, d.Name)
		fresh := errors.Is(err, failure.NotFound)
		// The definition first: with its UUID a second try goes on with what there is.
		if err := cluster.Save(p.layout, d); err != nil {
			return "", err
		}
		g, err := t.master().Init(c.Context, shape)
		if fresh && errors.Is(err, layout.ErrExists) { // nothing was made
			err = errors.Join(err, cluster.Forget(p.layout, d.Name))
		}
		if err != nil {
			return "", err
		}
		left, err := t.group.Free(c.Context)
		return fmt.Sprintf("made: %d blocks of %s, %s together, and %s are left for hosts and volumes; this host is its master",
			g.Blocks, size(int64(g.BlockSize)), size(int64(g.Blocks*g.BlockSize)), size(int64(left))), err
	})
}

// hasShape refuses what this cluster was not made as. One that has more than was asked
// for may have grown since.
func (t *thinCluster) hasShape(ctx context.Context, asked master.Shape) error {
	m, err := t.readMap(ctx)
	switch {
	case err != nil:
		return err
	case asked.BlockSize != 0 && asked.BlockSize != m.BlockSize:
		err := failure.New(failure.Conflict, "cluster %s: it is made, with blocks of %s", t.Name, size(int64(m.BlockSize)))
		return failure.Hint(err, "they stay as they are; another cluster may have other ones, and take volumes with `diskhook thin import --from %s`", t.Name)
	case asked.Bytes >= m.Bytes()+m.BlockSize:
		err := failure.New(failure.Conflict, "cluster %s: it is made, with %s for volumes together", t.Name, size(int64(m.Bytes())))
		return failure.Hint(err, "run `diskhook thin grow --size SIZE`")
	}
	return nil
}

// thinNewcomer is what the master would refuse.
func thinNewcomer(m layout.Map, n master.Newcomer) error {
	if _, _, err := ledger.Join(m, n.UUID, n.Name); err != nil {
		return err
	}
	h, err := cluster.Host(m, n.Name)
	if err != nil || h.State != layout.Recovered || n.Rejoin {
		return nil //nolint:nilerr // it was never there
	}
	return master.Former(h)
}

// newDefinition is that of an earlier try, or a new one.
func newDefinition(p *program, c *cli.Context, name string) (cluster.Definition, error) {
	vg, dir := c.String("vg"), c.String("dir")
	if dir != "" {
		var err error
		if dir, err = absolute(dir); err != nil {
			return cluster.Definition{}, err
		}
	}
	d, err := cluster.Load(p.layout, name)
	switch {
	case errors.Is(err, failure.NotFound):
		d = cluster.New(name)
		d.VG, d.Dir = vg, dir
		if d.Capacity, err = sizeFlag(c, "capacity"); err != nil {
			return d, err
		}
		if (dir != "") != (d.Capacity > 0) {
			return d, see(c, failure.New(failure.Usage, "cluster %s: --capacity is for --dir, which needs it", name))
		}
		if err := d.Check(); err != nil {
			return d, see(c, failure.New(failure.Usage, "cluster %s: %w", name, err))
		}
	case err != nil:
		return d, err
	case vg != d.VG || dir != d.Dir:
		err := failure.New(failure.Conflict, "cluster %s: it is defined on this host with %s", name, d.VG+d.Dir)
		return d, failure.Hint(err, "give it another name, or see `diskhook thin status --cluster %s`", name)
	}
	return d, nil
}

// sizeFlag is what a flag says in bytes; 0 if it is not given.
func sizeFlag(c *cli.Context, name string) (uint64, error) {
	if !c.IsSet(name) {
		return 0, nil
	}
	n, err := host.ParseSize(c.String(name))
	if err == nil && n <= 0 {
		err = failure.New(failure.Usage, "%q is not positive", c.String(name))
	}
	if err != nil {
		return 0, fmt.Errorf("--%s: %w", name, err)
	}
	return uint64(n), nil
}

func thinInitHost(p *program, c *cli.Context) error {
	f, t, m, now, words, err := masterArgs(p, c, "[HOST]")
	if err != nil {
		return err
	}
	name := words[0]
	if name == "" {
		if name, err = t.ThisHost(); err != nil {
			return err
		}
	}
	if !layout.ValidName(name) {
		err := failure.New(failure.Usage, "%q is no name for a host", name)
		return failure.Hint(err, "use letters, digits, dot, _ and -, at most 63 of them")
	}
	// By its name, so that a second try finds what the first has made.
	n := master.Newcomer{UUID: uuid.NewSHA1(t.UUID, []byte(name)), Name: name, Rejoin: c.Bool("rejoin")}
	record, err := cluster.Host(now, name)
	there := err == nil && record.State == layout.Member
	if err == nil {
		n.UUID = record.UUID
	}
	steps := []string{fmt.Sprintf("# make %s for host %s, and note it in the map", layout.Host.Name(n.UUID), name)}
	if c.Bool("dry-run") {
		if err := thinNewcomer(now, n); err != nil {
			return err
		}
		if there {
			steps = nil
		}
	}
	return p.change(f, c.Bool("dry-run"), thinHost(name), steps, func() (string, error) {
		number, err := m.Join(c.Context, n)
		return fmt.Sprintf("host %d of cluster %s: run `diskhook thin start` on it", number, t.Name), err
	})
}
