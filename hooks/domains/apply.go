// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// PlanApply works out how to bind disks of a domain. written are the bindings
// of the command line; rules of the configuration are added here, and count
// less. With refresh, disks whose source is no longer what was recorded are
// pointed at their copies again; the source is checked as if bound for the
// first time.
//
// A domain that is bound already, as asked, gives a plan that changes nothing
// (or goes on where an earlier apply ended).
func (s *Service) PlanApply(ctx context.Context, name string, written []bindings.Binding, refresh bool) (*Plan, error) {
	d, err := s.Look(ctx, name)
	if err != nil {
		return nil, err
	}
	p := &Plan{Domain: d, After: d.Doc}
	bound, err := s.rewrite(ctx, p, written, refresh)
	if err != nil {
		return nil, err
	}
	if err := s.planFill(ctx, p); err != nil {
		return nil, err
	}
	if err := s.recordCopies(p); err != nil {
		return nil, err
	}
	if !p.Changes() {
		return p, nil
	}
	if err := s.untouchable(d); err != nil {
		return nil, err
	}
	p.binds = slices.Clone(p.foreign)
	for _, b := range bound {
		if b.Recorded == nil {
			p.binds = append(p.binds, b)
		}
	}
	if err := s.unbindable(ctx, d, p.binds); err != nil {
		return nil, err
	}
	if p.sources, err = s.fingerprints(ctx, d, p.binds); err != nil {
		return nil, err
	}
	if p.truths, err = s.replicasCurrent(ctx, d, p.binds); err != nil {
		return nil, err
	}
	p.Notes = append(p.Notes, s.notes(p)...)
	return p, s.planRoom(ctx, p)
}

// rewrite makes the definition that the plan is for, and says what it binds.
func (s *Service) rewrite(ctx context.Context, p *Plan, written []bindings.Binding, refresh bool) ([]bindings.Bound, error) {
	d := p.Domain
	var err error
	if refresh {
		err = s.refresh(ctx, p)
	} else {
		err = s.undrifted(ctx, d)
	}
	if err == nil {
		err = s.bindAgain(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	rules, err := bindings.FromRules(s.Host.Config.Rules, d.Domain)
	if err != nil {
		return nil, err
	}
	host, err := s.hostFor(ctx, d, written)
	if err != nil {
		return nil, err
	}
	r, err := host.Rewrite(p.After, append(written, rules...))
	if err != nil {
		return nil, err
	}
	if len(r.Bound) == 0 {
		return nil, nothingToBind(d, r.Skipped)
	}
	p.After, p.Skipped = r.After, r.Skipped
	return r.Bound, nil
}

func nothingToBind(d Domain, skipped []bindings.Skipped) error {
	err := failure.New(failure.Usage, "%s: neither a flag nor a rule binds any of its disks", d)
	if len(skipped) > 0 {
		err = failure.New(failure.Usage, "%s: none of its disks can be bound: disk %s: %s", d, failure.OneLine(skipped[0].Target), skipped[0].Why)
	}
	return failure.Hint(err, "name disks, as in `diskhook domain apply --local vda=lvmthin %s`, or all of them with --local '*'", d.NameArg())
}

// undrifted refuses a domain whose disks are no longer what was recorded.
func (s *Service) undrifted(ctx context.Context, d Domain) error {
	if d.Metadata == nil || bindings.SameDomain(d.Domain) != nil {
		return nil // a clone is refused where its metadata are used
	}
	bound, _, err := bindings.Resolve(d.Domain, nil)
	if err != nil {
		return err
	}
	return s.Host.Undrifted(ctx, d.Domain, bound)
}

// refresh accepts the disks as they are now. A snapshot on top of a copy is
// not accepted: the guest's newest writes are in it.
func (s *Service) refresh(ctx context.Context, p *Plan) error {
	d := p.Domain
	if err := bindings.SameDomain(d.Domain); err != nil {
		return err
	}
	receipts, err := s.receipts(d)
	if err != nil {
		return err
	}
	copies := map[string]string{}
	for target, r := range receipts {
		if !r.Discarding && r.OnStop == localdisk.Keep {
			copies[target] = r.Copy
		}
	}
	bound, _, err := bindings.Resolve(d.Domain, nil)
	if err != nil {
		return err
	}
	if p.foreign, err = s.foreign(ctx, d, bound, receipts); err != nil {
		return err
	}
	host, err := s.hostFor(ctx, d, nil)
	if err != nil {
		return err
	}
	p.After, err = host.Refresh(d.Doc, copies)
	return err
}

// noOverlay refuses a disk that is an image on top of its own copy.
func (s *Service) noOverlay(ctx context.Context, d Domain, b bindings.Bound) error {
	if b.Recorded == nil || b.Disk.At() == b.Recorded.Source || s.Host.Undrifted(ctx, d.Domain, []bindings.Bound{b}) != nil {
		return nil
	}
	return snapshotAbove(d, b.Disk.Target, b.Disk.Path)
}

func snapshotAbove(d Domain, target, path string) error {
	err := failure.New(failure.Conflict, "%s: disk %s: %s is a snapshot on top of its local copy and has the guest's newest writes", d, target, failure.OneLine(path))
	return failure.Hint(err, "start the domain and merge it with `virsh blockcommit %s %s --active --pivot`, shut it down, then run this again", d.NameArg(), target)
}

// Apply does what a plan of PlanApply or PlanRebind says.
func (s *Service) Apply(ctx context.Context, p *Plan, w localdisk.Waiting) error {
	release, err := s.begin(ctx, p)
	if err != nil {
		return err
	}
	defer release()
	if err := s.room(ctx, p); err != nil {
		return err
	}
	if p.Redefines() && len(p.fills) > 0 {
		if err := s.Local.GiveUpStale(ctx, p.fills); err != nil {
			return err
		}
	}
	stored, err := s.bind(ctx, p)
	if err != nil {
		return err
	}
	disks, err := s.toFill(ctx, stored.Doc, p.anew...)
	if err != nil {
		return err
	}
	if disks = p.notRemembered(disks); len(disks) > 0 {
		if err := s.Local.Prestage(ctx, disks, w); err != nil {
			return unfilled(stored, err)
		}
	}
	return s.record(ctx, stored.UUID)
}

// bind defines what the plan says. Two domains that are bound at once to one
// image or volume would each find it free when they plan; so that is looked at
// again, one domain of the host after the other.
func (s *Service) bind(ctx context.Context, p *Plan) (Domain, error) {
	if len(p.binds) == 0 {
		return s.define(ctx, p)
	}
	release, err := s.holdBindings(ctx, p.Domain.Domain)
	if err != nil {
		return p.Domain, err
	}
	defer release()
	others, err := s.Libvirt.List(ctx, true)
	if err == nil {
		err = s.free(ctx, p.Domain, p.binds, others)
	}
	if err == nil {
		err = s.unwritten(ctx, p)
	}
	if err != nil {
		return p.Domain, err
	}
	stored, err := s.define(ctx, p)
	if err == nil {
		err = s.noteBound(ctx, p)
	}
	return stored, err
}

// unfilled says what state a domain is left in when its copies were not made,
// and both ways out of it.
func unfilled(d Domain, err error) error {
	hint := "run `diskhook local prestage %[1]s`, or go back with `diskhook domain revert %[1]s`"
	if why := failure.HintOf(err); why != "" {
		hint = strings.ReplaceAll(why, "%", "%%") + "; then " + hint
	}
	err = fmt.Errorf("%s is bound, and does not start before its copies are made: %w", d, err)
	return failure.Hint(err, hint, d.NameArg())
}
