// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// handOver writes metadata with the volumes that this host has and those that are
// coming onto the idle window, and moves the pool to them. The header's commit is
// the point at which they count; guests are held back from before their mappings
// are read for the last time until after it:
//
//	write disk 0 and who is coming, and who is attached, read that back · suspend ·
//	write anew who has changed since, read that back · C2 · pool, tables · resume ·
//	old pool away
//
// So how long they are held back depends on what the attached volumes map that were
// written to in the meantime, and neither on what comes nor on the others; see anticipated.
//
// What fails before the first device is resumed is taken back. A pool that does not
// run has nothing to suspend, and keeps not running. blocks is how many the pool is to
// know: those that it knew, or more in a cluster that grows.
func (s *session) handOver(ctx context.Context, blocks uint64, coming ...handover.Attached) error {
	if s.pending != nil {
		return s.pending // what was asked for may rely on what is parked here now
	}
	h := &change{session: s, blocks: blocks, coming: coming}
	if err := h.draft(ctx); err != nil {
		return err
	}
	defer h.close()
	if err := failpoint.Hit("thin.handover.reserved"); err != nil {
		return err
	}
	runs, err := s.running(ctx)
	if err != nil {
		return err
	}
	if runs {
		defer h.forget(ctx)
		if err := h.anticipate(ctx); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.handover.anticipated"); err != nil {
			return err
		}
	}
	// From here on nobody's impatience leaves guests suspended.
	ctx = context.WithoutCancel(ctx)
	if err := h.swap(ctx, runs); err != nil {
		return err
	}
	if !runs {
		if err := s.makeWindow(ctx, h.idle(), s.header.Windows[h.idle()]); err != nil {
			return err
		}
		return s.Windows.Retire(ctx, s.metadataName(h.idle()))
	}
	for _, c := range coming {
		h.stay = append(h.stay, c.Volume)
	}
	return s.resume(ctx, h.stay)
}

// change is a hand-over on its way.
type change struct {
	*session
	blocks uint64 // of the cluster, as the pool will know it
	coming []handover.Attached
	plan   handover.Plan
	stay   []layout.VolumeRecord // that have a device
	image  Image
	before anticipated
	window layout.Window // where the new metadata are
}

func (h *change) close() { _ = h.image.Close() }

// idle is the window that does not count.
func (h *change) idle() int { return 1 - h.header.Active }

// draft plans the metadata, makes room for them and writes what no guest changes.
func (h *change) draft(ctx context.Context) error {
	now, err := h.now(ctx)
	if err != nil {
		return err
	}
	var others []layout.VolumeRecord
	for _, v := range now.coming {
		if !h.comes(v) {
			others = append(others, v)
		}
	}
	stored, err := h.comingMappings(ctx, others)
	if err != nil {
		return err
	}
	for _, a := range now.attached {
		if a.Volume.State != layout.Detaching {
			h.stay = append(h.stay, a.Volume)
		}
	}
	m := h.m
	m.Blocks = h.blocks
	if h.plan, err = handover.Compose(m, h.header.Number, h.header.Image+1, now.attached, stored...); err != nil {
		return err
	}
	if h.plan, err = h.plan.Coming(h.coming...); err != nil {
		return err
	}
	if h.window, err = h.room(ctx, h.plan.Content().PackedBlocks()*metadata.BlockSize); err != nil {
		return err
	}
	if err := h.makeWindow(ctx, h.idle(), h.window); err != nil {
		return err
	}
	if h.image, err = h.Windows.Write(ctx, h.metadataName(h.idle()), h.window.Length/metadata.BlockSize, h.plan.Superblock()); err != nil {
		return err
	}
	err = h.plan.WriteAhead(h.image)
	if err == nil {
		err = h.plan.VerifyAhead(h.image.Written)
	}
	if err != nil {
		return errors.Join(err, h.image.Close())
	}
	return nil
}

// untouched says that no pool ran since this host joined. What lies in its window then
// nobody reads: a pool of a former membership may have run on after the master wrote
// it, and written over it.
func (s *session) untouched() bool { return s.header.Image <= layout.FirstImage }

// now is what this host has. One that is new has no metadata yet.
func (h *change) now(ctx context.Context) (standing, error) {
	var now standing
	if h.untouched() {
		return now, nil
	}
	err := h.read(ctx, func(r *metadata.Reader) (err error) {
		now, err = h.stand(ctx, r, changed)
		return err
	})
	return now, err
}

