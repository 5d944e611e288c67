// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/directio"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/metadata"
	"diskhook/storage/thin/request"
)

// Slack is what of this host's blocks no volume has.
type Slack struct {
	Free   uint64 // blocks that the pool can allocate
	Used   uint64 // blocks that became free by this call
	Parked uint64 // blocks of this host that only a rebuild makes free
}

// Use makes the pool able to allocate every block that the map gives this host. It
// holds nobody back and may be repeated.
func (c *Member) Use(ctx context.Context) (Slack, error) {
	var slack Slack
	err := c.do(ctx, c.begin, func(s *session) (err error) {
		slack, err = s.use(ctx)
		return err
	})
	return slack, err
}

// Request asks for so many blocks and uses them.
func (c *Member) Request(ctx context.Context, blocks uint64) (Slack, error) {
	var slack Slack
	err := c.do(ctx, c.begin, func(s *session) (err error) {
		if err := s.need(ctx); err != nil {
			return err
		}
		if !wasDone(s, func(r request.Grant) bool { return r.Blocks == blocks }) {
			if _, err := s.ask(ctx, request.Grant{Blocks: blocks}); err != nil {
				return err
			}
		}
		if err := failpoint.Hit("thin.request.granted"); err != nil {
			return err
		}
		slack, err = s.use(ctx)
		return err
	})
	return slack, err
}

// reserve is what withholds this host's own blocks from its pool.
type reserve struct {
	disk0 extent.Set // of disk 0
	done  []uint32   // parked devices that have nothing but what is this host's, or disk 0 has as well
	stuck extent.Set // of the other parked devices
	local []uint32   // numbers of this host's own that are taken
}

func (s *session) use(ctx context.Context) (Slack, error) {
	if err := s.need(ctx); err != nil {
		return Slack{}, err
	}
	before, err := s.withheld(ctx)
	if err != nil {
		return Slack{}, err
	}
	if err := s.release(ctx, before); err != nil {
		return Slack{}, err
	}
	// A pool that is read-only takes a discard and drops it.
	after, err := s.withheld(ctx)
	if err != nil {
		return Slack{}, err
	}
	status, err := s.poolStatus(ctx)
	if err == nil {
		err = s.writable(status)
	}
	if rest := after.disk0; err == nil && !rest.Empty() {
		err = failure.New(failure.Problems, "thin cluster %s: blocks %v were released, and disk 0 still has them", s.Name, rest)
	}
	return Slack{Free: status.Free(), Used: before.disk0.Minus(after.disk0).Blocks(), Parked: after.stuck.Blocks()}, err
}

// withheld reads what withholds blocks that are this host's.
func (s *session) withheld(ctx context.Context) (reserve, error) {
	var out reserve
	var usable extent.Set
	err := s.read(ctx, func(r *metadata.Reader) error {
		var coming []layout.VolumeRecord
		active := map[uint32]bool{0: true}
		for _, v := range s.here(layout.Attaching, layout.Attached, layout.Detaching) {
			in, err := has(r, v)
			if err != nil {
				return err
			}
			active[v.Number] = in
			if !in {
				coming = append(coming, v)
			}
		}
		mappings, err := s.comingMappings(ctx, coming)
		if err != nil {
			return err
		}
		usable = ledger.Usable(s.m, s.header.Number, mappings...)
		disk0, err := r.DataBlocks(ctx, 0)
		if err != nil {
			return err
		}
		out.disk0 = disk0.Intersect(usable)
		for d, err := range r.Devices() {
			if err != nil {
				return err
			}
			if d.ID >= layout.FirstLocal {
				out.local = append(out.local, d.ID)
			}
			if active[d.ID] {
				continue
			}
			blocks, err := r.DataBlocks(ctx, d.ID)
			if err != nil {
				return err
			}
			if usable.Union(disk0).Covers(blocks) {
				out.done = append(out.done, d.ID)
			} else {
				out.stuck = out.stuck.Union(blocks.Intersect(usable))
			}
		}
		return nil
	})
	return out, err
}

// step bounds what one discard asks for, in bytes.
const step = 1 << 30

