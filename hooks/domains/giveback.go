// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

// Revert does what a plan of PlanRevert says: export, look again, define,
// remove. Until the definition changes nothing has happened but for exported
// files. From then on a copy that a guest used has a receipt but no binding,
// which vetoes the start until the copy is gone; so a crash in between leads
// to no older data, and the same command goes on.
//
// A copy is given up only as far as the operator said. One that a guest used
// meanwhile is refused, and its disk stays bound.
func (s *Service) Revert(ctx context.Context, p *Plan, notify progress.Func) error {
	release, err := s.begin(ctx, p)
	if err != nil {
		return err
	}
	defer release()
	for _, e := range p.Exports {
		if e.Set != "" {
			if err := s.exportReplicas(ctx, e, notify); err != nil {
				return err
			}
			continue
		}
		if err := s.Local.Export(ctx, p.Domain.UUID, e.Target, localdisk.ExportOptions{To: e.To, Format: ExportFormat(e.To), Progress: notify}); err != nil {
			return err
		}
	}
	if err := s.asPlanned(ctx, p); err != nil {
		return err
	}
	if err := s.leaveAll(p); err != nil {
		return err
	}
	stored, err := s.define(ctx, p)
	if err != nil {
		return err
	}
	for i, r := range p.Remove {
		err := s.Local.Remove(ctx, r.Domain, r.Key(), p.giveUp(r))
		if err != nil && !errors.Is(err, failure.NotFound) {
			return s.keep(context.WithoutCancel(ctx), p, stored, p.Remove[i:], err)
		}
	}
	s.removeUnfinished(ctx, p)
	return s.forgetReplicas(p)
}

// removeUnfinished removes copies that were interrupted: the domain goes on
// without them, so a disk that is bound again is not the one they are of. What
// stays is for gc.
func (s *Service) removeUnfinished(ctx context.Context, p *Plan) {
	for _, target := range p.released {
		e := p.Domain.entry(target)
		if e == nil || e.Local == nil {
			continue
		}
		disk := localdisk.Disk{Domain: p.Domain.UUID, DomainName: p.Domain.Name, Target: target, Backend: e.Local.Backend, OnStop: localdisk.Keep}
		if err := s.Local.RemoveUnfinished(ctx, disk); err != nil {
			s.Local.Log.Warn("remove an unfinished copy", "disk", disk.String(), "err", err)
		}
	}
}

// giveUp is what the operator said of one copy. What is in a file now is not
// lost with the copy.
func (p *Plan) giveUp(r localdisk.Receipt) localdisk.GiveUp {
	_, exported := p.exported[r.Target]
	return localdisk.GiveUp{DiscardGuestData: p.discard || exported}
}

// asPlanned refuses to go on when a copy is no longer what the plan was made
// for. Whoever starts the domain after this look finds it defined anew.
func (s *Service) asPlanned(ctx context.Context, p *Plan) error {
	if err := s.quiet(ctx, p.Domain, p.released); err != nil {
		return err
	}
	now, err := s.receipts(p.Domain)
	if err != nil {
		return err
	}
	planned := map[string]localdisk.Receipt{}
	for _, r := range p.Remove {
		planned[r.Target] = r
	}
	for _, target := range p.released {
		was, had := planned[target]
		is, has := now[target]
		if !has {
			continue // somebody removed it, and had to say what becomes of its data
		}
		if !had || is.Copy != was.Copy || is.Used && !was.Used && !p.discard {
			err := failure.New(failure.Temporary, "%s: disk %s: its local copy was made or used while this worked on it", p.Domain, target)
			return failure.Hint(err, "run this again")
		}
		if err := s.Local.MayGiveUp(is, p.giveUp(is)); err != nil {
			return err
		}
	}
	return nil
}

// keep binds the disks again whose copies were not removed. One whose removal
// began is given up for good; it stays as defined, and the same command goes on.
func (s *Service) keep(ctx context.Context, p *Plan, stored Domain, left []localdisk.Receipt, cause error) error {
	receipts, err := s.receipts(p.Domain)
	if err != nil {
		return errors.Join(cause, err)
	}
	if r, there := receipts[left[0].Target]; !there || r.Discarding {
		return cause
	}
	free := slices.DeleteFunc(slices.Clone(p.released), func(target string) bool {
		return slices.ContainsFunc(left, func(r localdisk.Receipt) bool { return r.Target == target })
	})
	doc, _, err := s.without(p, free)
	if err == nil {
		doc, err = s.numbered(ctx, p.Domain, doc)
	}
	if err == nil {
		var now Domain
		if now, err = s.Look(ctx, stored.UUID); err == nil && !bytes.Equal(now.Doc.Bytes(), stored.Doc.Bytes()) {
			err = errors.New("somebody changed it meanwhile")
		}
	}
	if err == nil {
		err = s.Libvirt.Define(ctx, doc.Bytes())
	}
	if err != nil {
		return fmt.Errorf("%w; and the disk cannot be bound again: %w", cause, err)
	}
	return cause
}
