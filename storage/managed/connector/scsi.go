// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// What iSCSI and Fibre Channel have in common: a volume is a LUN of one or more
// SCSI targets, each path to it is a device of its own, and multipathd makes
// one device of them.

// scsiPath is one path to a volume.
type scsiPath struct {
	address string // HOST:CHANNEL:TARGET:LUN
	disk    string // sdX
	dir     string // /sys/bus/scsi/devices/H:C:T:L
}

// scsiDevices lists the disks whose address is accepted, in order of name.
func (h *Host) scsiDevices(accept func(address [4]uint64, dir string) bool) []scsiPath {
	var all []scsiPath
	devices := h.scsi
	if devices == nil {
		devices = h.scsiTree()
	}
	for _, d := range devices {
		if accept(d.address, d.resolved) {
			all = append(all, d.disks(h)...)
		}
	}
	slices.SortFunc(all, func(a, b scsiPath) int { return strings.Compare(a.disk, b.disk) })
	return all
}

// scsiDevice is a device of any kind, H:C:T:L.
type scsiDevice struct {
	address       [4]uint64
	dir, resolved string // in /sys/bus/scsi/devices, and what that leads to
}

func (h *Host) scsiTree() []scsiDevice {
	all := []scsiDevice{}
	for _, dir := range h.glob("sys/bus/scsi/devices/*:*:*:*") {
		address, ok := parseAddress(filepath.Base(dir))
		resolved, err := filepath.EvalSymlinks(dir)
		if ok && err == nil {
			all = append(all, scsiDevice{address, dir, resolved})
		}
	}
	return all
}

func (d scsiDevice) disks(h *Host) []scsiPath {
	var all []scsiPath
	for _, block := range h.glob(filepath.Join("sys/bus/scsi/devices", filepath.Base(d.dir), "block/*")) {
		all = append(all, scsiPath{filepath.Base(d.dir), filepath.Base(block), d.dir})
	}
	return all
}

// Snapshot is the host with the SCSI devices that it has now, for who asks many
// connectors about one device.
func (h *Host) Snapshot() *Host {
	now := *h
	now.scsi = h.scsiTree()
	return &now
}

func parseAddress(s string) (address [4]uint64, ok bool) {
	parts := strings.Split(s, ":")
	if len(parts) != 4 {
		return address, false
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return address, false
		}
		address[i] = n
	}
	return address, true
}

// lunFor is the number that the kernel has for a LUN: SAM-2's flat addressing
// has 01b in the top bits of the two bytes (SAM-5, 4.7.7.3).
func lunFor(lun uint64, mode string) uint64 {
	const flat = 0x4000
	if mode == "SAM3-flat" || mode == "SAM2" && lun > 255 {
		return lun + flat
	}
	return lun
}

// addressingMode is data.addressing_mode; the default numbers LUNs as they are.
func addressingMode(info Info) (string, error) {
	mode, err := info.optional("addressing_mode")
	if err != nil {
		return "", err
	}
	if !slices.Contains([]string{"", "SAM", "SAM2", "SAM3-flat"}, mode) {
		return "", invalid("data.addressing_mode: %q is not SAM, SAM2 or SAM3-flat", mode)
	}
	return mode, nil
}

// scan has a SCSI host look for one LUN, and for no other. A "-" is any
// channel or target.
func (h *Host) scan(host uint64, channel, target string, lun uint64) error {
	path, what := h.scanning(host, channel, target, lun)
	if err := h.writeAttr(path, what); err != nil {
		return fmt.Errorf("scsi host %d: scan for lun %d: %w", host, lun, err)
	}
	return nil
}

func (h *Host) scanning(host uint64, channel, target string, lun uint64) (path, what string) {
	return h.at("sys/class/scsi_host", "host"+strconv.FormatUint(host, 10), "scan"), fmt.Sprintf("%s %s %d", channel, target, lun)
}

// wwn is a designator as multipath and udev's scsi_id write it: a digit for
// its kind, then the rest.
func wwn(designator string) string {
	for prefix, kind := range map[string]string{"t10.": "1", "eui.": "2", "naa.": "3"} {
		if rest, ok := strings.CutPrefix(designator, prefix); ok {
			return kind + strings.Join(strings.Fields(rest), "_")
		}
	}
	if designator == "" {
		return ""
	}
	return "8" + strings.Join(strings.Fields(designator), "_")
}

// sameVolume has the kernel ask each path again what it is, since a device
// that a lost detach left behind still says what was there then, and returns
// the one WWN that all have.
func (h *Host) sameVolume(paths []scsiPath) (string, error) {
	var id string
	for i, p := range paths {
		if err := h.writeAttr(filepath.Join(p.dir, "rescan"), "1"); err != nil {
			return "", fmt.Errorf("device %s: ask it again: %w", p.disk, err)
		}
		now := wwn(attr(p.dir, "wwid"))
		if now == "" {
			return "", failure.New(failure.Precondition, "device %s: it does not tell which volume it is", p.disk)
		}
		if i > 0 && now != id {
			return "", failure.New(failure.Conflict, "%w: %s is %s, and %s is %s", ErrMismatch, paths[0].disk, id, p.disk, now)
		}
		id = now
	}
	return id, nil
}

