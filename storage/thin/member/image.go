// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
	"diskhook/storage/thin/request"
)

// read has look see this host's metadata as they are now: of a pool that runs
// through a metadata snapshot, which holds no longer than look takes, since what it
// maps cannot become free.
func (s *session) read(ctx context.Context, look func(*metadata.Reader) error) error {
	active := s.header.Active
	info, err := s.present(ctx, s.poolName(active))
	if err != nil {
		return err
	}
	if info == nil {
		if err := s.makeWindow(ctx, active, s.header.Windows[active]); err != nil {
			return err
		}
		return s.readWindow(ctx, active, 0, look)
	}
	return s.hold(ctx, func(held uint64) error { return s.readWindow(ctx, active, held, look) })
}

// hold has the pool that runs hold a metadata snapshot for as long as look takes.
func (s *session) hold(ctx context.Context, look func(held uint64) error) error {
	held, err := s.reserveSnapshot(ctx)
	if err != nil {
		return err
	}
	return errors.Join(look(held), s.releaseSnapshot(ctx))
}

// reserveSnapshot has the pool that runs hold a metadata snapshot until releaseSnapshot,
// and tells its root. One that it holds already is let go first.
func (s *session) reserveSnapshot(ctx context.Context) (uint64, error) {
	status, err := s.poolStatus(ctx)
	if err != nil {
		return 0, err
	}
	if err := s.writable(status); err != nil {
		return 0, err // it holds no snapshot
	}
	pool := s.poolName(s.header.Active)
	if status.HeldRoot != 0 { // of somebody who was killed, or of before
		if err := s.Mapper.Message(ctx, pool, devmapper.ReleaseSnapshot()); err != nil {
			return 0, err
		}
	}
	if err := s.Mapper.Message(ctx, pool, devmapper.ReserveSnapshot()); err != nil {
		return 0, err
	}
	if status, err = s.poolStatus(ctx); err != nil {
		return 0, errors.Join(err, s.releaseSnapshot(ctx))
	}
	return status.HeldRoot, nil
}

// releaseSnapshot lets go what reserveSnapshot had held.
func (s *session) releaseSnapshot(ctx context.Context) error {
	return s.Mapper.Message(context.WithoutCancel(ctx), s.poolName(s.header.Active), devmapper.ReleaseSnapshot())
}

func (s *session) readWindow(ctx context.Context, i int, held uint64, look func(*metadata.Reader) error) error {
	r, done, err := s.Windows.Read(ctx, s.metadataName(i), held)
	if err != nil {
		return err
	}
	return errors.Join(look(r), done())
}

// has says whether the metadata have a volume as the map has it.
func has(r *metadata.Reader, v layout.VolumeRecord) (bool, error) {
	d, err := r.Device(v.Number)
	if errors.Is(err, failure.NotFound) {
		return false, nil
	}
	return d.Transaction == v.Generation, err
}

// standing is what this host's metadata have of the volumes that the map has here.
type standing struct {
	attached []handover.Attached   // in the metadata
	same     []uint32              // in the metadata too, with the mappings that they had
	coming   []layout.VolumeRecord // only in UUID.thin
}

// stand reads it, mappings too but for the volumes that are known to map the same.
func (s *session) stand(ctx context.Context, r *metadata.Reader, same func(number uint32) bool) (standing, error) {
	var out standing
	for _, v := range s.here(layout.Attaching, layout.Attached, layout.Detaching) {
		if err := context.Cause(ctx); err != nil {
			return out, err
		}
		in, err := has(r, v)
		if err != nil {
			return out, err
		}
		if !in {
			out.coming = append(out.coming, v)
			continue
		}
		if same(v.Number) {
			out.same = append(out.same, v.Number)
			continue
		}
		m, err := handover.Mapping(r, s.m, v)
		if err != nil {
			return out, err
		}
		out.attached = append(out.attached, handover.Attached{Volume: v, Mapping: m})
	}
	return out, nil
}

// comingMappings reads the stored mappings of the volumes that are on their way to here,
// which nothing may be taken of yet; see ledger.Usable.
func (s *session) comingMappings(ctx context.Context, coming []layout.VolumeRecord) ([]layout.Mapping, error) {
	var mappings []layout.Mapping
	for _, v := range coming {
		m, err := s.stored(ctx, v)
		if err != nil {
			return nil, err
		}
		mappings = append(mappings, m)
	}
	return mappings, nil
}

// mapped lists the volumes that are to have a device here: those that the metadata
// have, but for one that is being detached, which must not change any more. The
// master may know of that already where this host has no answer yet.
func (s *session) mapped(ctx context.Context) ([]layout.VolumeRecord, error) {
	asked, err := s.journaled()
	if err != nil {
		return nil, err
	}
	leaving, _ := asked.(request.BeginDetach)
	var volumes []layout.VolumeRecord
	err = s.read(ctx, func(r *metadata.Reader) error {
		for _, v := range s.here(layout.Attaching, layout.Attached) {
			in, err := has(r, v)
			switch {
			case err != nil:
				return err
			case v.Number == leaving.Volume:
			case in:
				volumes = append(volumes, v)
			case v.State == layout.Attached:
				err := failure.New(failure.Problems, "volume %s: it is attached to this host, whose metadata do not have it with generation %d", v.Name, v.Generation)
				return failure.Hint(err, "run `diskhook thin check`")
			}
		}
		return nil
	})
	return volumes, err
}
