// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// Copies are volumes that hold local copies of disks (package localdisk). A copy is
// known by its label, which has its UUID and is durable before the master is asked
// for the volume. It stays attached to the host from when it is made until it is
// removed, so that no start of a domain needs the master.

// Copy is a volume with a label, or one of this host that has none.
type Copy struct {
	Name  string
	UUID  uuid.UUID
	Size  uint64       // bytes; 0: the cluster has no such volume yet, or no more
	Taken uint64       // bytes of the pool that it has; 0 where that is not known
	Host  string       // where it is; "" while offline
	Here  bool         // and that is this host
	Label *claim.Label // nil: it has none
	// Damaged is why its label cannot be read.
	Damaged error
	// Active says that its device is there and serves, InUse that it is open.
	Active, InUse bool
}

// Copies is all copies of this host, and what room its pool has. Sizes are bytes.
type Copies struct {
	Cluster   uuid.UUID
	All       []Copy
	Stopped   error  // that the pool does not run; nil: it does
	BlockSize uint64 // of the pool
	Slack     uint64 // what the pool can allocate at once
	Free      uint64 // what the cluster could grant
	Total     uint64 // what the cluster has
}

// Copies looks without a lock and changes nothing. A host that is no member any more
// is refused.
func (c *Member) Copies(ctx context.Context) (Copies, error) {
	labelled, err := c.Labels.Volumes() // before the map: a label is there before its volume
	if err != nil {
		return Copies{}, err
	}
	s, err := c.glance(ctx)
	if err == nil {
		err = s.belongs()
	}
	if err == nil {
		err = s.former(ctx)
	}
	var out Copies
	if err == nil {
		out, err = s.copies(ctx, labelled)
	}
	return out, errors.Join(err, s.close())
}

func (s *session) copies(ctx context.Context, labelled []string) (Copies, error) {
	out := Copies{
		Cluster: s.Cluster, BlockSize: s.m.BlockSize, Total: s.m.Bytes(),
		Free: s.m.Owned(layout.Owner{Kind: layout.Free}).Blocks() * s.m.BlockSize,
	}
	switch status, err := s.poolStatus(ctx); {
	case err == nil:
		out.Slack = status.Free() * s.m.BlockSize
	case errors.Is(err, failure.NotFound):
		out.Stopped = s.stopped()
	default:
		return out, err
	}
	seen := map[string]bool{}
	for _, name := range labelled {
		seen[name] = true
	}
	for _, v := range s.here(layout.Attaching, layout.Attached, layout.Detaching) {
		if !seen[v.Name] {
			labelled = append(labelled, v.Name)
		}
	}
	for _, name := range labelled {
		copied, err := s.copyOf(ctx, name)
		if err != nil {
			return out, err
		}
		out.All = append(out.All, copied)
	}
	return out, nil
}

// copyOf puts together what is known of a copy. A volume of its name with another
// UUID than the label's is somebody else's.
func (s *session) copyOf(ctx context.Context, name string) (Copy, error) {
	out := Copy{Name: name}
	out.Label, out.Damaged = s.Labels.Of(name) // again: one that is made meanwhile has it
	if out.Label != nil {
		out.UUID = out.Label.Volume
	}
	v, err := s.volume(name)
	if err != nil || out.Label != nil && v.UUID != out.Label.Volume {
		return out, nil //nolint:nilerr // there is none
	}
	out.UUID, out.Size = v.UUID, v.Size
	if !v.State.On() {
		return out, nil
	}
	if out.Here = v.Host == s.header.Number; !out.Here {
		out.Host = s.hostName(v.Host)
		return out, nil
	}
	out.Host = s.header.Name
	info, err := s.present(ctx, s.deviceName(name))
	if err == nil && info != nil {
		out.Active, out.InUse = !info.Suspended && v.State == layout.Attached, info.Open > 0
		if taken, err := s.taken(ctx, info.Name); err == nil {
			out.Taken = taken
		}
	}
	return out, err
}

