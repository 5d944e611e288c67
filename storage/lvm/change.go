// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"strconv"

	"diskhook/storage/failure"
)

// CreateOptions describe a new volume.
type CreateOptions struct {
	VG, Name string
	// Size in bytes, a multiple of 512; LVM rounds up to whole extents.
	Size int64
	// Pool is the thin pool that a thin volume is made in; "" makes a linear
	// volume out of the group's free extents.
	Pool string
	// Tags are set in the same metadata commit: no crash leaves the volume
	// without them.
	Tags []string
	// SkipActivation keeps the volume inactive when the host activates
	// everything (-ky); Activate here and later overrides it (-K).
	SkipActivation bool
	// Activate leaves the volume active. Otherwise it has no device, and old
	// signatures in a linear one are not wiped.
	Activate bool
}

// Create makes a volume with one lvcreate. It is not idempotent: a name that
// is taken is ErrExists, whatever bears it.
//
// A linear volume's content is what was on the disk before. LVM zeroes only
// its first 4 KiB and wipes signatures, so that nothing on the host takes the
// new device for an old file system or physical volume. A thin volume reads
// as zeros if, and only if, its pool zeroes (Attr.Zeroes).
//
// Errors: ErrExists, failure.NoSpace, ErrNoVG, ErrNoPool, ErrNoDeviceMapper.
func (l *LVM) Create(ctx context.Context, o CreateOptions) error {
	if err := checkNames(o.VG, o.Name); err != nil {
		return err
	}
	object := "lv " + o.VG + "/" + o.Name + ": create"
	if err := checkSize(o.Size); err != nil {
		return failure.New(failure.Usage, "%s: %w", object, err)
	}
	args := []string{"-n", o.Name}
	size := strconv.FormatInt(o.Size, 10) + "b"
	switch {
	case o.Pool != "":
		if err := checkNames(o.VG, o.Pool); err != nil {
			return err
		}
		// No -W, no -Z: there is nothing of old to wipe, and reading for
		// signatures would only touch the pool.
		args = append(args, "-V", size, "--thinpool", o.Pool)
	case o.Activate:
		args = append(args, "-L", size, "-Wy", "-Zy")
	default:
		// Asked to wipe what it does not activate, lvcreate 2.03.16 complains,
		// makes nothing, and exits 0.
		args = append(args, "-L", size, "-Wn", "-Zn")
	}
	tags, err := tagOptions("--addtag", o.Tags)
	if err != nil {
		return failure.New(failure.Usage, "%s: %w", object, err)
	}
	args = append(append(args, tags...), activation(o.SkipActivation, o.Activate)...)
	return explain(object, l.change(ctx, "lvcreate", append(args, o.VG)...))
}

// activation is lvcreate's part about being active: -k sets the flag, -K
// makes this command overlook it.
func activation(skip, activate bool) []string {
	switch {
	case skip && activate:
		return []string{"-ky", "-K", "-ay"}
	case skip:
		return []string{"-ky", "-an"}
	case activate:
		return []string{"-kn", "-ay"}
	}
	return []string{"-kn", "-an"}
}

// SnapshotOptions describe a thin snapshot: a new thin volume in the same
// pool that begins as Origin is now.
type SnapshotOptions struct {
	VG, Origin, Name string
	Tags             []string
	SkipActivation   bool
	Activate         bool
}

// Snapshot makes a thin snapshot of a thin volume with one lvcreate. It takes
// no space of its own at first, and it never counts as zeroed. Errors as of
// Create; an origin that is not there is ErrNoLV.
func (l *LVM) Snapshot(ctx context.Context, o SnapshotOptions) error {
	if err := checkNames(o.VG, o.Origin, o.Name); err != nil {
		return err
	}
	object := "lv " + o.VG + "/" + o.Name + ": create as a snapshot of " + o.Origin
	tags, err := tagOptions("--addtag", o.Tags)
	if err != nil {
		return failure.New(failure.Usage, "%s: %w", object, err)
	}
	// Without a size lvcreate makes a thin snapshot or, of an origin that is
	// not thin, fails; it never makes a copy-on-write snapshot by mistake.
	args := append([]string{"-s", "-n", o.Name}, tags...)
	args = append(args, activation(o.SkipActivation, o.Activate)...)
	return explain(object, l.change(ctx, "lvcreate", append(args, o.VG+"/"+o.Origin)...))
}

// Activate makes the devices of all named volumes with one command, also of
// those that are marked to be skipped (without -K those are left out, exit 0). It is idempotent; no names is nothing
// to do. udev may still be at work on the nodes (blockdev.WaitNode). When one
// volume fails the others may be active: call Deactivate to undo.
func (l *LVM) Activate(ctx context.Context, vg string, names ...string) error {
	return l.changeLVs(ctx, "activate", vg, names, "-ay", "-K")
}

