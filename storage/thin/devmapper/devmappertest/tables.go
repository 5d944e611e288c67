// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
)

// Create is Mapper's.
func (k *Kernel) Create(ctx context.Context, name, uuid string, t devmapper.Table) (devmapper.Info, error) {
	if !devmapper.ValidName(name) {
		return devmapper.Info{}, failure.New(failure.Usage, "mapped device %q: create: no name for one", name)
	}
	k.san.mu.Lock()
	for _, d := range k.devices {
		if d.name == name || uuid != "" && d.uuid == uuid {
			k.san.mu.Unlock()
			return devmapper.Info{}, refuse("create", name, syscall.EBUSY)
		}
	}
	k.devices[name] = &device{name: name, uuid: uuid, minor: k.minors, suspended: true}
	k.minors++
	k.san.mu.Unlock()
	err := k.Load(ctx, name, t)
	if err == nil {
		err = k.Resume(ctx, name)
	}
	if err != nil {
		return devmapper.Info{}, errors.Join(err, k.Remove(context.WithoutCancel(ctx), name))
	}
	return k.Info(ctx, name)
}

// Load is Mapper's.
func (k *Kernel) Load(ctx context.Context, name string, t devmapper.Table) error {
	return k.with(ctx, "load a table", name, func(d *device) syscall.Errno {
		made, errno := k.construct(d, t)
		if errno != 0 {
			return errno
		}
		k.destroy(d.inactive)
		d.inactive = made
		return 0
	})
}

// Clear is Mapper's.
func (k *Kernel) Clear(ctx context.Context, name string) error {
	return k.with(ctx, "clear the table", name, func(d *device) syscall.Errno {
		k.destroy(d.inactive)
		d.inactive = nil
		return 0
	})
}

// Suspend is Mapper's.
func (k *Kernel) Suspend(ctx context.Context, name string, noflush bool) error {
	return k.with(ctx, "suspend", name, func(d *device) syscall.Errno {
		for !noflush && d.waiting > 0 && !k.dead {
			k.cond.Wait()
		}
		k.suspend(d)
		return 0
	})
}

func (k *Kernel) suspend(d *device) {
	d.suspended = true
	if p := d.pool(); p != nil {
		p.commit()
		p.suspended = true
	}
	k.cond.Broadcast()
}

// pool is that of a device which is a pool.
func (d *device) pool() *pool {
	if d.live == nil || d.live.pool == nil || d.live.pool.holder != d.name {
		return nil
	}
	return d.live.pool
}

// Resume is Mapper's. When a table does not fit, the device has it and stays
// suspended.
func (k *Kernel) Resume(ctx context.Context, name string) error {
	return k.with(ctx, "resume", name, func(d *device) syscall.Errno {
		if d.inactive != nil {
			k.suspend(d)
			old := d.live
			d.live, d.inactive = d.inactive, nil
			k.destroy(old)
		}
		if d.live == nil {
			return syscall.EINVAL
		}
		if p := d.pool(); p != nil {
			if errno := p.resume(d.live.Table[0]); errno != 0 {
				return errno
			}
		}
		d.suspended = false
		k.cond.Broadcast()
		return 0
	})
}

// resume binds the pool to a table: a length beyond what the metadata know makes
// the rest free.
func (p *pool) resume(s devmapper.Segment) syscall.Errno {
	spec := s.Target.(devmapper.Pool)
	blocks := s.Length / spec.BlockSectors
	if blocks < p.image.Blocks {
		return syscall.EINVAL
	}
	p.spec = spec
	p.errorIfNoSpace = spec.Features.ErrorIfNoSpace
	mode := devmapper.ReadWrite
	if spec.Features.ReadOnly {
		mode = devmapper.ReadOnly
	}
	p.suspended, p.belowLow = false, false
	p.setMode(mode)
	if blocks > p.image.Blocks && p.mode == devmapper.ReadWrite {
		p.image.Blocks, p.dirty = blocks, true
		p.commit()
	}
	return 0
}

// Remove is Mapper's.
func (k *Kernel) Remove(ctx context.Context, name string) error {
	return k.with(ctx, "remove", name, func(d *device) syscall.Errno {
		if d.opened+k.references(d) > 0 {
			return syscall.EBUSY
		}
		k.destroy(d.live)
		k.destroy(d.inactive)
		delete(k.devices, name)
		k.cond.Broadcast()
		return 0
	})
}

// references counts the tables that name a device.
func (k *Kernel) references(d *device) int {
	n := 0
	for _, other := range k.devices {
		for _, t := range []*table{other.live, other.inactive} {
			if t == nil {
				continue
			}
			for _, name := range t.uses {
				if name == d.number() {
					n++
				}
			}
		}
	}
	return n
}

func (d *device) number() string { return fmt.Sprintf("%d:%d", dmMajor, d.minor) }