func (h *change) comes(v layout.VolumeRecord) bool {
	for _, c := range h.coming {
		if c.Volume.Number == v.Number {
			return true
		}
	}
	return false
}

// swap holds the guests back, finishes the new metadata and makes them count. When
// it fails, the guests run on what they had.
func (h *change) swap(ctx context.Context, runs bool) error {
	if runs {
		if err := h.suspend(ctx); err != nil {
			return errors.Join(err, h.resume(ctx, h.stay))
		}
	}
	err := h.complete(ctx)
	if err == nil {
		err = failpoint.Hit("thin.handover.written")
	}
	before := h.header
	if err == nil {
		err = h.commit(func(header *layout.HostHeader) {
			header.Active, header.Image, header.Blocks = h.idle(), header.Image+1, h.blocks
			header.Windows[header.Active] = h.window
		})
	}
	if err == nil {
		err = failpoint.Hit("thin.handover.committed")
	}
	if err == nil && runs {
		err = h.prepare(ctx, h.stay)
	}
	if err == nil || !runs && h.header.Image != before.Image {
		return err
	}
	return h.takeBack(ctx, before, runs, err)
}

func (h *change) suspend(ctx context.Context) error {
	for _, v := range h.stay {
		// Writes that wait for space go to the new pool with everything else.
		if err := h.Mapper.Suspend(ctx, h.deviceName(v.Name), true); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.handover.suspended"); err != nil {
			return err
		}
	}
	return nil
}

// complete writes what the volumes map now that nothing changes it any more.
func (h *change) complete(ctx context.Context) error {
	now, err := h.last(ctx)
	if err != nil {
		return err
	}
	if h.plan, err = h.plan.With(now.attached, now.same...); err != nil {
		return err
	}
	if err := h.plan.Drop(h.image.Drop); err != nil {
		return err
	}
	if err := h.plan.WriteAttached(h.image); err != nil {
		return err
	}
	return h.readWindow(ctx, h.idle(), 0, h.plan.Verify)
}

// takeBack makes the former metadata count again, and resumes on them. As long as
// the header does not say so nothing is resumed.
func (h *change) takeBack(ctx context.Context, before layout.HostHeader, runs bool, cause error) error {
	// What a commit that failed has left is only known from the disk.
	if header, stamp, err := layout.ReadHost(h.own, h.Cluster, h.Host); err != nil {
		return errors.Join(cause, err)
	} else {
		h.header, h.stamp = header, stamp
	}
	if h.header.Image != before.Image {
		if err := h.commit(func(header *layout.HostHeader) {
			header.Active, header.Image, header.Blocks, header.Windows = before.Active, before.Image, before.Blocks, before.Windows
		}); err != nil {
			return errors.Join(cause, fmt.Errorf("the guests stay suspended: %w", err))
		}
	}
	if !runs {
		return cause
	}
	return errors.Join(cause, h.converge(ctx, h.stay))
}

// room finds a place beside the active window for so many bytes of metadata, packed.
// A kernel that goes on from there splits nodes and copies before it writes: it
// needs about three times as much.
func (h *change) room(ctx context.Context, packed uint64) (layout.Window, error) {
	const growth = 3
	want := min(max(packed*growth, layout.MinWindow), layout.MaxWindow)
	w := h.gap()
	if w.Length >= want {
		return w, nil
	}
	active := h.header.Windows[h.header.Active]
	err := h.extendOwn(ctx, active.Offset+active.Length+want)
	if w = h.gap(); err != nil && w.Length >= max(packed, layout.MinWindow) {
		h.Log.Warn("there is little room for metadata", "cluster", h.Name, "bytes", w.Length, "wanted", want, "error", err)
		return w, nil
	}
	if err == nil && w.Length < packed {
		err = failure.New(failure.NoSpace, "%s: %d bytes for metadata, %d are needed", h.own.Name(), w.Length, packed)
	}
	return w, err
}

// gap is the larger of the places before and after the active window.
func (h *change) gap() layout.Window {
	active := h.header.Windows[h.header.Active]
	before := layout.Window{Offset: layout.WindowsAt, Length: active.Offset - layout.WindowsAt}
	after := layout.Window{Offset: active.Offset + active.Length}
	after.Length = max(uint64(h.own.Size()), after.Offset) - after.Offset
	if after.Length < before.Length {
		after = before
	}
	after.Length = min(after.Length, layout.MaxWindow) &^ (metadata.BlockSize - 1)
	return after
}
