// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

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