// taken is how many bytes of the pool the device of a volume has; 0 if that cannot be
// told, as of one that was just taken away.
func (c *Member) taken(ctx context.Context, device string) (uint64, error) {
	status, err := c.Mapper.Status(ctx, device, true)
	if errors.Is(err, failure.NotFound) {
		return 0, nil
	}
	if err != nil || status.Thin == nil {
		return 0, err
	}
	return status.Thin.Mapped * sector, nil
}

// NewCopy is a copy to be made.
type NewCopy struct {
	Name  string
	Size  uint64 // bytes, whole sectors
	Label claim.Label
	// Granted has the pool own as many blocks as the copy can come to take, before
	// anything is made; otherwise they come as they are written to. Blocks that other
	// copies at this host may still take, of which the labels have the tag Filling, are
	// none of those; and Reserve bytes are left of what the pool and the cluster have.
	Granted bool
	Filling string
	Reserve uint64
}

// MakeCopy makes an empty volume with a label, and attaches it to this host. Its UUID
// is the label's, which nothing had before. One that fails leaves the label, with or
// without the volume: RemoveCopy takes both away.
func (c *Member) MakeCopy(ctx context.Context, n NewCopy) error {
	err := c.do(ctx, c.begin, func(s *session) error {
		if err := s.mayMake(ctx, n); err != nil {
			return err
		}
		if n.Granted {
			if err := s.supplied(ctx, n); err != nil {
				return err
			}
		}
		if err := s.Labels.Set(n.Name, n.Label); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.copy.labelled"); err != nil {
			return err
		}
		if _, err := s.ask(ctx, request.Create{ID: n.Label.Volume, Name: n.Name, Size: n.Size}); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.copy.made"); err != nil {
			return err
		}
		v, err := s.volume(n.Name)
		if err == nil {
			err = s.attach(ctx, v, AttachOptions{})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", n.Name, err)
	}
	return nil
}

// mayMake refuses a copy before anything is noted of it.
func (s *session) mayMake(ctx context.Context, n NewCopy) error {
	if err := s.need(ctx); err != nil {
		return err
	}
	if s.pending != nil {
		return s.pending // it may be for a volume of this name
	}
	if err := s.fits(layout.VolumeRecord{Name: n.Name}); err != nil {
		return err
	}
	if !layout.ValidName(n.Name) {
		return failure.New(failure.Usage, "%q is no name for a volume: it is too long", n.Name)
	}
	v, err := s.volume(n.Name)
	if err != nil {
		return nil //nolint:nilerr // there is none
	}
	err = failure.New(failure.Conflict, "volume %s: the cluster has one already, %s: it was made by another host, or its label was lost", n.Name, v.UUID)
	return failure.Hint(err, "give that copy up where it was made; or bring it here with `diskhook thin attach --cluster %s %s`, then take it over with `diskhook local adopt`", s.Name, n.Name)
}

// supplied has the pool own as many blocks as a copy can take, which no other copy
// counts on. Nobody begins one meanwhile: the session has the lock.
func (s *session) supplied(ctx context.Context, n NewCopy) error {
	others, err := s.outstanding(ctx, n.Filling)
	if err != nil {
		return err
	}
	slack, err := s.use(ctx)
	if err != nil {
		return err
	}
	need := others + s.blocks(n.Size)
	has := slack.Free + s.m.Owned(layout.Owner{Kind: layout.Free}).Blocks()
	if has < need+s.blocks(n.Reserve) {
		free := int64(has-min(has, others))*int64(s.m.BlockSize) - int64(n.Reserve)
		err := failure.New(failure.NoSpace, "thin cluster %s: %d bytes are needed, %d are free beyond the reserve and what other copies may still take", s.Name, n.Size, max(0, free))
		return failure.Hint(err, "run `diskhook thin gc`, or extend the LUN and run `diskhook thin grow`")
	}
	if slack.Free >= need {
		return nil
	}
	if _, err := s.ask(ctx, request.Grant{Blocks: need - slack.Free}); err != nil {
		return err
	}
	_, err = s.use(ctx)
	return err
}

func (s *session) blocks(bytes uint64) uint64 { return (bytes + s.m.BlockSize - 1) / s.m.BlockSize }

