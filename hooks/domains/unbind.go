// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// PlanUnbind works out how to take bindings away that are void: those of a
// cloned definition, and damaged ones. Copies are not touched. A domain that
// has copies of its own is for PlanRevert. One that was moved here may have
// them on another machine: that takes discard, the operator's word that what
// the guest wrote there is given up.
func (s *Service) PlanUnbind(ctx context.Context, name string, discard bool) (*Plan, error) {
	d, err := s.Look(ctx, name)
	damaged := errors.Is(err, xmlrewrite.ErrMetadata)
	if err != nil && !damaged {
		return nil, err
	}
	p := &Plan{Domain: d, After: d.Doc}
	if !damaged && d.Metadata == nil {
		return p, nil
	}
	if err := s.untouchable(d); err != nil {
		return nil, err
	}
	if err := s.idle(ctx, d, d.targets()); err != nil {
		return nil, err
	}
	receipts, err := s.receipts(d)
	if err != nil {
		return nil, err
	}
	if len(receipts) > 0 && !damaged {
		err := failure.New(failure.Conflict, "%s: it has local copies of its own", d)
		return nil, failure.Hint(err, "run `diskhook domain revert %s`", d.NameArg())
	}
	used, err := s.allUsed(d)
	if err != nil && !damaged {
		return nil, err
	}
	if len(used) > 0 && !damaged {
		target := slices.Min(slices.Collect(maps.Keys(used)))
		err := failure.New(failure.Conflict, "%s: disk %s has used %s", d, target, used[target])
		return nil, failure.Hint(err, "run `diskhook domain revert %s`", d.NameArg())
	}
	for target, r := range receipts {
		p.Notes = append(p.Notes, fmt.Sprintf("disk %s: its local copy %s/%s stays", target, r.Home, r.Name))
	}
	p.Notes = append(p.Notes, s.unfinishedOf(ctx, d)...)
	if damaged {
		p.Notes = append(p.Notes, "the metadata are damaged: the disks' sources stay as they are")
		p.After, err = xmlrewrite.Apply(d.Doc, xmlrewrite.RemoveMetadata{})
		return p, err
	}
	if err := s.notMoved(d, receipts, discard, "unbind"); err != nil {
		return nil, err
	}
	var targets []string
	for _, e := range d.Metadata.Disks {
		if bindings.SameDomain(d.Domain) == nil && !discard {
			if err := d.keepsData(e.Target, "revert"); err != nil {
				return nil, err
			}
		}
		targets = append(targets, e.Target)
	}
	return p, s.release(ctx, p, targets)
}

// unfinishedOf says which interrupted copies of the domain nothing would take
// any more: no start, for which they are none's.
func (s *Service) unfinishedOf(ctx context.Context, d Domain) []string {
	entries, err := s.Local.List(ctx)
	if err != nil {
		s.Host.Log.Warn("whether unfinished copies are left was not seen", "err", err)
	}
	var notes []string
	for _, e := range entries {
		if e.Domain == d.UUID && e.Receipt == nil && e.Copy.State == localdisk.Updating {
			notes = append(notes, fmt.Sprintf("disk %s: its unfinished copy %s/%s stays; `diskhook local gc` shows why it may go, and removes it", e.Target, e.Copy.Home, e.Copy.Name))
		}
	}
	return notes
}

// notMoved refuses a domain's own bindings to copies that this host does not
// know. Those of a clone are void wherever they were made.
func (s *Service) notMoved(d Domain, receipts map[string]localdisk.Receipt, discard bool, verb string) error {
	if discard || bindings.SameDomain(d.Domain) != nil {
		return nil
	}
	command := fmt.Sprintf("diskhook domain %s --discard-guest-data %s", verb, d.NameArg())
	for _, e := range d.Metadata.Disks {
		_, filled := receipts[e.Target]
		if err := s.knownHere(d, e.Target, filled, command); err != nil {
			return err
		}
	}
	return nil
}

// Unbind does what a plan of PlanUnbind says.
func (s *Service) Unbind(ctx context.Context, p *Plan) error {
	release, err := s.begin(ctx, p)
	if err != nil {
		return err
	}
	defer release()
	if err := s.quiet(ctx, p.Domain, p.Domain.targets()); err != nil {
		return err
	}
	if err := s.leaveAll(p); err != nil {
		return err
	}
	_, err = s.define(ctx, p)
	return err
}

// PlanRebind works out how to give a cloned definition bindings of its own.
// Its disks are copied again, from the image that the clone names or, if it
// still names the other domain's copy, from that disk's origin.
//
// A definition that was moved here from another machine is bound to this one
// with discard, the operator's word that what the guest wrote there is given
// up.
func (s *Service) PlanRebind(ctx context.Context, name string, discard bool) (*Plan, error) {
	d, err := s.Look(ctx, name)
	if err != nil {
		return nil, err
	}
	p := &Plan{Domain: d, After: d.Doc}
	if d.Metadata == nil {
		err := failure.New(failure.NotFound, "%s: none of its disks is bound", d)
		return nil, failure.Hint(err, "bind them with `diskhook domain apply %s`", d.NameArg())
	}
	receipts, err := s.receipts(d)
	if err != nil {
		return nil, err
	}
	if err := s.notMoved(d, receipts, discard, "rebind"); err != nil {
		return nil, err
	}
	moved := s.notMoved(d, receipts, false, "rebind") != nil
	if p.rebinds = moved || bindings.SameDomain(d.Domain) != nil; p.rebinds {
		if err := s.untouchable(d); err != nil {
			return nil, err
		}
		if err := s.idle(ctx, d, d.targets()); err != nil {
			return nil, err
		}
		for _, e := range d.Metadata.Disks {
			if disk, ok := d.Disk(e.Target); ok && disk.Path == e.Source {
				p.Notes = append(p.Notes, fmt.Sprintf("disk %s: its copy starts from %s; what domain %s wrote since is not in it", e.Target, originOf(e), failure.OneLine(d.Metadata.Domain)))
			}
		}
		host, err := s.hostFor(ctx, d, nil)
		if err != nil {
			return nil, err
		}
		if p.After, err = host.Refresh(d.Doc, nil); err != nil {
			return nil, err
		}
		if p.After, err = host.Rebind(p.After); err != nil {
			return nil, err
		}
	}
	if err := s.planFill(ctx, p); err != nil {
		return nil, err
	}
	return p, s.planRoom(ctx, p)
}

func originOf(e xmlrewrite.BoundDisk) string {
	origin, err := e.OriginDisk()
	if err != nil {
		return "its origin"
	}
	return origin.Source.String()
}
