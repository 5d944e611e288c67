// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"diskhook/storage/failure"
)

// byKind groups the disks; each group keeps their order.
func byKind(bound []Bound) ([]Kind, map[string][]Bound) {
	groups := map[string][]Bound{}
	for _, b := range bound {
		groups[b.Binding.Kind] = append(groups[b.Binding.Kind], b)
	}
	var kinds []Kind
	for _, k := range Kinds() {
		if len(groups[k.Name()]) > 0 {
			kinds = append(kinds, k)
		}
	}
	return kinds, groups
}

// Fulfil makes all disks ready, kinds side by side. If one kind fails, what
// the others did is undone.
func (h *Host) Fulfil(ctx context.Context, d Domain, bound []Bound, deadline time.Duration) ([]Placement, error) {
	kinds, groups := byKind(bound)
	return h.fulfil(ctx, d, kinds, groups, deadline)
}

func (h *Host) fulfil(ctx context.Context, d Domain, kinds []Kind, groups map[string][]Bound, deadline time.Duration) ([]Placement, error) {
	placed := make([][]Placement, len(kinds))
	failed := sideBySide(d, kinds, func(i int, k Kind) (err error) {
		placed[i], err = k.Fulfil(ctx, h, d, groups[k.Name()], deadline)
		return err
	})
	err := errors.Join(failed...)
	if err == nil {
		return slices.Concat(placed...), nil
	}
	for i, k := range kinds {
		if failed[i] != nil {
			continue // it has undone its own
		}
		if undo := k.Release(context.WithoutCancel(ctx), h, d, groups[k.Name()], ""); undo != nil {
			h.Log.Warn("undo", "domain", d.UUID, "kind", k.Name(), "err", undo)
		}
	}
	return nil, err
}

// sideBySide does the work for all kinds at once, and returns the error of each.
func sideBySide(d Domain, kinds []Kind, work func(int, Kind) error) []error {
	failed := make([]error, len(kinds))
	var all sync.WaitGroup
	for i, k := range kinds {
		all.Go(func() {
			defer func() {
				// A panic must not take the process down before the others
				// are undone; a hook shows it as one line.
				if r := recover(); r != nil {
					failed[i] = fmt.Errorf("%s: kind %s: a defect of diskhook: %v", d, k.Name(), r)
				}
			}()
			failed[i] = work(i, k)
		})
	}
	all.Wait()
	return failed
}

// Relink gives the disks of a domain that runs back what the host lost of them
// since: links, a daemon, a claim. One disk that cannot be helped holds up no
// other, and nothing is undone: the guest has the disks open.
func (h *Host) Relink(ctx context.Context, d Domain, bound []Bound, deadline time.Duration) error {
	kinds, groups := byKind(bound)
	return errors.Join(sideBySide(d, kinds, func(_ int, k Kind) error {
		return k.Relink(ctx, h, d, groups[k.Name()], deadline)
	})...)
}

// Release undoes a fulfil of all kinds; every one is tried.
func (h *Host) Release(ctx context.Context, d Domain, bound []Bound, reason string) error {
	kinds, groups := byKind(bound)
	var failed []error
	for _, k := range kinds {
		if err := k.Release(ctx, h, d, groups[k.Name()], reason); err != nil {
			failed = append(failed, fmt.Errorf("%s: release: %w", d, err))
		}
	}
	return errors.Join(failed...)
}

// Restorable refuses to restore saved memory of the domain where it would meet
// other disks than it was saved with, as far as that can be told.
func (h *Host) Restorable(ctx context.Context, d Domain, bound []Bound) error {
	kinds, groups := byKind(bound)
	for _, k := range kinds {
		if err := k.Restorable(ctx, h, d, groups[k.Name()]); err != nil {
			return err
		}
	}
	return nil
}

// Labelled says that libvirt labels what the XML names for the disk.
func (b Bound) Labelled() bool {
	k, err := kindOf(b.Binding.Kind)
	return err == nil && k.Labelled()
}

// Own gives the nodes of the disks to the domain's QEMU.
func (h *Host) Own(ctx context.Context, d Domain, bound []Bound, label Label) error {
	kinds, groups := byKind(bound)
	for _, k := range kinds {
		if err := k.Own(ctx, h, d, groups[k.Name()], label); err != nil {
			return err
		}
	}
	return nil
}

// Migratable refuses live migration of a domain with a disk whose kind does.
func Migratable(d Domain, bound []Bound) error {
	for _, b := range bound {
		k, err := kindOf(b.Binding.Kind)
		if err == nil && k.Migrate() == Allow {
			continue
		}
		if err != nil {
			return err
		}
		why := "its data is on the host it runs on"
		if b.Kept() != "" {
			why = "the host it runs on has it to itself"
		}
		err = failure.New(failure.Precondition, "%s: disk %s is bound to %s and cannot be migrated: %s", d, b.Disk.Target, b.Binding.Kind, why)
		return failure.Hint(err, "%s", k.Offline(d, b))
	}
	return nil
}
