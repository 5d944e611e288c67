// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
)

// Kernel is a host's. It implements devmapper.Mapper.
type Kernel struct {
	san     *SAN
	cond    *sync.Cond // on the SAN's lock: something changed
	devices map[string]*device
	minors  uint32
	pools   []*pool
	now     time.Duration
	tick    time.Duration // of the last commit by time
	timeout time.Duration
	dead    bool
}

var _ devmapper.Mapper = (*Kernel)(nil)

// device is a mapped device.
type device struct {
	name, uuid     string
	minor          uint32
	live, inactive *table
	suspended      bool
	opened         int // by programs
	waiting        int // requests that wait for space
	events         uint32
}

// table is a table that was loaded, with what it holds.
type table struct {
	devmapper.Table
	pool *pool // of its pool or thin target
	uses []string
}

// dmMajor is device-mapper's major number; disks have 8.
const dmMajor = 253

// defaultTimeout is dm-thin's no_space_timeout.
const defaultTimeout = 60 * time.Second

// NewKernel is a host that has just booted.
func NewKernel(san *SAN) *Kernel {
	return &Kernel{san: san, cond: sync.NewCond(&san.mu), devices: map[string]*device{}, timeout: defaultTimeout}
}

// Crash ends the host: requests that wait fail, and nothing more reaches a disk.
func (k *Kernel) Crash() {
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	k.dead = true
	for _, p := range k.pools {
		p.store.user = nil
	}
	k.cond.Broadcast()
}

// Elapse lets time pass: pools commit every second, and timeouts end.
func (k *Kernel) Elapse(d time.Duration) {
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	k.now += d
	for _, p := range k.pools {
		if k.now-k.tick >= time.Second {
			p.commit()
		}
		if p.deadline != 0 && k.now >= p.deadline && p.mode == devmapper.OutOfDataSpace {
			p.errorIfNoSpace, p.deadline = true, 0
			k.event(p.holder)
		}
	}
	if k.now-k.tick >= time.Second {
		k.tick = k.now
	}
	k.cond.Broadcast()
}

// SetNoSpaceTimeout is Mapper's.
func (k *Kernel) SetNoSpaceTimeout(d time.Duration) error {
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	k.timeout = d
	return nil
}

// BreakMetadata has a pool's metadata fail: what was not committed is lost, and it
// is read-only until somebody has checked them.
func (k *Kernel) BreakMetadata(name string) {
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	p := k.devices[name].live.pool
	p.load()
	p.image.NeedsCheck, p.store.image.NeedsCheck = true, true
	p.setMode(devmapper.ReadOnly)
}

func (k *Kernel) event(name string) {
	if d := k.devices[name]; d != nil {
		d.events++
	}
	k.cond.Broadcast()
}

// refuse is what every operation fails with.
func refuse(op, name string, errno syscall.Errno) error {
	return &devmapper.Error{Op: op, Name: name, Errno: errno}
}

// with runs an operation on a device, under the lock.
func (k *Kernel) with(ctx context.Context, op, name string, do func(d *device) syscall.Errno) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !devmapper.ValidName(name) {
		return failure.New(failure.Usage, "mapped device %q: %s: no name for one", name, op)
	}
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	d := k.devices[name]
	if d == nil || k.dead {
		return refuse(op, name, syscall.ENXIO)
	}
	if errno := do(d); errno != 0 {
		return refuse(op, name, errno)
	}
	return nil
}

// Info is Mapper's.
func (k *Kernel) Info(ctx context.Context, name string) (devmapper.Info, error) {
	var info devmapper.Info
	err := k.with(ctx, "look", name, func(d *device) syscall.Errno {
		info = devmapper.Info{
			Name: d.name, UUID: d.uuid, Major: dmMajor, Minor: d.minor, Open: d.opened + k.references(d), Events: d.events,
			Suspended: d.suspended, Live: d.live != nil, Inactive: d.inactive != nil,
		}
		return 0
	})
	return info, err
}

// List is Mapper's.
func (k *Kernel) List(context.Context) ([]string, error) {
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	return slices.Sorted(maps.Keys(k.devices)), nil
}

// Table is Mapper's.
func (k *Kernel) Table(ctx context.Context, name string) (devmapper.Table, error) {
	var t devmapper.Table
	err := k.with(ctx, "read the table", name, func(d *device) syscall.Errno {
		if d.live != nil {
			t = slices.Clone(d.live.Table)
		}
		return 0
	})
	return t, err
}

// Status is Mapper's.
func (k *Kernel) Status(ctx context.Context, name string, noflush bool) (devmapper.Status, error) {
	var s devmapper.Status
	err := k.with(ctx, "read the status", name, func(d *device) syscall.Errno {
		if d.live == nil || len(d.live.Table) != 1 {
			return syscall.EINVAL
		}
		switch t := d.live.Table[0].Target.(type) {
		case devmapper.Pool:
			if !noflush && !d.suspended {
				d.live.pool.commit()
			}
			status := d.live.pool.status()
			s.Pool = &status
		case devmapper.Thin:
			s.Thin = d.live.pool.thinStatus(t.ID)
		default:
			return syscall.EINVAL
		}
		return 0
	})
	return s, err
}

func (p *pool) thinStatus(id uint32) *devmapper.ThinStatus {
	mappings := p.image.Devices[id].Mappings
	s := devmapper.ThinStatus{Mapped: uint64(len(mappings)) * p.spec.BlockSectors}
	if len(mappings) > 0 {
		s.Highest = (slices.Max(slices.Collect(maps.Keys(mappings)))+1)*p.spec.BlockSectors - 1
	}
	return &s
}

// Message is Mapper's.
func (k *Kernel) Message(ctx context.Context, name string, m devmapper.Message) error {
	return k.with(ctx, fmt.Sprintf("message %q", m), name, func(d *device) syscall.Errno {
		if d.live == nil || len(d.live.Table) != 1 {
			return syscall.EINVAL
		}
		if _, ok := d.live.Table[0].Target.(devmapper.Pool); !ok {
			return syscall.EINVAL
		}
		return d.live.pool.message(m)
	})
}

// parseMessage returns the word with the count of its numbers.
func parseMessage(m devmapper.Message) (string, [2]uint64) {
	var numbers [2]uint64
	words := strings.Fields(string(m))
	if len(words) == 0 || len(words) > 3 {
		return "", numbers
	}
	for i, w := range words[1:] {
		n, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			return "", numbers
		}
		numbers[i] = n
	}
	return fmt.Sprintf("%s/%d", words[0], len(words)-1), numbers
}

// Wait is Mapper's.
func (k *Kernel) Wait(ctx context.Context, name string, since uint32) (uint32, error) {
	stop := context.AfterFunc(ctx, func() {
		k.san.mu.Lock()
		defer k.san.mu.Unlock()
		k.cond.Broadcast()
	})
	defer stop()
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	for {
		d := k.devices[name]
		if d == nil || k.dead {
			return 0, refuse("wait", name, syscall.ENXIO)
		}
		if d.events != since {
			return d.events, nil
		}
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		k.cond.Wait()
	}
}
