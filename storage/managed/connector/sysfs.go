// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

const (
	defaultPause    = 250 * time.Millisecond
	defaultPatience = 30 * time.Second
)

// attr reads a file of sysfs without the white space around it; "" if it is
// not there or cannot be read, as with a device that is going.
func attr(elem ...string) string {
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.TrimRight(string(b), "\x00"))
}

func (h *Host) writeAttr(path, value string) error {
	if h.WriteAttr != nil {
		return h.WriteAttr(path, value)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// glob lists what fits the pattern below the host's root, by name.
func (h *Host) glob(pattern string) []string {
	found, err := filepath.Glob(h.at(pattern))
	if err != nil {
		return nil // the patterns are ours, and well-formed
	}
	return found
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// await looks until ready says yes, for as long as a device may take.
func (h *Host) await(ctx context.Context, what string, ready func() bool) error {
	pause, patience := h.Pause, h.Patience
	if pause <= 0 {
		pause = defaultPause
	}
	if patience <= 0 {
		patience = defaultPatience
	}
	deadline := time.After(patience)
	for !ready() {
		select {
		case <-ctx.Done():
			return failure.New(failure.Temporary, "waiting for %s: %w", what, context.Cause(ctx))
		case <-deadline:
			if ready() {
				return nil
			}
			return failure.New(failure.Temporary, "%s: not there after %v", what, patience)
		case <-time.After(pause):
		}
	}
	return nil
}

// portion is the time that try i of several may take, if there is a deadline:
// one that hangs must leave time for the others, and for what comes after them.
func portion(ctx context.Context, i, tries int) (context.Context, context.CancelFunc) {
	until, limited := ctx.Deadline()
	if !limited || tries == 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(until)/time.Duration(max(tries-i, 2)))
}

// device follows links from path to a node of /dev and returns the kernel's
// name of the block device. What is none is a failure.Precondition.
func (h *Host) device(path string) (string, error) {
	node, err := filepath.EvalSymlinks(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", failure.Wrap(failure.NotFound, err)
	case err != nil:
		return "", err
	}
	name := filepath.Base(node)
	dev, err := filepath.EvalSymlinks(h.at("dev"))
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(node, dev+"/") || !exists(h.at("sys/class/block", name)) {
		return "", failure.New(failure.Precondition, "%s: not a block device", path)
	}
	return name, nil
}

// Settle waits until udev has done with the devices that came (udevadm(8)).
// Until then it may give a node its default owner, after libvirt gave it to
// QEMU. A host without udev has no such race, and no start fails over it.
func (h *Host) Settle(ctx context.Context) {
	_, err := unlogged(h.Run).Run(ctx, command.Cmd{Name: "udevadm", Args: []string{"settle", "--timeout=10"}, Timeout: 15 * time.Second})
	if err != nil {
		h.Log.WarnContext(ctx, "udev may still be at work", "err", err)
	}
}

// IsBlock says whether the path leads to a block device of this host.
func (h *Host) IsBlock(path string) bool {
	_, err := h.device(path)
	return err == nil
}

// identity is what the kernel knows of the block device with this name.
//
//	dm/uuid           device-mapper: mpath-WWID, LVM-…
//	wwid              NVMe namespaces
//	device/wwid       SCSI: NAA, EUI or T10 designator of VPD page 0x83
//	bus/rbd/devices   Ceph: cluster, pool and id of the image
func (h *Host) identity(name string) Identity {
	dir := h.at("sys/class/block", name)
	id := Identity{WWN: attr(dir, "dm/uuid")}
	if id.WWN == "" {
		id.WWN = attr(dir, "wwid")
	}
	if id.WWN == "" {
		id.WWN = wwn(attr(dir, "device/wwid"))
	}
	if number, ok := strings.CutPrefix(name, "rbd"); ok {
		id.WWN = h.imageID(number)
	}
	id.WWN = strings.TrimPrefix(id.WWN, mapPrefix)
	// Sectors of 512 bytes, whatever the device's own are.
	if sectors, err := strconv.ParseInt(attr(dir, "size"), 10, 64); err == nil {
		id.Size = sectors * 512
	}
	return id
}

// imageID names a mapped image across clusters and re-creations
// (Documentation/ABI/testing/sysfs-bus-rbd).
func (h *Host) imageID(number string) string {
	dir := h.at("sys/bus/rbd/devices", number)
	cluster, image := attr(dir, "cluster_fsid"), attr(dir, "image_id")
	if cluster == "" || image == "" {
		return ""
	}
	return "rbd." + cluster + "." + attr(dir, "pool_id") + "." + image
}

// Look returns what is at a path that Attach returned, now. A path that leads
// nowhere is a failure.NotFound.
func (h *Host) Look(path string) (Identity, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Identity{}, failure.Wrap(failure.NotFound, err)
	case err != nil:
		return Identity{}, err
	}
	name, err := h.device(path)
	if err == nil {
		return h.identity(name), nil
	}
	if st.Mode().IsRegular() {
		return Identity{Size: st.Size()}, nil
	}
	return Identity{}, err
}

// unused refuses a device that somebody has open. udev looks at a device each
// time that somebody who could write to it closes it, such as the QEMU of a
// domain that ends: what is in use is looked at again when udev has done.
func (h *Host) unused(ctx context.Context, path string) error {
	return h.notUsed(ctx, path, h.InUse)
}

// unopened is unused for a device that others are made of, which are no use.
func (h *Host) unopened(ctx context.Context, path string) error {
	return h.notUsed(ctx, path, h.Opened)
}

func (h *Host) notUsed(ctx context.Context, path string, look func(string) (string, bool, error)) error {
	err := lookForUse(path, look)
	for range 2 {
		if !errors.Is(err, ErrInUse) {
			break
		}
		h.Settle(ctx)
		err = lookForUse(path, look)
	}
	return err
}

func lookForUse(path string, look func(string) (string, bool, error)) error {
	if look == nil {
		return nil
	}
	holder, inUse, err := look(path)
	switch {
	case errors.Is(err, failure.NotFound):
		return nil
	case err != nil:
		return fmt.Errorf("%s: is it in use: %w", path, err)
	case inUse:
		return failure.New(failure.Conflict, "%s: %w by %s", path, ErrInUse, holder)
	}
	return nil
}