// canonical is MAJOR:MINOR of a device by any of its names, "" if there is none.
func (k *Kernel) canonical(path string) string {
	for _, d := range k.devices {
		if path == d.number() || path == "/dev/mapper/"+d.name || path == fmt.Sprintf("/dev/dm-%d", d.minor) {
			return d.number()
		}
	}
	for i := range k.san.disks {
		if path == diskNumber(i) {
			return path
		}
	}
	return ""
}

// mapped is the device of a number.
func (k *Kernel) mapped(number string) *device {
	if strings.HasPrefix(number, fmt.Sprintf("%d:", dmMajor)) {
		for _, d := range k.devices {
			if d.number() == number {
				return d
			}
		}
	}
	return nil
}

// construct checks a table and takes what it needs.
func (k *Kernel) construct(d *device, t devmapper.Table) (*table, syscall.Errno) {
	made := &table{Table: slices.Clone(t)}
	if len(t) == 0 || t.Sectors() == 0 {
		return nil, syscall.EINVAL
	}
	for _, s := range t {
		var errno syscall.Errno
		switch target := s.Target.(type) {
		case devmapper.Linear:
			errno = made.use(k, target.Device)
		case devmapper.Failing:
		case devmapper.Pool:
			errno = k.constructPool(d, made, target)
		case devmapper.Thin:
			errno = k.constructThin(made, target)
		default:
			errno = syscall.EINVAL
		}
		if errno == 0 && made.pool != nil && len(t) > 1 {
			errno = syscall.EINVAL
		}
		if errno != 0 {
			return nil, errno
		}
	}
	return made, 0
}

func (t *table) use(k *Kernel, path string) syscall.Errno {
	number := k.canonical(path)
	if number == "" {
		return syscall.ENODEV
	}
	t.uses = append(t.uses, number)
	return 0
}

// constructPool finds or makes a pool: one metadata device, one pool device.
func (k *Kernel) constructPool(d *device, made *table, spec devmapper.Pool) syscall.Errno {
	if spec.BlockSectors < 128 || spec.BlockSectors > 2097152 || spec.BlockSectors%128 != 0 {
		return syscall.EINVAL
	}
	for _, path := range []string{spec.Metadata, spec.Data} {
		if errno := made.use(k, path); errno != 0 {
			return errno
		}
	}
	metadata, data := made.uses[0], made.uses[1]
	for _, p := range k.pools {
		switch {
		case p.metadata == metadata && (p.holder != d.name || p.data != data):
			return syscall.EBUSY
		case p.metadata != metadata && p.holder == d.name:
			return syscall.EINVAL
		case p.metadata == metadata:
			if p.spec.Features.IgnoreDiscard != spec.Features.IgnoreDiscard {
				return syscall.EINVAL
			}
			p.refs++
			made.pool = p
			return 0
		}
	}
	store, blocks, errno := k.metadataAt(metadata)
	if errno != 0 {
		return errno
	}
	if store.image.Devices == nil { // all zeros: a pool is made
		store.image = Image{BlockSectors: spec.BlockSectors, Devices: map[uint32]ThinImage{}}
	}
	if store.image.BlockSectors != spec.BlockSectors {
		return syscall.EINVAL
	}
	if store.user != nil && store.user != k {
		k.san.violations = append(k.san.violations, fmt.Sprintf("metadata %s of pool %s are in use on another host", metadata, d.name))
	}
	store.user = k
	p := newPool(k, d.name, spec, store, blocks)
	p.metadata, p.data, p.refs = metadata, data, 1
	k.pools = append(k.pools, p)
	made.pool = p
	return 0
}

func (k *Kernel) constructThin(made *table, t devmapper.Thin) syscall.Errno {
	if errno := made.use(k, t.Pool); errno != 0 {
		return errno
	}
	if t.Origin != "" {
		if errno := made.use(k, t.Origin); errno != 0 {
			return errno
		}
	}
	d := k.mapped(made.uses[0])
	if d == nil || d.pool() == nil {
		return syscall.EINVAL
	}
	p := d.pool()
	if _, there := p.image.Devices[t.ID]; !there {
		return syscall.ENODATA
	}
	if p.suspended {
		return syscall.EINVAL
	}
	p.refs++
	p.open[t.ID]++
	made.pool = p
	return 0
}

// destroy lets go of what a table has. A pool that nobody has any more commits
// once more to its own metadata.
func (k *Kernel) destroy(t *table) {
	if t == nil || t.pool == nil {
		return
	}
	p := t.pool
	if thin, ok := t.Table[0].Target.(devmapper.Thin); ok {
		p.open[thin.ID]--
	}
	if p.refs--; p.refs > 0 {
		return
	}
	p.commit()
	p.store.user = nil
	k.pools = slices.DeleteFunc(k.pools, func(q *pool) bool { return q == p })
}