// ActivateShared is Activate for volumes that other hosts may have active at the
// same time: in a group of lvmlockd(8) each takes a shared lock (-asy). In any
// other group it is Activate, and nothing keeps hosts apart.
func (l *LVM) ActivateShared(ctx context.Context, vg string, names ...string) error {
	return l.changeLVs(ctx, "activate shared", vg, names, "-asy", "-K")
}

// ActivateExclusive is Activate for volumes that no other host may have: in a group
// of lvmlockd(8) it takes the exclusive lock (-aey). One that another host has is
// ErrElsewhere.
func (l *LVM) ActivateExclusive(ctx context.Context, vg string, names ...string) error {
	return l.changeLVs(ctx, "activate exclusively", vg, names, "-aey", "-K")
}

// Refresh gives the devices of active volumes the table that the group's metadata
// say, after another host changed them.
func (l *LVM) Refresh(ctx context.Context, vg string, names ...string) error {
	return l.changeLVs(ctx, "refresh", vg, names, "--refresh")
}

// Deactivate takes the devices of all named volumes away. It is idempotent; a
// volume that is open is ErrInUse and stays.
func (l *LVM) Deactivate(ctx context.Context, vg string, names ...string) error {
	return l.changeLVs(ctx, "deactivate", vg, names, "-an")
}

// ChangeTags adds and deletes tags with one command. It is idempotent: tags
// that are there already, or gone already, are fine. For one volume all of it
// is one metadata commit; several volumes are committed one after the other,
// so a crash may leave some of them changed.
func (l *LVM) ChangeTags(ctx context.Context, vg string, names, add, del []string) error {
	adds, err := tagOptions("--addtag", add)
	if err != nil {
		return err
	}
	dels, err := tagOptions("--deltag", del)
	if err != nil {
		return err
	}
	if len(adds)+len(dels) == 0 {
		return checkNames(vg, names...)
	}
	return l.changeLVs(ctx, "change tags", vg, names, append(adds, dels...)...)
}

// SetReadOnly makes volumes refuse writes, or take them again, in metadata
// and in the kernel. It is idempotent.
func (l *LVM) SetReadOnly(ctx context.Context, vg string, readOnly bool, names ...string) error {
	permission := "rw"
	if readOnly {
		permission = "r"
	}
	err := l.changeLVs(ctx, "set permission "+permission, vg, names, "-p", permission)
	// lvchange calls it a failure when there is nothing to change.
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// changeLVs runs one lvchange over all names. Without names it does nothing:
// lvchange would take the bare group for all of its volumes.
func (l *LVM) changeLVs(ctx context.Context, verb, vg string, names []string, args ...string) error {
	if err := checkNames(vg, names...); err != nil || len(names) == 0 {
		return err
	}
	object := "vg " + vg
	if len(names) == 1 {
		object = "lv " + vg + "/" + names[0]
	}
	return explain(object+": "+verb, l.change(ctx, "lvchange", append(args, qualified(vg, names)...)...))
}

// Remove removes a volume, active or not. One that is open, mounted or under
// another device is ErrInUse and stays; one that is gone is ErrNoLV, which a
// caller who repeats himself takes for success.
//
// LVM itself makes sure that nobody has the device open, which it can only
// where device-mapper answers: whoever must not remove an open volume looks
// at LV.Open first. There is no -f: -y answers the one question that LVM
// asks, and -f would go on over errors.
func (l *LVM) Remove(ctx context.Context, vg, name string) error {
	if err := checkNames(vg, name); err != nil {
		return err
	}
	return explain("lv "+vg+"/"+name+": remove", l.change(ctx, "lvremove", vg+"/"+name))
}

// Extend makes a volume at least size bytes long (a multiple of 512). It is
// idempotent: a volume that is as long or longer is left alone, and nothing
// is ever cut off. What a linear volume gains reads as what was on the disk.
func (l *LVM) Extend(ctx context.Context, vg, name string, size int64) error {
	if err := checkNames(vg, name); err != nil {
		return err
	}
	object := "lv " + vg + "/" + name + ": extend"
	if err := checkSize(size); err != nil {
		return failure.New(failure.Usage, "%s: %w", object, err)
	}
	err := explain(object, l.change(ctx, "lvextend", "-L", strconv.FormatInt(size, 10)+"b", vg+"/"+name))
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// sector is LVM's unit: it refuses a number of bytes that is no multiple.
const sector = 512

func checkSize(size int64) error {
	if size <= 0 || size%sector != 0 {
		return errors.New(strconv.FormatInt(size, 10) + " bytes is not a positive multiple of 512")
	}
	return nil
}
