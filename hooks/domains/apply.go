// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
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
	if refresh {
		if err = s.refresh(ctx, p); err != nil {
			return nil, err
		}
	} else if err := s.undrifted(ctx, d); err != nil {
		return nil, err
	}
	if err := s.bindAgain(ctx, p); err != nil {
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
	for _, b := range r.Bound {
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
	p.Notes = append(p.Notes, left(p.binds)...)
	return p, s.planRoom(ctx, p)
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

// planFill looks which copies are to be made now. With fill=start that is the
// first start's to do, which takes a copy that is there as it is; so an unused
// one that is stale is made again here.
func (s *Service) planFill(ctx context.Context, p *Plan) error {
	lazy, err := p.lazy()
	if err != nil {
		return err
	}
	disks, err := s.toFill(ctx, p.After, lazy...)
	disks = p.fillable(disks)
	if err != nil || len(disks) == 0 {
		return err
	}
	observed, err := s.observe(ctx, p, disks)
	if err != nil {
		return err
	}
	p.fills = disks
	if err := s.shareable(ctx, observed); err != nil {
		return err
	}
	for _, o := range observed {
		if !o.Stale && slices.Contains(lazy, o.Disk.Target) {
			continue
		}
		decision := localdisk.Decide(o)
		if decision.Err != nil {
			return decision.Err
		}
		if decision.Action == localdisk.Use {
			continue
		}
		if decision.Action != localdisk.Wait {
			p.anew = append(p.anew, o.Disk.Target)
		}
		p.Fill = append(p.Fill, bindings.Step{
			Target: o.Disk.Target, Kind: "local", What: o.Describe(decision),
			Commands: s.Local.FillCommands(ctx, o, decision),
		})
	}
	return nil
}

// shareable refuses template=overlay where there can be no template: once the
// domain is bound like that it does not start.
func (s *Service) shareable(ctx context.Context, observed []localdisk.Observed) error {
	var disks []localdisk.Disk
	for _, o := range observed {
		if o.Copy.State != localdisk.Ready || o.Stale {
			disks = append(disks, o.Disk)
		}
	}
	return s.Local.Shareable(ctx, disks)
}

// notRemembered leaves out the disks whose copies apply does not touch.
func (p *Plan) notRemembered(disks []localdisk.Disk) []localdisk.Disk {
	return slices.DeleteFunc(disks, func(disk localdisk.Disk) bool { return slices.Contains(p.remembered, disk.Target) })
}

// fillable are the disks whose copies apply may touch, those that the plan
// binds marked so.
func (p *Plan) fillable(disks []localdisk.Disk) []localdisk.Disk {
	disks = p.notRemembered(disks)
	for i := range disks {
		disks[i].BoundAnew = p.bindsAnew(disks[i].Target)
	}
	return disks
}

// bindsAnew says that the plan binds a disk, or binds it to another source: so
// far a guest could have written to that.
func (p *Plan) bindsAnew(target string) bool {
	return p.rebinds || p.Domain.entry(target) == nil || slices.ContainsFunc(p.foreign, func(b bindings.Bound) bool { return b.Disk.Target == target })
}

// lazy are the targets that the plan binds anew and whose copies the first
// start makes.
func (p *Plan) lazy() ([]string, error) {
	metadata, err := p.After.Metadata()
	if err != nil || metadata == nil {
		return nil, err
	}
	var targets []string
	for _, e := range metadata.Disks {
		if e.Local != nil && e.Local.Fill != "now" && p.bindsAnew(e.Target) {
			targets = append(targets, e.Target)
		}
	}
	return targets, nil
}

// room refuses copies that there is no room for: once the domain is bound it
// does not start without them.
func (s *Service) room(ctx context.Context, p *Plan) error {
	if len(p.Fill) == 0 {
		return nil
	}
	disks, err := s.toFill(ctx, p.After, p.anew...)
	if err != nil {
		return err
	}
	return s.Local.Room(ctx, p.fillable(disks))
}

// planRoom is room for plans, which change nothing. To ask for room makes the
// directory of copies on files; where that is missing, only Apply asks.
func (s *Service) planRoom(ctx context.Context, p *Plan) error {
	if _, err := os.Stat(s.Host.Config.Local.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.room(ctx, p)
}

// observe looks at the disks and at their sources: an unused copy of what a
// source was before is not to be taken. Where nothing is bound anew the copies
// are what the domain starts with anyway, whether or not their sources are in
// reach.
func (s *Service) observe(ctx context.Context, p *Plan, disks []localdisk.Disk) ([]localdisk.Observed, error) {
	observed, err := s.Local.ObserveSources(ctx, disks)
	if err == nil || p.Redefines() {
		return observed, err
	}
	p.Notes = append(p.Notes, "copies that no guest used are not compared with their sources: "+failure.OneLine(err.Error()))
	return s.Local.Observe(ctx, disks)
}

// toFill are the disks that a definition binds with fill=now, and those of also.
func (s *Service) toFill(ctx context.Context, doc *xmlrewrite.Document, also ...string) ([]localdisk.Disk, error) {
	d, err := bindings.ReadDomain(doc)
	if err != nil {
		return nil, err
	}
	bound, _, err := bindings.Resolve(d, nil)
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, b := range bound {
		if isLocal(b) && (b.Binding.Option("fill", "now") == "now" || slices.Contains(also, b.Disk.Target)) {
			targets = append(targets, b.Disk.Target)
		}
	}
	if len(targets) == 0 {
		return nil, nil
	}
	disks, err := s.LocalDisks(ctx, d, bound, targets...)
	if err != nil {
		return nil, err
	}
	return disks, s.fillable(disks)
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
// image would each find it free when they plan; so that is looked at again, one
// domain of the host after the other.
func (s *Service) bind(ctx context.Context, p *Plan) (Domain, error) {
	if len(p.binds) == 0 {
		return s.define(ctx, p)
	}
	release, err := s.lock(ctx, "bind", p.Domain.Domain)
	if err != nil {
		return p.Domain, err
	}
	defer release()
	others, err := s.Libvirt.List(ctx, true)
	if err == nil {
		err = s.notShared(ctx, p.Domain, p.binds, others)
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
