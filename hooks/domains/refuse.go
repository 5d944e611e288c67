// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// untouchable refuses a domain whose definition must not change now.
func (s *Service) untouchable(d Domain) error {
	arg := d.NameArg()
	for _, why := range []struct {
		is         bool
		kind       *failure.Kind
		text, hint string
	}{
		{d.OVirt, failure.Precondition, "it belongs to VDSM, which writes its definition anew at each start",
			"set the VM's custom property localdisk=lvmthin (or diskhook=…) in oVirt's Engine"},
		{!d.Facts.Persistent, failure.Precondition, "it is transient: it has no definition that would stay",
			"define it with `virsh define` first"},
		{d.Facts.Active, failure.Conflict, "it is " + d.Facts.State,
			"shut it down with `virsh shutdown " + arg + "`, then run this again"},
		{d.Facts.ManagedSave, failure.Conflict, "it has a managed save, whose memory needs the disks as they are",
			"start it with `virsh start " + arg + "` and shut it down, or drop the memory with `virsh managedsave-remove " + arg + "`"},
		{localdisk.Saved(s.Host.Layout, d.UUID), failure.Conflict, "it has saved memory, which needs the disks as they are",
			"start it and shut it down, then run this again"},
		{d.Facts.Snapshots > 0, failure.Conflict, fmt.Sprintf("it has %d snapshots, which name its disks", d.Facts.Snapshots),
			"delete them (`virsh snapshot-list " + arg + "`, `virsh snapshot-delete " + arg + " NAME`), then run this again"},
		{d.Facts.Checkpoints > 0, failure.Conflict, fmt.Sprintf("it has %d checkpoints, which live in its disks", d.Facts.Checkpoints),
			"delete them (`virsh checkpoint-list " + arg + "`, `virsh checkpoint-delete " + arg + " NAME`), then run this again"},
	} {
		if why.is {
			return failure.Hint(failure.New(why.kind, "%s: %s", d, why.text), "%s", why.hint)
		}
	}
	return nil
}

// discardSince is the first libvirt that tells the release hook why a domain
// stopped; without that nothing could be discarded safely.
const discardSince = 10_005_000

// unbindable refuses to bind disks anew that somebody else has, or as this
// libvirt does not allow.
func (s *Service) unbindable(ctx context.Context, d Domain, bound []bindings.Bound) error {
	if slices.ContainsFunc(bound, func(b bindings.Bound) bool { return b.Binding.Option("on-stop", localdisk.Keep) == localdisk.Discard }) {
		v, err := s.Libvirt.Version(ctx)
		if err != nil {
			return err
		}
		if v.Daemon < discardSince {
			err := failure.New(failure.Precondition, "%s: on-stop=discard needs libvirt 10.5, this is %d.%d", d, v.Daemon/1_000_000, v.Daemon/1000%1000)
			return failure.Hint(err, "bind with on-stop=keep, and give a copy up with `diskhook local recreate %s TARGET`", d.NameArg())
		}
	}
	others, err := s.Libvirt.List(ctx, true)
	if err != nil {
		return err
	}
	if err := s.free(ctx, d, bound, others); err != nil {
		return err
	}
	if err := s.fit(ctx, d, bound); err != nil {
		return err
	}
	for _, b := range bound {
		if b.Kept() != "" || b.Binding.Option("image", "") != "" {
			continue // it is not attached yet, or nothing is there
		}
		if err := notOpen(ctx, d, b); err != nil {
			return err
		}
	}
	return s.readable(ctx, d, bound)
}

// readable refuses sources that no copy can be made of. The copy process would
// refuse them, too, but only when the domain is bound.
func (s *Service) readable(ctx context.Context, d Domain, bound []bindings.Bound) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	disks, err := s.LocalDisks(ctx, d.Domain, bound)
	if err != nil {
		return err
	}
	for _, disk := range disks {
		if _, err := s.Local.Inspect(ctx, disk); err != nil {
			return fmt.Errorf("%s: its source: %w", disk, err)
		}
	}
	return nil
}

// patience bounds each look at a source: it may lie on storage that hangs.
const patience = 10 * time.Second

// lookers is how long a device may stay open for those who only look at it, before it is in
// use: udev does when it was written to, and each command of LVM at all devices.
const lookers = 10 * time.Second

// openPoll is how often a device is looked at that is open.
const openPoll = 100 * time.Millisecond

// notOpen refuses a source that some process has open, and a device that one goes on
// having open.
func notOpen(ctx context.Context, d Domain, b bindings.Bound) error {
	type use struct {
		holder string
		is     bool
	}
	look := func() (use, error) {
		return withPatience(ctx, func() (use, error) {
			holder, is, err := blockdev.InUse(b.Disk.Path)
			return use{holder, is}, err
		})
	}
	got, err := look()
	for until := time.Now().Add(lookers); err == nil && got.is && b.Disk.Type == "block" && time.Now().Before(until); {
		select {
		case <-time.After(openPoll):
			got, err = look()
		case <-ctx.Done():
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, context.Cause(ctx))
		}
	}
	switch {
	case errors.Is(err, blockdev.ErrUnknownUse):
		return nil // not root: libvirt's word is all there is
	case err != nil:
		return fmt.Errorf("%s: disk %s: %s: %w", d, b.Disk.Target, b.Disk.Path, err)
	case got.is:
		err := failure.New(failure.Conflict, "%s: disk %s: %s is in use by %s", d, b.Disk.Target, b.Disk.Path, got.holder)
		return failure.Hint(err, "stop what uses it, then run this again")
	}
	return nil
}

// withPatience calls look and gives up on it when it hangs.
func withPatience[T any](ctx context.Context, look func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return command.Abandon(ctx, look)
}