// attachSCSI makes one device of the paths that find returns, once there are any.
func (h *Host) attachSCSI(ctx context.Context, what string, find func() []scsiPath) (Attachment, error) {
	var paths []scsiPath
	if err := h.await(ctx, what, func() bool { paths = find(); return len(paths) > 0 }); err != nil {
		return Attachment{}, err
	}
	id, err := h.sameVolume(paths)
	if err != nil {
		return Attachment{}, err
	}
	if err := failpoint.Hit("scsi.found"); err != nil {
		return Attachment{}, err
	}
	dm, err := h.mapOf(ctx, paths, id)
	switch {
	case errors.Is(err, ErrNoMultipath) && !h.NeedMultipath && !h.multipathd(ctx):
		return h.single(paths[0], id)
	case err != nil:
		return Attachment{}, err
	}
	identity := h.identity(dm)
	if identity.WWN != id {
		return Attachment{}, failure.New(failure.Conflict, "%w: the multipath map %s is %s, and its path %s is %s", ErrMismatch, dm, identity.WWN, paths[0].disk, id)
	}
	path := h.at("dev/mapper", attr(h.at("sys/class/block", dm), "dm/name"))
	if err := h.await(ctx, path, func() bool { return exists(path) }); err != nil {
		return Attachment{}, err
	}
	body, err := json.Marshal(map[string]string{"type": "block", "scsi_wwn": id, "path": h.at("dev", dm), "multipath_id": id})
	return Attachment{Path: path, MultipathID: id, JSON: body, Identity: identity}, err
}

// single is a path without a map, on a host where no multipathd runs.
func (h *Host) single(p scsiPath, id string) (Attachment, error) {
	identity := h.identity(p.disk)
	identity.WWN = id
	body, err := json.Marshal(map[string]string{"type": "block", "scsi_wwn": id, "path": h.at("dev", p.disk)})
	return Attachment{Path: h.at("dev", p.disk), JSON: body, Identity: identity}, err
}

// detachSCSI takes away the maps over the paths, or the map of that id if all
// its paths have vanished, and then the paths. Before it begins it makes sure
// that nobody has any of them open.
func (h *Host) detachSCSI(ctx context.Context, paths []scsiPath, multipathID string) error {
	maps, err := h.unusedSCSI(ctx, paths, multipathID)
	if err != nil {
		return err
	}
	var wwids []string
	for _, dm := range maps {
		wwids = append(wwids, strings.TrimPrefix(attr(h.at("sys/class/block", dm), "dm/uuid"), mapPrefix))
	}
	for _, dm := range maps {
		if err := h.flushMap(ctx, dm); err != nil {
			return err
		}
		if err := failpoint.Hit("scsi.flushed"); err != nil {
			return err
		}
	}
	for _, p := range paths {
		if err := h.deletePath(ctx, p, len(maps) > 0); err != nil {
			return err
		}
		if err := failpoint.Hit("scsi.deleted"); err != nil {
			return err
		}
	}
	// As long as there were paths, multipathd may have made a map anew.
	for _, wwid := range wwids {
		for _, dm := range h.mapsOver(nil, wwid) {
			if err := h.flushMap(ctx, dm); err != nil {
				return err
			}
		}
	}
	return nil
}

// unusedSCSI returns the maps over the paths, and that of the id, and refuses
// maps and paths of which somebody has one open. A map that multipathd makes
// meanwhile is no use of its paths, but one map more.
func (h *Host) unusedSCSI(ctx context.Context, paths []scsiPath, multipathID string) ([]string, error) {
	for {
		maps := h.mapsOver(paths, multipathID)
		err := h.unusedNodes(ctx, maps, paths)
		if !errors.Is(err, ErrInUse) || slices.Equal(h.mapsOver(paths, multipathID), maps) {
			return maps, err
		}
	}
}

func (h *Host) unusedNodes(ctx context.Context, maps []string, paths []scsiPath) error {
	for _, dm := range maps {
		if err := h.unusedMap(ctx, dm); err != nil {
			return err
		}
	}
	for _, p := range paths {
		if len(h.holders(p.disk)) > 0 {
			continue // it is held by its map, which nobody has open
		}
		if err := h.unused(ctx, h.at("dev", p.disk)); err != nil {
			return err
		}
	}
	return nil
}

// Works says whether I/O on an attached device gets anywhere, as far as the
// kernel knows: a SCSI disk that runs, or a multipath map with such a path. A map
// without one keeps what it is sent until there is one again.
func (h *Host) Works(path string) bool {
	name, err := h.device(path)
	if err != nil {
		return true
	}
	if strings.HasPrefix(attr(h.at("sys/class/block", name, "dm/uuid")), mapPrefix) {
		return h.alive(name)
	}
	state := attr(h.at("sys/class/block", name), "device/state")
	return !strings.HasPrefix(name, "sd") || state == "running" || state == ""
}

// deletePath writes out what is in the page cache of a path, unless that went
// through a map, and has the kernel forget it.
func (h *Host) deletePath(ctx context.Context, p scsiPath, mapped bool) error {
	if !mapped && attr(p.dir, "state") == "running" {
		if err := h.flush(ctx, p.disk); err != nil {
			return err
		}
	}
	if err := h.writeAttr(filepath.Join(p.dir, "delete"), "1"); err != nil && exists(p.dir) {
		return fmt.Errorf("device %s: delete: %w", p.disk, err)
	}
	return h.await(ctx, "the end of "+p.disk, func() bool { return !exists(p.dir) })
}
