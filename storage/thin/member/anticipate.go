// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"

	"diskhook/storage/thin/metadata"
)

// anticipated is what a hand-over has written of the attached volumes while their guests
// run, from a metadata snapshot that the pool goes on holding until they are held back.
// A volume whose tree of mappings has the same root then has the same mappings: as long
// as a snapshot holds a tree, the kernel changes no node of it, nor uses the place of
// one again, but writes others from the leaf up to the root.
type anticipated struct {
	holding bool
	held    uint64            // root of the snapshot
	roots   map[uint32]uint64 // of the volumes that were written
}

// same says that a volume maps what it did, as its root is the one that it had.
func (a anticipated) same(number uint32, roots map[uint32]uint64) bool {
	before, written := a.roots[number]
	now, there := roots[number]
	return written && there && before == now
}

// changed takes every volume for one that may map something else by now.
func changed(uint32) bool { return false }

// anticipate writes the attached volumes ahead, where there is room to write each again,
// and room in the pool's metadata for what guests change while the snapshot is held.
func (h *change) anticipate(ctx context.Context) error {
	status, err := h.poolStatus(ctx)
	if err != nil {
		return err
	}
	spare := 2*h.plan.Content().PackedBlocks()*metadata.BlockSize <= h.window.Length
	if !spare || status.MetadataUsed > status.MetadataTotal/2 {
		h.Log.Info("guests wait until all mappings are written, as there is little room for metadata", "cluster", h.Name)
		return nil
	}
	if h.before.held, err = h.reserveSnapshot(ctx); err != nil {
		return err
	}
	h.before.holding = true
	if h.before.roots, err = h.Windows.Roots(ctx, h.metadataName(h.header.Active), h.before.held); err != nil {
		return err
	}
	var now standing
	if err := h.readWindow(ctx, h.header.Active, h.before.held, func(r *metadata.Reader) error {
		now, err = h.stand(ctx, r, changed)
		return err
	}); err != nil {
		return err
	}
	if h.plan, err = h.plan.Foresee(now.attached); err != nil {
		return err
	}
	if err := h.plan.WriteForeseen(h.image); err != nil {
		return err
	}
	return h.plan.VerifyForeseen(h.image.Written)
}

// forget lets the snapshot go, if nobody has.
func (h *change) forget(ctx context.Context) {
	if !h.before.holding {
		return
	}
	h.before.holding = false
	if err := h.releaseSnapshot(ctx); err != nil {
		h.Log.Warn("the pool still holds a metadata snapshot", "cluster", h.Name, "error", err)
	}
}

// last reads what the attached volumes map by now, but for those that map what was
// foreseen. Nothing changes any more.
func (h *change) last(ctx context.Context) (standing, error) {
	if !h.before.holding {
		return h.now(ctx)
	}
	status, err := h.poolStatus(ctx)
	if err != nil {
		return standing{}, err
	}
	if status.HeldRoot != h.before.held { // somebody let it go, and roots may have been used again
		h.before.holding, h.before.roots = false, nil
		return h.now(ctx)
	}
	h.before.holding = false // the next that is reserved lets it go
	var now standing
	err = h.hold(ctx, func(held uint64) error {
		roots, err := h.Windows.Roots(ctx, h.metadataName(h.header.Active), held)
		if err != nil {
			return err
		}
		return h.readWindow(ctx, h.header.Active, held, func(r *metadata.Reader) error {
			now, err = h.stand(ctx, r, func(number uint32) bool { return h.before.same(number, roots) })
			return err
		})
	})
	return now, err
}
