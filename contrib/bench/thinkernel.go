// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
)

// idleKernel is a kernel that takes no time: it remembers tables, and its pools do
// nothing, so that the metadata of each are what was written to its window, a part
// of a file. What a verb takes on it is diskhook's own share. It notes how long
// devices were suspended.
type idleKernel struct {
	mu      sync.Mutex
	devices map[string]*idleDevice
	minor   uint32
	pauses  []time.Duration
}

type idleDevice struct {
	info         devmapper.Info
	table, later devmapper.Table
	since        time.Time // it was suspended
}

var _ devmapper.Mapper = (*idleKernel)(nil)

func newIdleKernel() *idleKernel { return &idleKernel{devices: map[string]*idleDevice{}} }

// with does something with a device.
func (k *idleKernel) with(name string, do func(*idleDevice)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[name]
	if d == nil {
		return &devmapper.Error{Op: "look", Name: name, Errno: syscall.ENXIO}
	}
	do(d)
	return nil
}

// Create is Mapper's.
func (k *idleKernel) Create(_ context.Context, name, uuid string, t devmapper.Table) (devmapper.Info, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.minor++
	d := &idleDevice{info: devmapper.Info{Name: name, UUID: uuid, Major: 253, Minor: k.minor, Live: true}, table: t}
	k.devices[name] = d
	return d.info, nil
}

// Load is Mapper's.
func (k *idleKernel) Load(_ context.Context, name string, t devmapper.Table) error {
	return k.with(name, func(d *idleDevice) { d.later, d.info.Inactive = t, true })
}

// Clear is Mapper's.
func (k *idleKernel) Clear(_ context.Context, name string) error {
	return k.with(name, func(d *idleDevice) { d.later, d.info.Inactive = nil, false })
}

// Suspend is Mapper's.
func (k *idleKernel) Suspend(_ context.Context, name string, _ bool) error {
	return k.with(name, func(d *idleDevice) { d.info.Suspended, d.since = true, time.Now() })
}

// Resume is Mapper's.
func (k *idleKernel) Resume(_ context.Context, name string) error {
	return k.with(name, func(d *idleDevice) {
		if d.info.Suspended {
			k.pauses = append(k.pauses, time.Since(d.since))
		}
		if d.later != nil {
			d.table, d.later = d.later, nil
		}
		d.info.Suspended, d.info.Inactive = false, false
	})
}

// Remove is Mapper's.
func (k *idleKernel) Remove(_ context.Context, name string) error {
	return k.with(name, func(*idleDevice) { delete(k.devices, name) })
}

// Info is Mapper's.
func (k *idleKernel) Info(_ context.Context, name string) (info devmapper.Info, err error) {
	err = k.with(name, func(d *idleDevice) { info = d.info })
	return info, err
}

// List is Mapper's.
func (k *idleKernel) List(context.Context) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for name := range k.devices {
		names = append(names, name)
	}
	return names, nil
}

// Table is Mapper's.
func (k *idleKernel) Table(_ context.Context, name string) (t devmapper.Table, err error) {
	err = k.with(name, func(d *idleDevice) { t = d.table })
	return t, err
}

// Status is Mapper's. No pool holds a snapshot: its metadata do not change.
func (k *idleKernel) Status(_ context.Context, name string, _ bool) (s devmapper.Status, err error) {
	err = k.with(name, func(*idleDevice) { s.Pool = &devmapper.PoolStatus{Mode: devmapper.ReadWrite} })
	return s, err
}

// Message is Mapper's.
func (k *idleKernel) Message(_ context.Context, pool string, _ devmapper.Message) error {
	return k.with(pool, func(*idleDevice) {})
}

// Wait is Mapper's: nothing happens.
func (k *idleKernel) Wait(ctx context.Context, _ string, since uint32) (uint32, error) {
	<-ctx.Done()
	return since, context.Cause(ctx)
}

// SetNoSpaceTimeout is Mapper's.
func (k *idleKernel) SetNoSpaceTimeout(time.Duration) error { return nil }

// Open is Mapper's, for windows.
func (k *idleKernel) Open(ctx context.Context, name string) (devmapper.Block, error) {
	table, err := k.Table(ctx, name)
	if err != nil {
		return nil, err
	}
	linear, ok := table[0].Target.(devmapper.Linear)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	v, err := layout.Open(linear.Device, true)
	if err != nil {
		return nil, err
	}
	return idleWindow{v, int64(linear.Start) * 512}, nil
}

// idleWindow is a file from an offset on.
type idleWindow struct {
	*layout.Volume
	from int64
}

func (w idleWindow) ReadAt(p []byte, off int64) (int, error)  { return w.Volume.ReadAt(p, w.from+off) }
func (w idleWindow) WriteAt(p []byte, off int64) (int, error) { return w.Volume.WriteAt(p, w.from+off) }
func (w idleWindow) Discard(int64, int64) error               { return errors.ErrUnsupported }
