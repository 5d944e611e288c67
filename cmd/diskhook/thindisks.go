// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/host"
	"diskhook/storage/localdisk"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/member"
)

func thinFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "thin", Usage: "make a disk a volume of a thin cluster: `DISK`=VOLUME[,cluster=NAME] (repeatable)"}
}

// thinDisks are the thin clusters of this host, as bindings and localdisk need them. A cluster is
// opened for one call: only a domain with such a disk needs what that takes.
type thinDisks struct {
	p      *program
	config host.Config
	log    *slog.Logger
}

// Cluster is bindings.Thin's. It reads definitions alone.
func (t thinDisks) Cluster(name string) (string, error) {
	d, err := cluster.Choose(t.p.layout, t.config.Thin, name)
	return d.Name, err
}

// Path is bindings.Thin's.
func (t thinDisks) Path(cluster, volume string) string {
	return filepath.Join(thinLinks(t.p.layout), cluster, volume)
}

// member is this host in a cluster.
func (t thinDisks) member(ctx context.Context, name string) (*member.Member, error) {
	d, err := cluster.Load(t.p.layout, name)
	if err != nil {
		return nil, err
	}
	opened := t.p.openCluster(t.config, d)
	opened.log = t.log
	m, err := opened.member(ctx)
	if err == nil {
		m.Deadline = patienceWithin(ctx)
	}
	return m, err
}

// Pool is localdisk.Pools'.
func (t thinDisks) Pool(ctx context.Context, cluster string) (localdisk.Pool, error) {
	return t.member(ctx, cluster)
}

// patienceWithin is how long to wait for the master at a time: a verb asks it up to
// three times, and something has to be left to say so.
func patienceWithin(ctx context.Context) time.Duration {
	end, bounded := ctx.Deadline()
	if !bounded {
		return masterDeadline
	}
	return min(masterDeadline, time.Until(end)/4)
}

// There is bindings.Thin's. It needs no host that has joined the cluster.
func (t thinDisks) There(ctx context.Context, name, volume string) error {
	d, err := cluster.Load(t.p.layout, name)
	if err != nil {
		return err
	}
	known, err := t.p.openCluster(t.config, d).readMap(ctx)
	if err == nil {
		_, err = cluster.Volume(known, volume)
	}
	return err
}

// Preview is bindings.Thin's.
func (t thinDisks) Preview(ctx context.Context, cluster, volume, domain string) (member.Preview, error) {
	m, err := t.member(ctx, cluster)
	if err != nil {
		return member.Preview{}, err
	}
	return m.Preview(ctx, volume, domain)
}

// Claim is bindings.Thin's.
func (t thinDisks) Claim(ctx context.Context, cluster, volume, domain string) (string, error) {
	m, err := t.member(ctx, cluster)
	if err != nil {
		return "", err
	}
	return m.Claim(ctx, volume, domain)
}

// Reclaim is bindings.Thin's.
func (t thinDisks) Reclaim(ctx context.Context, cluster, volume, domain string) error {
	m, err := t.member(ctx, cluster)
	if err != nil {
		return err
	}
	return m.Reclaim(ctx, volume, domain)
}

// Release is bindings.Thin's. Without a claim of the domain it asks nobody.
func (t thinDisks) Release(ctx context.Context, cluster, volume, domain string) error {
	claims, err := claim.Open(t.p.layout, cluster)
	if err != nil {
		return err
	}
	if last, err := claims.Last(volume); err != nil || last == nil || last.Domain != domain {
		return err
	}
	m, err := t.member(ctx, cluster)
	if err != nil {
		return errors.Join(err, t.endClaim(ctx, cluster, volume, domain))
	}
	return m.Release(ctx, volume, domain)
}

// endClaim is Release where the disk does not answer.
func (t thinDisks) endClaim(ctx context.Context, name, volume, domain string) error {
	d, err := cluster.Load(t.p.layout, name)
	if err != nil {
		return err
	}
	here, err := t.p.openCluster(t.config, d).local()
	if err != nil {
		return err
	}
	return here.EndClaim(ctx, volume, domain)
}

// ReleaseRest is bindings.Thin's.
func (t thinDisks) ReleaseRest(ctx context.Context, domain string) error {
	clusters, err := claim.Clusters(t.p.layout)
	failed := []error{err}
	for _, name := range clusters {
		claims, err := claim.Open(t.p.layout, name)
		var volumes []string
		if err == nil {
			volumes, err = claims.Volumes()
		}
		failed = append(failed, err)
		for _, volume := range volumes {
			if err := t.Release(ctx, name, volume, domain); err != nil {
				failed = append(failed, fmt.Errorf("volume %s/%s: %w", name, volume, err))
			}
		}
	}
	return errors.Join(failed...)
}
