// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"diskhook/storage/failure"
)

// Placement is where a fulfilled disk is. Size is the node's, in bytes.
type Placement struct {
	Target string `json:"target"`
	// Path is what the domain's XML names: the stable link, or on oVirt the
	// volume's own path.
	Path  string `json:"path"`
	Node  string `json:"node"` // the device or file itself
	Block bool   `json:"block"`
	Size  int64  `json:"size"`
	Copy  string `json:"copy"` // UUID
}

// fillings bounds how often one call starts copies: again once, when what
// somebody else was at came to nothing.
const fillings = 2

// Fulfil makes the disks of one domain ready: all of them, or none. Ready
// copies cost one LVM report and one lvchange, and their sources are not
// looked at. Missing ones are filled by processes of their own, for which it
// waits as w says; when the deadline passes the error is a failure.Temporary
// and the copies go on. Calling it again, for a running domain too, is quick
// and changes nothing.
func (s *Service) Fulfil(ctx context.Context, disks []Disk, w Waiting) ([]Placement, error) {
	var placements []Placement
	err := s.settle(ctx, &w, func() (later []pending, err error) {
		placements, later, err = s.tryFulfil(ctx, disks)
		return later, err
	})
	return placements, err
}

// settle looks until nothing is left to wait for, and starts what has to be
// filled. Waiting for others is bounded by the deadline alone.
func (s *Service) settle(ctx context.Context, w *Waiting, look func() ([]pending, error)) error {
	for started := 0; ; {
		later, err := look()
		if err != nil || len(later) == 0 {
			return err
		}
		if slices.ContainsFunc(later, func(p pending) bool { return p.action != Wait }) {
			if started++; started > fillings {
				return failure.New(failure.Temporary, "%s: its copy keeps changing; try again", later[0].Disk)
			}
		}
		if err := s.fillAndWait(ctx, later, w); err != nil {
			return err
		}
	}
}

// Prestage fills what is absent and waits as w says. It activates nothing and
// makes no path; a domain that starts later finds its copies ready.
func (s *Service) Prestage(ctx context.Context, disks []Disk, w Waiting) error {
	disks = slices.Clone(disks)
	for i := range disks {
		disks[i].Create = true
	}
	return s.settle(ctx, &w, func() ([]pending, error) {
		observed, err := s.ObserveSources(ctx, disks)
		if err != nil {
			return nil, err
		}
		_, later, err := sortOut(observed)
		return later, err
	})
}

// pending is a disk whose copy has to be filled, or is being worked on.
type pending struct {
	Observed
	action Action
}

// sortOut splits the disks into those that can be used now and those that
// cannot yet; one that must not is an error.
func sortOut(observed []Observed) (now []pending, later []pending, err error) {
	decisions := make([]Decision, len(observed))
	for i, o := range observed {
		decisions[i] = Decide(o)
		p := pending{o, decisions[i].Action}
		switch p.action {
		case Use, Adopt:
			now = append(now, p)
		case Veto:
		default:
			later = append(later, p)
		}
	}
	return now, later, vetoes(decisions)
}

// tryFulfil uses the copies if all can be used now. It holds the disks' locks
// meanwhile, so that nobody removes what it is about to hand out.
func (s *Service) tryFulfil(ctx context.Context, disks []Disk) ([]Placement, []pending, error) {
	busy, release, err := s.lockDisks(disks)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	observed, err := s.observe(ctx, disks, busy)
	if err != nil {
		return nil, nil, err
	}
	s.lookBelow(ctx, observed)
	now, later, err := sortOut(observed)
	if err != nil || len(later) > 0 {
		return nil, later, err
	}
	placements, err := s.useAll(ctx, now)
	return placements, nil, err
}

// useAll activates, checks and publishes the copies. On failure the links it
// made go again and the volumes are deactivated, unless they are open.
func (s *Service) useAll(ctx context.Context, disks []pending) (placements []Placement, err error) {
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	for _, p := range disks {
		if p.action == Adopt {
			if err := s.adoptOVirt(ctx, p.Observed); err != nil {
				return nil, err
			}
		} else if err := s.finishClaim(ctx, p.Observed); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Disk, err)
		}
	}
	for _, group := range s.byHome(disks) {
		if err := group.backend.activate(ctx, group.nodes()); err != nil {
			return nil, fmt.Errorf("%s: %w", group.disks[0], err)
		}
		undo = append(undo, func() { s.deactivateIdle(group) })
	}
	for _, p := range disks {
		if p.Receipt != nil && p.Receipt.Growing != nil {
			if p.Copy, err = s.finishGrowing(ctx, p.Receipt, p.Copy); err != nil {
				return nil, err
			}
		}
		placement, made, err := s.use(ctx, p.Observed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Disk, err)
		}
		if made {
			undo = append(undo, func() { _ = os.Remove(link(s.Layout, p.Disk)) })
		}
		placements = append(placements, placement)
	}
	return placements, nil
}

// group is what one command of a backend can do together.
type group struct {
	backend backend
	disks   []Disk
	copies  []Copy
	actions []Action
	room    room   // as it was observed
	below   []Copy // the templates that overlays among them lie on
}

// nodes are all that must have one.
func (g *group) nodes() []Copy { return slices.Concat(g.copies, g.below) }

// nodes are what has to have a node before the disk can be opened.
func (o Observed) nodes() []Copy {
	if o.Template.Name == "" {
		return []Copy{o.Copy}
	}
	return []Copy{o.Copy, o.Template}
}

func (s *Service) byHome(disks []pending) []*group {
	var groups []*group
	index := map[string]*group{}
	for _, p := range disks {
		b := s.backend(p.Disk)
		g := index[b.home()]
		if g == nil {
			g = &group{backend: b, room: p.room}
			index[b.home()] = g
			groups = append(groups, g)
		}
		g.disks, g.copies, g.actions = append(g.disks, p.Disk), append(g.copies, p.Copy), append(g.actions, p.action)
		if t := p.Template; t.Name != "" && !slices.ContainsFunc(g.below, func(c Copy) bool { return c.Name == t.Name }) {
			g.below = append(g.below, t)
		}
	}
	return groups
}

// deactivateIdle undoes an activation. What was active before, or is open,
// stays: another domain's start or a running one must not feel it. So does a
// template, which another domain may be about to open.
func (s *Service) deactivateIdle(g *group) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var idle []Copy
	for _, c := range g.copies {
		if !c.Active && c.closed() {
			idle = append(idle, c)
		}
	}
	if len(idle) == 0 {
		return
	}
	if err := g.backend.deactivate(ctx, idle); err != nil {
		s.Log.Warn("undo: deactivate", "err", err)
	}
}
