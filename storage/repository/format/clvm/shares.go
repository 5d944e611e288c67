// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/lvm"
	"diskhook/storage/repository/format"
)

// shares are this process's parts in the volumes that it made active, by their names:
// a flock(2) that processes of this host share. Nobody takes the node of a volume away
// between another one's activating and opening it, and what a process that was killed
// left active can be told, as the kernel has given its part up.
type shares struct {
	mu  sync.Mutex
	all map[string]*lock.Lock
}

func shareLock(name string) string { return "open-" + name }

// use makes a volume active and keeps it so until this process closes it, or ends.
func (p *place) use(ctx context.Context, lv lvm.LV, write bool) error {
	added, err := p.share(ctx, lv.Name)
	if err != nil {
		return err
	}
	if err = p.activate(ctx, lv, write); err != nil && added {
		p.unshare(lv.Name)
	}
	if errors.Is(err, lvm.ErrElsewhere) {
		err = fmt.Errorf("%w: %w", format.ErrElsewhere, err)
	}
	return err
}

// share takes part in a volume; added is false if this process does already.
func (p *place) share(ctx context.Context, name string) (added bool, err error) {
	p.shares.mu.Lock()
	defer p.shares.mu.Unlock()
	if p.shares.all[name] != nil {
		return false, nil
	}
	l, err := lock.Share(ctx, p.locks, shareLock(name))
	if err != nil {
		return false, err
	}
	if p.shares.all == nil {
		p.shares.all = map[string]*lock.Lock{}
	}
	p.shares.all[name] = l
	return true, nil
}

func (p *place) unshare(name string) {
	p.shares.mu.Lock()
	defer p.shares.mu.Unlock()
	p.shares.all[name].Release()
	delete(p.shares.all, name)
}

// alone gives this process's part in a volume up and keeps all others of this host from
// it until free is called. lock.ErrHeld: one of them has it.
func (p *place) alone(name string) (free func(), err error) {
	p.unshare(name)
	l, err := lock.Try(p.locks, shareLock(name))
	if err != nil {
		return nil, err
	}
	return func() {
		// Whoever has the file open already notices that it is gone.
		_ = os.Remove(filepath.Join(p.locks, shareLock(name)))
		l.Release()
	}, nil
}

// last is alone for who needs it: a failure.Conflict if another process has it.
func (p *place) last(lv lvm.LV) (free func(), err error) {
	free, err = p.alone(lv.Name)
	if errors.Is(err, lock.ErrHeld) {
		err = failure.New(failure.Conflict, "%s: another process of this host uses it", lv)
	}
	return free, err
}

// leaveShares is for the end: what is active stays so.
func (p *place) leaveShares() {
	p.shares.mu.Lock()
	defer p.shares.mu.Unlock()
	for _, l := range p.shares.all {
		l.Release()
	}
	p.shares.all = nil
}

// CloseVolume implements format.Volumes. What another process of this host has open
// stays.
func (p *place) CloseVolume(ctx context.Context, id, kind string) error {
	if err := checkVolume(id, kind); err != nil || p.writable() != nil {
		return err
	}
	free, err := p.alone(p.Backing(id, kind))
	if errors.Is(err, lock.ErrHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	defer free()
	lv, _, err := p.find(ctx, id, kind)
	if err != nil || lv == nil || lv.Active != nil && !*lv.Active {
		return err
	}
	if err := p.host.LVM.Deactivate(ctx, p.vg, lv.Name); err != nil && !errors.Is(err, lvm.ErrInUse) {
		return err
	}
	return nil
}

// Opened implements format.Volumes.
func (p *place) Opened(ctx context.Context) ([]format.Data, error) {
	return p.volumes(ctx, func(lv lvm.LV) bool { return lv.Active != nil && *lv.Active })
}

// volumes are those of this repository that which selects.
func (p *place) volumes(ctx context.Context, which func(lvm.LV) bool) ([]format.Data, error) {
	report, err := p.report(ctx)
	if err != nil {
		return nil, err
	}
	var found []format.Data
	for _, lv := range report.LVs {
		id, kind, _ := strings.Cut(lv.Name, ".")
		if slices.Contains(lv.Tags, p.tag()) && checkVolume(id, kind) == nil && which(lv) {
			found = append(found, format.Data{ID: id, Kind: kind})
		}
	}
	return found, nil
}
