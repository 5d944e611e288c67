// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// GivingUp says what becomes of what guests wrote into copies that go away.
type GivingUp struct {
	Export           map[string]string // file by target; "" is the one disk there is
	DiscardGuestData bool
}

// PlanRevert works out how to give disks their origins back: all bound disks
// of the domain, or the named ones. The guest's writes in a copy must be
// exported or given up.
func (s *Service) PlanRevert(ctx context.Context, name string, targets []string, g GivingUp) (*Plan, error) {
	d, err := s.Look(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := bindings.SameDomain(d.Domain); err != nil {
		return nil, err
	}
	receipts, err := s.receipts(d)
	if err != nil {
		return nil, err
	}
	used, err := s.allUsed(d)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(d, receipts, used, targets)
	if err != nil {
		return nil, err
	}
	found, err := s.forgotten(ctx, d.Domain, d.Doc, receipts, func(r localdisk.Receipt) bool { return slices.Contains(chosen, r.Target) })
	if err != nil {
		return nil, err
	}
	base, err := remember(d.Domain, d.Doc, found)
	if err != nil {
		return nil, err
	}
	if d.Domain, err = bindings.ReadDomain(base); err != nil {
		return nil, err
	}
	p := &Plan{Domain: d, After: d.Doc, base: base}
	if len(chosen) == 0 {
		return p, nil
	}
	if err := s.untouchable(d); err != nil {
		return nil, err
	}
	if err := s.idle(ctx, d, chosen); err != nil {
		return nil, err
	}
	if g, err = g.forTargets(d, chosen); err != nil {
		return nil, err
	}
	p.discard = g.DiscardGuestData
	for _, f := range found {
		target := f.entry.Target
		if f.above != "" || f.entry.Origin == nil && g.Export[target] == "" {
			return nil, unrevertable(d, f, receipts[target])
		}
		if f.entry.Origin == nil {
			p.originless = append(p.originless, target)
		}
	}
	for _, target := range chosen {
		if err := s.planGivingBack(ctx, p, target, receipts, g); err != nil {
			return nil, err
		}
	}
	return p, s.release(ctx, p, chosen)
}

// planGivingBack adds to a plan what becomes of one disk's data.
func (s *Service) planGivingBack(ctx context.Context, p *Plan, target string, receipts map[string]localdisk.Receipt, g GivingUp) error {
	if err := s.mayRevert(ctx, p.Domain, target, receipts, g); err != nil {
		return err
	}
	for _, k := range s.kinds() {
		if err := k.giveBack(p, target, g); err != nil {
			return err
		}
	}
	r, filled := receipts[target]
	if filled {
		p.Remove = append(p.Remove, r)
	}
	if to := g.Export[target]; to != "" {
		if err := p.planExport(target, to, r, filled); err != nil {
			return err
		}
	}
	return nil
}

// unrevertable refuses a disk that is not bound any more and cannot be given
// its origin back as it is.
func unrevertable(d Domain, f forgotten, r localdisk.Receipt) error {
	if f.entry.Origin == nil {
		return withoutOrigin(d, f, r)
	}
	err := snapshotAbove(d, f.entry.Target, f.above)
	return failure.Hint(err, "bind it again with `diskhook domain apply %s`, then %s", d.NameArg(), failure.HintOf(err))
}

// choose returns the targets to revert, sorted.
func choose(d Domain, receipts map[string]localdisk.Receipt, used map[string]string, targets []string) ([]string, error) {
	known := map[string]bool{}
	for target := range used {
		known[target] = true
	}
	for target := range receipts {
		known[target] = true
	}
	if d.Metadata != nil {
		for _, e := range d.Metadata.Disks {
			known[e.Target] = true
		}
	}
	if len(targets) == 0 {
		return slices.Sorted(maps.Keys(known)), nil
	}
	var chosen []string
	for _, t := range targets {
		if known[t] {
			chosen = append(chosen, t)
			continue
		}
		if _, there := d.Disk(t); !there {
			err := failure.New(failure.NotFound, "%s: it has no disk %s", d, failure.OneLine(t))
			return nil, failure.Hint(err, "see `diskhook show %s`", d.NameArg())
		}
	}
	slices.Sort(chosen)
	return slices.Compact(chosen), nil
}

// forTargets gives a file without a target to the only disk.
func (g GivingUp) forTargets(d Domain, chosen []string) (GivingUp, error) {
	exports := map[string]string{}
	for target, file := range g.Export {
		switch {
		case target != "" && slices.Contains(chosen, target):
			exports[target] = file
		case target == "" && len(chosen) == 1:
			exports[chosen[0]] = file
		case target == "":
			err := failure.New(failure.Usage, "%s: --export %s: it has %d bound disks", d, file, len(chosen))
			return g, failure.Hint(err, "say which, as in --export %s=%s, once for each disk", chosen[0], file)
		default:
			return g, failure.New(failure.NotFound, "%s: --export: disk %s is not bound", d, failure.OneLine(target))
		}
	}
	files := map[string]bool{}
	for _, file := range exports {
		if files[file] {
			return g, failure.New(failure.Usage, "%s: --export: %s is named for two disks", d, file)
		}
		files[file] = true
	}
	g.Export = exports
	return g, nil
}

// mayRevert asks for the operator's word where a guest's writes would go out
// of sight.
func (s *Service) mayRevert(ctx context.Context, d Domain, target string, receipts map[string]localdisk.Receipt, g GivingUp) error {
	if err := s.noSnapshotOf(ctx, d, target); err != nil {
		return err
	}
	r, filled := receipts[target]
	command := func(option string) string {
		return fmt.Sprintf("diskhook domain revert %s %s %s", option, d.NameArg(), target)
	}
	if g.DiscardGuestData {
		return nil
	}
	if err := d.keepsData(target, "revert"); err != nil {
		return err
	}
	if err := s.knownHere(d, target, filled, command("--discard-guest-data")); err != nil {
		return err
	}
	if filled && r.Used && !r.Discarding && g.Export[target] == "" {
		err := failure.New(failure.Conflict, "%s: disk %s: what the guest wrote is in its local copy, and nowhere else", d, target)
		return failure.Hint(err, "keep it with `%s`, or give it up with `%s`", command("--export FILE"), command("--discard-guest-data"))
	}
	return nil
}

// knownHere refuses a disk whose metadata tell of a copy that this host knows
// nothing of, or that is on another one: the guest's writes may be in it.
// discard is the command that gives them up.
func (s *Service) knownHere(d Domain, target string, filled bool, discard string) error {
	machine, err := s.Host.Layout.MachineID()
	if err != nil {
		return failure.Hint(failure.Wrap(failure.Precondition, err), "run `systemd-machine-id-setup`")
	}
	entry := d.entry(target)
	switch {
	case entry == nil || entry.Local == nil:
		return nil
	case entry.Local.Host != "" && entry.Local.Host != machine:
		err := failure.New(failure.Precondition, "%s: disk %s: its local copy is on the machine %s, this is %s", d, target, entry.Local.Host, machine)
		return failure.Hint(err, "run `diskhook domain revert %s` there, or give up what the guest wrote with `%s`", d.NameArg(), discard)
	case !filled && entry.Local.Copy != "":
		err := failure.New(failure.Precondition, "%s: disk %s: its local copy %s has no receipt here, so what the guest wrote is not known", d, target, entry.Local.Copy)
		return failure.Hint(err, "take the copy over with `diskhook local adopt %s %s`, or give it up with `%s`", d.NameArg(), target, discard)
	}
	return nil
}

// noSnapshotOf needs no more than the recorded source, so that a domain can also
// go back from a binding that only a newer diskhook understands.
func (s *Service) noSnapshotOf(ctx context.Context, d Domain, target string) error {
	entry := d.entry(target)
	disk, there := d.Disk(target)
	if entry == nil || !there {
		return nil
	}
	return s.noOverlay(ctx, d, bindings.Bound{Disk: disk, Recorded: entry})
}

// release takes the targets out of the metadata. A disk gets its origin back,
// or the file that it is exported to, unless the operator gave it another
// source meanwhile: that one stays.
func (s *Service) release(ctx context.Context, p *Plan, targets []string) error {
	p.released = targets
	doc, notes, err := s.without(p, targets)
	if err == nil {
		doc, err = s.numbered(ctx, p.Domain, doc)
	}
	if err != nil {
		return err
	}
	p.After, p.Notes = doc, append(p.Notes, notes...)
	return nil
}

// without is the definition in which the targets are not bound any more, before
// it is numbered.
func (s *Service) without(p *Plan, targets []string) (doc *xmlrewrite.Document, notes []string, err error) {
	var changes []xmlrewrite.Rewriter
	for _, target := range targets {
		e, to := p.Domain.entry(target), p.exported[target]
		disk, there := p.Domain.Disk(target)
		switch {
		case !there:
		case e == nil && to != "": // an earlier revert got this far
			change, note := p.unbound(target, to)
			if change != nil {
				changes = append(changes, change)
			}
			if note != "" {
				notes = append(notes, note)
			}
		case e == nil:
		case disk.At() != e.Source:
			notes = append(notes, stays(disk))
		default:
			for _, k := range s.kinds() {
				changes = append(changes, k.undo(*e)...)
			}
			changes = append(changes, xmlrewrite.RestoreOrigin{Target: target})
			if to != "" {
				changes = append(changes, exportedDisk{target, to})
			}
		}
	}
	if m := p.Domain.Metadata; m != nil {
		var left []xmlrewrite.BoundDisk
		for _, e := range m.Disks {
			if !slices.Contains(targets, e.Target) {
				left = append(left, e)
			}
		}
		changes = append(changes, xmlrewrite.SetMetadata{Disks: left})
	}
	base := p.base
	if base == nil {
		base = p.Domain.Doc
	}
	if doc, err = xmlrewrite.Apply(base, changes...); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p.Domain, failure.Wrap(failure.Precondition, err))
	}
	return doc, notes, nil
}