// outstanding is how many blocks the copies at this host whose labels have a tag may
// still take.
func (s *session) outstanding(ctx context.Context, tag string) (uint64, error) {
	var sum uint64
	for _, v := range s.here(layout.Attaching, layout.Attached) {
		switch label, err := s.Labels.Of(v.Name); {
		case err != nil && !errors.Is(err, failure.Problems): // of a damaged one nothing is known
			return 0, err
		case label == nil || label.Volume != v.UUID || !slices.Contains(label.Tags, tag):
			continue
		}
		taken, err := s.taken(ctx, s.deviceName(v.Name))
		if err != nil {
			return 0, err
		}
		whole := s.blocks(v.Size)
		sum += whole - min(whole, s.blocks(taken))
	}
	return sum, nil
}

// Relabel changes what the label of a copy says, in one step. A volume of another
// UUID is a failure.Conflict. One that has no label gets it, if it is attached to
// this host: its label was lost.
func (c *Member) Relabel(ctx context.Context, name string, label claim.Label) error {
	err := c.do(ctx, c.open, func(s *session) error {
		now, err := s.Labels.Of(name)
		if err != nil {
			return err
		}
		if now == nil || now.Volume != label.Volume {
			v, err := s.volume(name)
			if err != nil {
				return err
			}
			if v.UUID != label.Volume || now != nil || !v.State.On() || v.Host != s.header.Number {
				return failure.New(failure.Conflict, "volume %s: it is not %s, or not at this host", name, label.Volume)
			}
		}
		return s.Labels.Set(name, label)
	})
	if err != nil {
		return fmt.Errorf("label %s: %w", name, err)
	}
	return nil
}

// HoldCopies has the devices of copies be there. It asks the master only for those
// that are not attached to this host, as after a recovery of it.
func (c *Member) HoldCopies(ctx context.Context, copies map[string]uuid.UUID) error {
	return c.do(ctx, c.begin, func(s *session) error {
		if err := s.need(ctx); err != nil {
			return err
		}
		for name, id := range copies {
			v, err := s.volume(name)
			if err == nil && v.UUID != id {
				err = failure.New(failure.Conflict, "volume %s: it is %s, and not %s", name, v.UUID, id)
			}
			if err == nil && (v.State != layout.Attached || v.Host != s.header.Number) {
				if err = s.attachable(v); err == nil {
					err = s.attach(ctx, v, AttachOptions{})
				}
			}
			if err != nil {
				return fmt.Errorf("attach %s: %w", name, err)
			}
		}
		return nil
	})
}

// RemoveCopy detaches a copy, deletes it and forgets it. What is left of one that was
// never made, or of which a part is gone, goes as well. One that somebody has open,
// or that is at another host, is a failure.Conflict.
func (c *Member) RemoveCopy(ctx context.Context, name string, id uuid.UUID) error {
	err := c.do(ctx, c.begin, func(s *session) error {
		if s.pending != nil {
			return s.pending // it may be for this very volume
		}
		if v, err := s.volume(name); err == nil && v.UUID == id {
			if err := s.discard(ctx, v); err != nil {
				return err
			}
		}
		if err := failpoint.Hit("thin.copy.deleted"); err != nil {
			return err
		}
		if label, err := s.Labels.Of(name); err != nil || label == nil || label.Volume != id {
			return err
		}
		return s.Labels.Drop(name)
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// discard has the master delete a copy, which is detached first.
func (s *session) discard(ctx context.Context, v layout.VolumeRecord) error {
	if v.State.On() {
		if v.Host != s.header.Number {
			at := s.hostName(v.Host)
			err := failure.New(failure.Conflict, "volume %s: it is at host %s", v.Name, at)
			return failure.Hint(err, "run `diskhook thin detach --cluster %s %s` on %s", s.Name, v.Name, at)
		}
		if err := s.unused(ctx, v); err != nil {
			return err
		}
		if err := s.detach(ctx, v); err != nil {
			return err
		}
	}
	_, err := s.ask(ctx, request.Delete{Volume: v.Number})
	return err
}
