// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
)

// Room checks, before anything is begun, that the copies that Prestage would
// make of these disks fit together, with the configured reserve left free. Too
// little is a failure.NoSpace. It reads the headers of their sources.
func (s *Service) Room(ctx context.Context, disks []Disk) error {
	disks = slices.Clone(disks)
	for i := range disks {
		disks[i].Create = true
	}
	observed, err := s.ObserveSources(ctx, disks)
	if err != nil {
		return err
	}
	_, later, err := sortOut(observed)
	if err != nil {
		return err
	}
	return s.roomFor(ctx, later)
}

// roomFor asks for each home once, for all disks that get a copy there. What the
// copies hold that are unfinished or replaced is freed first, and counts as
// free. An overlay may hold less than it shows, so it does not.
func (s *Service) roomFor(ctx context.Context, disks []pending) error {
	for _, group := range s.byHome(disks) {
		var sizes []int64
		for i, d := range group.disks {
			if group.actions[i] == Wait {
				continue // it has its room
			}
			info, err := s.Inspect(ctx, d)
			if err != nil {
				return unreadable(d, err)
			}
			sizes = append(sizes, takes(d, info))
			if c := group.copies[i]; c.State != Absent && c.Format != imagecheck.QCOW2 {
				sizes = append(sizes, -c.Size)
			}
		}
		if len(sizes) == 0 {
			continue
		}
		err := group.room(sizes)
		if errors.Is(err, failure.NoSpace) && len(s.wins(ctx, group.disks[0].Backend, sizes)) > 0 {
			continue // the copy process does, and says if it was not enough
		}
		if err != nil {
			return fmt.Errorf("%s: %w", group.disks[0], err)
		}
	}
	return nil
}

// Available refuses, as the least copy would be, a place that is not there now, or has
// no room beside what is kept free: the one where copies go by default.
func (s *Service) Available(ctx context.Context) error {
	return s.backend(Disk{Backend: s.Config.Local.Backend}).room(ctx, []int64{1})
}

// roomOf is what b has whenever it is called.
func roomOf(ctx context.Context, b backend) room {
	return func(sizes []int64) error { return b.room(ctx, sizes) }
}

// reserve has create make the copy of d where free says that there is room for it. Nobody
// else who is here takes that room in between. What takes time is done before:
// twenty starts at once wait for each other here.
func (s *Service) reserve(ctx context.Context, b backend, d Disk, free func() error, create func() (Copy, error)) (c Copy, err error) {
	if err := s.noteHome(b.home()); err != nil {
		return c, err
	}
	err = b.announce(d)
	if errors.Is(err, failure.NoSpace) {
		// Not even for that: free may make some, or has the better words.
		if err = free(); err == nil {
			err = b.announce(d)
		}
	}
	if err != nil {
		return c, err
	}
	defer func() {
		if err != nil {
			b.withdraw(d)
		}
	}()
	if !b.lends() {
		l, err := lock.Acquire(ctx, s.Layout.Locks(), roomLock(b.home()))
		if err != nil {
			return c, err
		}
		defer l.Release()
	}
	if err := free(); err != nil {
		return c, err
	}
	return create()
}

func roomLock(home string) string { return "room-" + homeID(home) }

// homeID stands for a home in the names of files.
func homeID(home string) string {
	sum := sha256.Sum256([]byte(home))
	return hex.EncodeToString(sum[:8])
}
