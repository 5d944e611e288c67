// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

// Which disks replica sets are bound to, and what the sets know of it.

// targetsOf are the targets of a domain that are bound to a set.
func targetsOf(set string, f Facts) []string {
	var targets []string
	_, entries := f.bound()
	for _, e := range entries {
		if e.Quorum != nil && e.Quorum.Set == set {
			targets = append(targets, failure.OneLine(e.Target))
		}
	}
	return targets
}

// Unbound refuses a set that is to be removed while it has what a guest wrote,
// or while a domain of this host is bound to it. Where libvirt cannot be asked,
// as on a host of oVirt, receipts and the set itself tell of the former.
func (s *Service) Unbound(ctx context.Context, set quorum.Set) error {
	if err := set.Unwritten(); err != nil {
		return err
	}
	uses, err := bindings.AllQuorumUses(s.Host.Layout)
	if err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	for _, u := range uses {
		if u.Set != set.Name || u.Of(set) != nil {
			continue
		}
		set.User = &quorum.Use{Domain: u.Domain, Name: u.DomainName, Target: u.Target, Key: u.Key}
		return set.Unwritten()
	}
	domains, err := s.Libvirt.List(ctx, true)
	if err != nil {
		s.Host.Log.Info("whether a domain is bound to the set was not asked", "set", set.Name, "err", err)
	}
	for _, f := range domains {
		for _, target := range targetsOf(set.Name, f) {
			err := failure.New(failure.Conflict, "%s: disk %s of domain %s is bound to it", &set, target, failure.OneLine(f.Name))
			return failure.Hint(err, "end that with `diskhook domain revert %s %s`, then run this again", failure.OneLine(f.Name), target)
		}
	}
	return nil
}

// noteBound has the sets know to which disks they were found equal: their first
// start asks for that. It comes after the definition, for until then the guest
// may still write to what the disk was.
func (s *Service) noteBound(ctx context.Context, p *Plan) error {
	for _, b := range p.binds {
		before, held := p.sources[b.Disk.Target]
		if !held || slices.Contains(p.truths, b.Disk.Target) {
			continue
		}
		layers, err := s.chainOf(ctx, b)
		if err == nil {
			err = s.Quorum.Bound(ctx, b.Binding.Value, quorumUse(p.Domain, b.Disk.Target), layers, before)
		}
		if err != nil {
			return fmt.Errorf("%s is bound, but disk %s: %w", p.Domain, b.Disk.Target, err)
		}
	}
	return nil
}

// leave takes that back for a disk.
func (k replicas) leave(d Domain, e xmlrewrite.BoundDisk) error {
	if e.Quorum == nil {
		return nil
	}
	return k.Quorum.Unbound(e.Quorum.Set, quorumUse(d, e.Target))
}

// quorumUse is a disk as sets know it; on libvirt it is found by its target.
func quorumUse(d Domain, target string) quorum.Use {
	return quorum.Use{Domain: d.UUID, Name: d.Name, Target: target, Key: target}
}
