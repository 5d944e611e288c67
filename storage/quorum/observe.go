// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/nbd"
)

// Decide observes the set and decides; see the function Decide. The error is
// for what this host does not know about itself. Volumes have to be active.
func (s *Service) Decide(ctx context.Context, set Set) (Decision, []Observed, error) {
	return s.decide(ctx, set, s.inspect)
}

// Foresee is what Decide would say once the set's volumes are active: a start
// activates them first, and after a reboot none is. Nothing is changed.
func (s *Service) Foresee(ctx context.Context, set Set) (Decision, []Observed, error) {
	return s.decide(ctx, set, s.inspectDormant)
}

func (s *Service) decide(ctx context.Context, set Set, image func(context.Context, Set, Replica) error) (Decision, []Observed, error) {
	known, err := s.Known(set)
	if err != nil {
		return Decision{}, nil, err
	}
	observed := s.observe(ctx, set, image)
	s.doubted(set, observed)
	if err := stopped(ctx); err != nil {
		return Decision{}, nil, err
	}
	return Decide(set, observed, known), observed, nil
}

// observe looks at all replicas at once, at the image and the mark of each, all
// for at most the set's hang timeout, and changes nothing. What is wrong with
// one is in its Observed.
func (s *Service) observe(ctx context.Context, set Set, image func(context.Context, Set, Replica) error) []Observed {
	ctx, cancel := context.WithTimeout(ctx, s.hangTimeout(set))
	defer cancel()
	seen := make([]Observed, len(set.Replicas))
	var pending sync.WaitGroup
	for i, r := range set.Replicas {
		o := &seen[i]
		o.ID = r.ID
		pending.Go(func() { o.Image = image(ctx, set, r) })
		pending.Go(func() { o.Mark, o.NoMark = s.readMark(ctx, set, r) })
	}
	pending.Wait()
	return seen
}

// inspect says what is wrong with a replica's image: it is not there, its
// headers do not say what is declared, or its size is not the set's.
func (s *Service) inspect(ctx context.Context, set Set, r Replica) error {
	size, exact, err := s.measure(ctx, r)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", r, err)
	case size < set.Size, exact && size != set.Size:
		return unequal(set, r, size)
	}
	return nil
}

func unequal(set Set, r Replica, size int64) error {
	return failure.New(failure.Precondition, "%s: it has %d bytes, the set has %d", r, size, set.Size)
}

// inspectDormant is inspect that takes LVM's word for a volume which is not active
// and has no node yet: what is in it nobody can see.
func (s *Service) inspectDormant(ctx context.Context, set Set, r Replica) error {
	err := s.inspect(ctx, set, r)
	vg, name, ok := strings.Cut(r.Volume, "/")
	if !ok || !errors.Is(err, failure.NotFound) {
		return err
	}
	report, lvmErr := s.lvm().Report(ctx, vg)
	if lvmErr != nil {
		return fmt.Errorf("%s: %w", r, lvmErr)
	}
	lv, there := report.LV(name)
	switch {
	case !there || lv.Active == nil || *lv.Active:
		return err
	case lv.Health() != nil:
		return fmt.Errorf("%s: %w", r, lv.Health())
	case lv.Size < set.Size:
		return unequal(set, r, lv.Size)
	}
	return nil
}

// measure returns the virtual size in bytes; exact is false for what may be
// longer than the set, of which QEMU gets to see only the beginning.
func (s *Service) measure(ctx context.Context, r Replica) (size int64, exact bool, err error) {
	top := r.Top()
	if top.Type == NBD {
		size, err = s.exportSize(ctx, top)
		return size, false, err
	}
	if err := s.kinds(ctx, r); err != nil {
		return 0, false, err
	}
	info, err := s.checker().Chain(ctx, layers(r.Chain))
	if err != nil {
		return 0, false, err
	}
	return info.VirtualSize, top.Type == File || top.Format == imagecheck.QCOW2, nil
}

// kinds holds the types of the layers against what their paths lead to.
func (s *Service) kinds(ctx context.Context, r Replica) error {
	_, err := command.Abandon(ctx, func() (struct{}, error) {
		for _, l := range r.Chain {
			kind, err := blockdev.KindOf(l.Path)
			if err != nil {
				return struct{}{}, err
			}
			if want := map[string]blockdev.Kind{File: blockdev.Regular, Block: blockdev.Block}[l.Type]; kind != want {
				return struct{}{}, failure.New(failure.Precondition, "%s: %s, not a %s", l.Path, kind, want)
			}
		}
		return struct{}{}, nil
	})
	return err
}

func layers(chain []Layer) []imagecheck.Layer {
	var plain []imagecheck.Layer
	for _, l := range chain {
		plain = append(plain, imagecheck.Layer{Path: l.Path, Format: l.Format})
	}
	return plain
}

// Activate makes the devices of all replicas that are logical volumes, with
// one command for each group. A group that fails is an error of the replicas
// in it, which Observe then finds missing; so it is logged only.
func (s *Service) Activate(ctx context.Context, set Set) {
	groups := map[string][]string{}
	for _, r := range set.Replicas {
		if vg, lv, ok := strings.Cut(r.Volume, "/"); ok {
			groups[vg] = append(groups[vg], lv)
		}
	}
	for vg, lvs := range groups {
		// One by one: a volume that is gone must not keep the others away.
		err := s.lvm().Activate(ctx, vg, lvs...)
		for i := 0; err != nil && i < len(lvs) && len(lvs) > 1; i++ {
			err = errors.Join(err, s.lvm().Activate(ctx, vg, lvs[i]))
		}
		if err != nil {
			s.Log.WarnContext(ctx, "volumes of replicas are not active", "set", set.Name, "vg", vg, "err", err)
		}
	}
}

// exportSize asks an NBD server how long its export is.
func (s *Service) exportSize(ctx context.Context, l Layer) (int64, error) {
	network, address := l.address()
	if l.Socket != "" {
		if _, err := s.Config.Paths.Allowed(l.Socket); err != nil {
			return 0, err
		}
	}
	c, err := nbd.OpenImage(ctx, network, address, l.Export)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.Size, nil
}
