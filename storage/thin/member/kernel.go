// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
)

const sector = 512

// converge makes the kernel have what header and map say: the pool on the active
// window, and on it the device of each of the volumes. It is how a pool starts, how
// a hand-over ends and is taken back, and how what a program left that was killed
// in between is put right.
//
// Nothing runs on the pool of the other window when its metadata stop to count:
// whoever commits the header has suspended every device before, and resumes none
// before that.
func (s *session) converge(ctx context.Context, volumes []layout.VolumeRecord) error {
	if err := s.prepare(ctx, volumes); err != nil {
		return err
	}
	return s.resume(ctx, volumes)
}

// prepare does what can be taken back: it makes the pool, and loads tables beside
// those that are live.
func (s *session) prepare(ctx context.Context, volumes []layout.VolumeRecord) error {
	pool, err := s.makePool(ctx, s.header.Active)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		info, err := s.present(ctx, s.deviceName(v.Name))
		if err != nil {
			return err
		}
		if info == nil {
			continue // made on the pool afterwards
		}
		if err := s.loadThin(ctx, *info, v, pool); err != nil {
			return err
		}
	}
	return nil
}

// present describes a device, nil if there is none. One that has no table at all
// was being made when somebody was killed, and is removed.
func (c *Member) present(ctx context.Context, name string) (*devmapper.Info, error) {
	info, err := c.Mapper.Info(ctx, name)
	switch {
	case errors.Is(err, failure.NotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Live:
		return nil, c.Mapper.Remove(ctx, name)
	}
	return &info, nil
}

// makeWindow maps a window of UUID.host.
func (s *session) makeWindow(ctx context.Context, i int, w layout.Window) error {
	name := s.metadataName(i)
	info, err := s.present(ctx, name)
	if err != nil {
		return err
	}
	if info != nil {
		table, err := s.Mapper.Table(ctx, name)
		if err != nil {
			return err
		}
		if t, ok := single[devmapper.Linear](table); ok && t.Start == w.Offset/sector && table.Sectors() == w.Length/sector && !info.Suspended {
			return nil
		}
		if err := s.Mapper.Remove(ctx, name); err != nil {
			return fmt.Errorf("metadata window %s has another place now: %w", letter(i), err)
		}
	}
	_, err = s.Mapper.Create(ctx, name, s.uuidOf(name), devmapper.Of(w.Length/sector, devmapper.Linear{
		Device: s.Group.Path(layout.Host.Name(s.Host)), Start: w.Offset / sector,
	}))
	return err
}

// single is the target of a table that has one.
func single[T devmapper.Target](table devmapper.Table) (T, bool) {
	var none T
	if len(table) != 1 {
		return none, false
	}
	t, ok := table[0].Target.(T)
	return t, ok
}

// makePool makes the pool on a window, or finds it.
func (s *session) makePool(ctx context.Context, i int) (devmapper.Info, error) {
	name := s.poolName(i)
	info, err := s.present(ctx, name)
	if err != nil {
		return devmapper.Info{}, err
	}
	if info != nil {
		if info.Inactive || info.Suspended {
			err = errors.Join(s.Mapper.Clear(ctx, name), s.Mapper.Resume(ctx, name))
		}
		return *info, err
	}
	if err := s.makeWindow(ctx, i, s.header.Windows[i]); err != nil {
		return devmapper.Info{}, err
	}
	metadata, err := s.Mapper.Info(ctx, s.metadataName(i))
	if err != nil {
		return devmapper.Info{}, err
	}
	return s.Mapper.Create(ctx, name, s.uuidOf(name), devmapper.Of(s.header.Bytes()/sector, devmapper.Pool{
		Metadata: metadata.Device(), Data: s.Group.Path(layout.DataName), BlockSectors: s.header.BlockSize / sector,
		LowWater: s.lowWater(), Features: devmapper.Features{NoPassdown: true},
	}))
}

// thinTable is the table of a volume's device.
func thinTable(v layout.VolumeRecord, pool devmapper.Info) devmapper.Table {
	return devmapper.Of(v.Size/sector, devmapper.Thin{Pool: pool.Device(), ID: v.Number})
}

// loadThin gives a device that is there the table that it is to have, if it has
// another one.
func (s *session) loadThin(ctx context.Context, info devmapper.Info, v layout.VolumeRecord, pool devmapper.Info) error {
	if info.Inactive {
		if err := s.Mapper.Clear(ctx, info.Name); err != nil {
			return err
		}
	}
	table, err := s.Mapper.Table(ctx, info.Name)
	if err != nil {
		return err
	}
	t, ok := single[devmapper.Thin](table)
	switch {
	case !ok || t.ID != v.Number:
		err := failure.New(failure.Conflict, "mapped device %s: it is no device of volume %s", info.Name, v.Name)
		return failure.Hint(err, "look at it with `dmsetup table %s`; if nobody needs it, run `dmsetup remove %s`", info.Name, info.Name)
	case t.Pool == pool.Device() && table.Sectors() == v.Size/sector:
		return nil
	case t.Pool != pool.Device() && !info.Suspended:
		err := failure.New(failure.Problems, "volume %s: it runs on a pool whose metadata do not count any more", v.Name)
		return failure.Hint(err, "stop its guest, then run `diskhook thin check`")
	}
	return s.Mapper.Load(ctx, info.Name, thinTable(v, pool))
}

// resume has every device run on the pool of the active window, and takes the other
// pool away. It goes on after a device that does not: from the first on that was
// resumed there is no way back, as its guest may have written through the new
// metadata.
func (s *session) resume(ctx context.Context, volumes []layout.VolumeRecord) error {
	pool, err := s.Mapper.Info(ctx, s.poolName(s.header.Active))
	if err != nil {
		return err
	}
	var failed []error
	for _, v := range volumes {
		if err := s.run(ctx, v, pool); err != nil {
			failed = append(failed, fmt.Errorf("volume %s: %w", v.Name, err))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return failure.Hint(failure.Wrap(failure.Temporary, err), "run `diskhook thin start` to try again")
	}
	return s.retire(ctx, 1-s.header.Active)
}

func (s *session) run(ctx context.Context, v layout.VolumeRecord, pool devmapper.Info) error {
	name := s.deviceName(v.Name)
	info, err := s.present(ctx, name)
	switch {
	case err != nil:
		return err
	case info == nil:
		made, err := s.Mapper.Create(ctx, name, s.uuidOf(name), thinTable(v, pool))
		if err != nil {
			return err
		}
		info = &made
	case info.Suspended || info.Inactive:
		if err := s.Mapper.Resume(ctx, name); err != nil {
			return err
		}
	}
	return s.link(v.Name, info.Minor)
}

// retire takes the pool on a window away, and what the window says.
func (s *session) retire(ctx context.Context, i int) error {
	info, err := s.present(ctx, s.poolName(i))
	if err != nil || info == nil {
		return err
	}
	if err := s.Mapper.Remove(ctx, info.Name); err != nil {
		return fmt.Errorf("the pool that was handed over: %w", err)
	}
	return s.Windows.Retire(ctx, s.metadataName(i))
}

// running says whether the pool was started.
func (s *session) running(ctx context.Context) (bool, error) {
	for i := range s.header.Windows {
		if info, err := s.present(ctx, s.poolName(i)); err != nil || info != nil {
			return info != nil, err
		}
	}
	return false, nil
}

// need wants the pool to run.
func (s *session) need(ctx context.Context) error {
	switch runs, err := s.running(ctx); {
	case err != nil:
		return err
	case !runs:
		return s.stopped()
	}
	return nil
}

// stopped is that the pool does not run.
func (c *Member) stopped() error {
	err := failure.New(failure.Precondition, "thin cluster %s: the pool of this host does not run", c.Name)
	return failure.Hint(err, "run `diskhook thin start`")
}

// poolStatus is the status of the pool that runs.
func (s *session) poolStatus(ctx context.Context) (devmapper.PoolStatus, error) {
	return s.statusOf(ctx, s.header.Active)
}

func (c *Member) statusOf(ctx context.Context, window int) (devmapper.PoolStatus, error) {
	name := c.poolName(window)
	status, err := c.Mapper.Status(ctx, name, false)
	if err != nil {
		return devmapper.PoolStatus{}, err
	}
	if status.Pool == nil {
		return devmapper.PoolStatus{}, failure.New(failure.Conflict, "mapped device %s: it is no pool", name)
	}
	return *status.Pool, nil
}

// writable refuses a pool whose metadata cannot change: it would take a discard and
// drop it.
func (c *Member) writable(p devmapper.PoolStatus) error {
	if p.Mode != devmapper.ReadOnly && p.Mode != devmapper.Failed && !p.NeedsCheck {
		return nil
	}
	err := failure.New(failure.Precondition, "thin cluster %s: the pool of this host is %s, its metadata need a check", c.Name, p.Mode)
	return failure.Hint(err, "stop the guests, then run `diskhook thin stop` and `diskhook thin start`")
}

// here lists the volumes that the map has at this host in one of some states.
func (s *session) here(states ...layout.VolumeState) []layout.VolumeRecord {
	var volumes []layout.VolumeRecord
	for _, v := range s.m.Volumes {
		if v.Host == s.header.Number && slices.Contains(states, v.State) {
			volumes = append(volumes, v)
		}
	}
	return volumes
}

// noSpaceTimeout is how long a guest's write waits for a grant: for ever, as an
// error would damage its file system, and the master may take long to fail over.
const noSpaceTimeout = time.Duration(0)