// release discards from disk 0 and deletes parked devices. Disk 0 maps each block
// to itself, and is active for just as long.
func (s *session) release(ctx context.Context, r reserve) (err error) {
	pool := s.poolName(s.header.Active)
	for _, number := range r.done {
		if s.pending != nil {
			break // what was asked for may rely on it
		}
		if err := s.Mapper.Message(ctx, pool, devmapper.Delete(number)); err != nil {
			return err
		}
	}
	if r.disk0.Empty() {
		return nil
	}
	info, err := s.Mapper.Info(ctx, pool)
	if err != nil {
		return err
	}
	name := s.reservedName()
	table := devmapper.Of(s.header.Bytes()/sector, devmapper.Thin{Pool: info.Device(), ID: 0})
	if _, err := s.Mapper.Create(ctx, name, s.uuidOf(name), table); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Mapper.Remove(context.WithoutCancel(ctx), name)) }()
	dev, err := s.Mapper.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	for _, e := range r.disk0 {
		end := int64(e.End() * s.header.BlockSize)
		for at := int64(e.Start * s.header.BlockSize); at < end; at += step {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := dev.Discard(at, min(step, end-at)); err != nil {
				return err
			}
			if err := failpoint.Hit("thin.use.discarded"); err != nil {
				return err
			}
		}
	}
	return nil
}

// Free gives so many blocks that nobody uses back to the cluster, or as many as
// there are beyond the low-water mark, and says how many. A device of its own, the
// balloon, takes them from the pool and stays parked.
func (c *Member) Free(ctx context.Context, blocks uint64) (uint64, error) {
	var given uint64
	err := c.do(ctx, c.begin, func(s *session) error {
		if err := s.need(ctx); err != nil {
			return err
		}
		if s.pending != nil {
			return s.pending
		}
		wasDone(s, func(r request.Return) bool {
			given = min(blocks, r.Extents.Set().Blocks())
			return true
		})
		if given == blocks {
			return nil
		}
		taken, err := s.inflate(ctx, blocks-given)
		if err != nil {
			return err
		}
		if err := failpoint.Hit("thin.free.inflated"); err != nil {
			return err
		}
		for _, r := range request.Returns(taken) {
			if _, err := s.ask(ctx, r); err != nil {
				return err
			}
			given += r.Extents.Set().Blocks()
		}
		return nil
	})
	return given, err
}

// pause is after how many blocks of the balloon the pool's free blocks are counted
// again, since guests take some meanwhile.
const pause = 64

// inflate takes blocks from the pool into a new device, and returns them.
func (s *session) inflate(ctx context.Context, blocks uint64) (extent.Set, error) {
	held, err := s.withheld(ctx)
	if err != nil {
		return nil, err
	}
	number, err := held.next()
	if err != nil {
		return nil, err
	}
	pool := s.poolName(s.header.Active)
	if err := s.Mapper.Message(ctx, pool, devmapper.CreateThin(number)); err != nil {
		return nil, err
	}
	if err := s.blow(ctx, number, blocks); err != nil {
		return nil, err
	}
	var taken extent.Set
	err = s.read(ctx, func(r *metadata.Reader) error {
		taken, err = r.DataBlocks(ctx, number)
		return err
	})
	if err == nil && taken.Empty() {
		err = s.Mapper.Message(ctx, pool, devmapper.Delete(number))
	}
	return taken, err
}

// next is a number of this host's own that no device has.
func (r reserve) next() (uint32, error) {
	next := uint32(layout.FirstLocal)
	for _, n := range r.local { // ascending
		if n == next {
			next++
		}
	}
	if next > layout.MaxDevice {
		err := failure.New(failure.NoSpace, "this host has used all %d numbers of its own", layout.MaxDevice-layout.FirstLocal+1)
		return 0, failure.Hint(err, "run `diskhook thin rebuild`")
	}
	return next, nil
}

// blow writes a page into each of so many virtual blocks.
func (s *session) blow(ctx context.Context, number uint32, blocks uint64) (err error) {
	info, err := s.Mapper.Info(ctx, s.poolName(s.header.Active))
	if err != nil {
		return err
	}
	name, size := s.balloonName(), s.header.BlockSize
	blocks = min(blocks, s.header.Blocks)
	if blocks == 0 {
		return nil
	}
	table := devmapper.Of(blocks*size/sector, devmapper.Thin{Pool: info.Device(), ID: number})
	if _, err := s.Mapper.Create(ctx, name, s.uuidOf(name), table); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Mapper.Remove(context.WithoutCancel(ctx), name)) }()
	dev, err := s.Mapper.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	page := directio.Buffer(directio.Align)
	left := uint64(0)
	for v := range blocks {
		if v%pause == 0 || left == 0 {
			status, err := s.poolStatus(ctx)
			if err != nil {
				return err
			}
			if left = status.Free() - min(status.Free(), s.lowWater()); left == 0 {
				break
			}
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if _, err := dev.WriteAt(page, int64(v*size)); err != nil {
			return fmt.Errorf("balloon: %w", err)
		}
		left--
	}
	return dev.Flush()
}

// lowWater is how many free blocks the pool keeps for guests while the master
// is away.
func (c *Member) lowWater() uint64 { return c.LowWater }
