// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// mapPrefix begins the uuid of a multipath map; the rest is its WWID.
const mapPrefix = "mpath-"

// multipathTime bounds a command of multipath-tools. Removing a map waits for
// udev, and for what is queued.
const multipathTime = 2 * time.Minute

// multipathd says whether the daemon runs and answers.
func (h *Host) multipathd(ctx context.Context) bool {
	_, err := h.Run.Run(ctx, command.Cmd{Name: "multipathd", Args: []string{"show", "status"}, Timeout: multipathTime})
	return err == nil
}

// holders are the multipath maps over a disk.
func (h *Host) holders(disk string) []string {
	var maps []string
	for _, holder := range h.glob(filepath.Join("sys/class/block", disk, "holders/dm-*")) {
		dm := filepath.Base(holder)
		if strings.HasPrefix(attr(h.at("sys/class/block", dm, "dm/uuid")), mapPrefix) {
			maps = append(maps, dm)
		}
	}
	return maps
}

// mapOf returns the map over the paths (dm-N), and has multipathd make it
// where it did not by itself: by default it does so only for volumes that it
// has seen before, or that have two paths (multipath.conf(5), find_multipaths).
func (h *Host) mapOf(ctx context.Context, paths []scsiPath, wwid string) (string, error) {
	first := func() string {
		for _, p := range paths {
			if maps := h.holders(p.disk); len(maps) > 0 {
				return maps[0]
			}
		}
		return ""
	}
	if dm := first(); dm != "" {
		return dm, nil
	}
	if !h.multipathd(ctx) {
		return "", failure.Hint(fmt.Errorf("volume %s: %w: multipathd does not run", wwid, ErrNoMultipath), "run `systemctl enable --now multipathd`")
	}
	if _, err := h.Run.Run(ctx, command.Cmd{Name: "multipath", Args: []string{"-a", wwid}, Timeout: multipathTime}); err != nil {
		return "", fmt.Errorf("volume %s: %w: %w", wwid, ErrNoMultipath, err)
	}
	if err := failpoint.Hit("multipath.added"); err != nil {
		return "", err
	}
	refused := h.addPaths(ctx, paths)
	if err := h.await(ctx, "a multipath map", func() bool { return first() != "" }); err != nil {
		err = errors.Join(fmt.Errorf("volume %s: %w: %w", wwid, ErrNoMultipath, err), refused)
		return "", failure.Hint(err, "see whether multipath.conf excludes it: `multipath -v3 /dev/%s`", paths[0].disk)
	}
	return first(), nil
}

// addPaths has multipathd look at paths of which it made no map when they came.
// It says no to one that it gets from udev at this moment, or is making a map
// of: what counts is the map.
func (h *Host) addPaths(ctx context.Context, paths []scsiPath) error {
	h.Settle(ctx)
	var refused []error
	for _, p := range paths {
		if _, err := h.Run.Run(ctx, command.Cmd{Name: "multipathd", Args: []string{"add", "path", p.disk}, Timeout: multipathTime}); err != nil {
			refused = append(refused, err)
		}
	}
	return errors.Join(refused...)
}

// mapsOver are the maps over any of the paths, and the one of that id.
func (h *Host) mapsOver(paths []scsiPath, wwid string) []string {
	var maps []string
	for _, p := range paths {
		maps = append(maps, h.holders(p.disk)...)
	}
	if wwid != "" {
		for _, uuid := range h.glob("sys/class/block/dm-*/dm/uuid") {
			if attr(uuid) == mapPrefix+wwid {
				maps = append(maps, filepath.Base(filepath.Dir(filepath.Dir(uuid))))
			}
		}
	}
	slices.Sort(maps)
	return slices.Compact(maps)
}

// partitions are the maps that kpartx(8) makes of a guest's partitions, by a
// rule of udev's, as soon as there is the map of its disk.
func (h *Host) partitions(dm string) []string {
	var all []string
	for _, holder := range h.glob(filepath.Join("sys/class/block", dm, "holders/dm-*")) {
		part := filepath.Base(holder)
		if kind, of, ok := strings.Cut(attr(h.at("sys/class/block", part, "dm/uuid")), "-"); ok && strings.HasPrefix(kind, "part") && strings.HasPrefix(of, mapPrefix) {
			all = append(all, part)
		}
	}
	return all
}

// unusedMap refuses a map that somebody has open, or one of its partitions.
// Those themselves are no use: multipath removes them with their map, unless
// somebody has opened that meanwhile.
func (h *Host) unusedMap(ctx context.Context, dm string) error {
	parts := h.partitions(dm)
	if len(parts) == 0 {
		return h.unused(ctx, h.at("dev", dm))
	}
	for _, part := range parts {
		if err := h.unused(ctx, h.at("dev", part)); err != nil {
			return err
		}
	}
	return h.unopened(ctx, h.at("dev", dm)) // a guest has all of it
}

// unusedPath is unused for what may be a map.
func (h *Host) unusedPath(ctx context.Context, path string) error {
	if dm, err := h.device(path); err == nil && strings.HasPrefix(dm, "dm-") {
		return h.unusedMap(ctx, dm)
	}
	return h.unused(ctx, path)
}

// flushMap removes a map. Where none of its paths works, nothing can be
// written out any more: what is queued has to fail, or the removal hangs.
func (h *Host) flushMap(ctx context.Context, dm string) error {
	name := attr(h.at("sys/class/block", dm), "dm/name")
	if !word(name, "_-.:+#=@") {
		return failure.New(failure.Precondition, "multipath map %s: its name %q is none", dm, name)
	}
	if h.alive(dm) {
		if err := h.flush(ctx, dm); err != nil {
			return err
		}
	} else if _, err := h.Run.Run(ctx, command.Cmd{Name: "multipathd", Args: []string{"disablequeueing", "map", name}, Timeout: multipathTime}); err != nil {
		return fmt.Errorf("multipath map %s: let what is queued fail: %w", name, err)
	}
	const tries = 5 // udev looks at the map when it comes, and has it open meanwhile
	var err error
	for range tries {
		if _, err = h.Run.Run(ctx, command.Cmd{Name: "multipath", Args: []string{"-f", name}, Timeout: multipathTime}); err == nil {
			break
		}
		if !exists(h.at("sys/class/block", dm)) {
			return nil
		}
		h.Settle(ctx)
		_ = h.awaitOnce(ctx)
	}
	if err != nil {
		err = failure.New(failure.Conflict, "multipath map %s: remove: %w", name, err)
		return failure.Hint(err, "see who has it open with `lsof /dev/mapper/%s`", name)
	}
	return nil
}

// alive says whether a path of the map works (scsi_sysfs(5), state).
func (h *Host) alive(dm string) bool {
	for _, slave := range h.glob(filepath.Join("sys/class/block", dm, "slaves/*")) {
		if attr(slave, "device/state") == "running" {
			return true
		}
	}
	return false
}

// flush writes out what the page cache holds of a device (blockdev(8)).
func (h *Host) flush(ctx context.Context, name string) error {
	node := h.at("dev", name)
	if !exists(node) {
		return nil
	}
	if _, err := h.Run.Run(ctx, command.Cmd{Name: "blockdev", Args: []string{"--flushbufs", node}, Timeout: multipathTime}); err != nil {
		return fmt.Errorf("device %s: write out what is cached: %w", name, err)
	}
	return nil
}

// awaitOnce is one pause.
func (h *Host) awaitOnce(ctx context.Context) error {
	pause := h.Pause
	if pause <= 0 {
		pause = defaultPause
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pause):
		return nil
	}
}
