// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"path/filepath"
	"strings"
)

// Device is a block device that could hold something: a multipath map, or a
// disk that is part of none.
type Device struct {
	Path string `json:"path"` // below /dev
	Kind string `json:"kind"` // multipath, scsi, nvme, rbd, nbd, virtio or other
	Identity
	Model string   `json:"model,omitempty"`
	Paths []string `json:"paths,omitempty"` // disks of a multipath map
	// UsedBy are the partitions on it, and the devices that are made of it.
	UsedBy []string `json:"used_by,omitempty"`
}

// Devices lists the host's devices by name, without those of the attachments:
// neither a volume's device nor a path to it, nor, where all that is known is a
// WWID, anything that has it.
func (h *Host) Devices(but []Attachment) []Device {
	hidden, wwids := map[string]bool{}, map[string]bool{}
	for _, a := range but {
		if a.MultipathID != "" {
			wwids[a.MultipathID] = true
		}
		if name, err := h.device(a.Path); err == nil {
			hidden[name] = true
		}
	}
	all := []Device{}
	for _, dir := range h.glob("sys/class/block/*") {
		name := filepath.Base(dir)
		d, ok := h.deviceOf(name)
		if !ok || hidden[name] || wwids[d.WWN] || len(h.holders(name)) > 0 {
			continue // the map over a path stands for it
		}
		all = append(all, d)
	}
	return all
}

// deviceOf describes the block device with this name; false if it is made of
// others, like partitions and logical volumes, or of memory or files, or has
// no medium.
func (h *Host) deviceOf(name string) (Device, bool) {
	dir := h.at("sys/class/block", name)
	d := Device{Path: h.at("dev", name), Identity: h.identity(name), Kind: kindOf(name)}
	// nvmeXcYnZ is one path of a namespace, and has no node.
	path := d.Kind == "nvme" && strings.Contains(strings.TrimPrefix(name, "nvme"), "c")
	if d.Kind == "" || d.Size == 0 || path || exists(filepath.Join(dir, "partition")) {
		return d, false
	}
	if strings.HasPrefix(name, "dm-") {
		if !strings.HasPrefix(attr(dir, "dm/uuid"), mapPrefix) {
			return d, false
		}
		d.Path = h.at("dev/mapper", attr(dir, "dm/name"))
	}
	d.Model = attr(dir, "device/model")
	for _, slave := range h.glob(filepath.Join("sys/class/block", name, "slaves/*")) {
		d.Paths = append(d.Paths, h.at("dev", filepath.Base(slave)))
	}
	for _, part := range h.glob(filepath.Join("sys/class/block", name, "*/partition")) {
		d.UsedBy = append(d.UsedBy, filepath.Base(filepath.Dir(part)))
	}
	for _, holder := range h.glob(filepath.Join("sys/class/block", name, "holders/*")) {
		d.UsedBy = append(d.UsedBy, filepath.Base(holder))
	}
	return d, true
}

// kindOf goes by the kernel's names (Documentation/admin-guide/devices.txt).
// Those of memory, files and removable media are none.
func kindOf(name string) string {
	for _, of := range [][2]string{
		{"dm-", "multipath"}, {"sd", "scsi"}, {"nvme", "nvme"}, {"rbd", "rbd"}, {"vd", "virtio"},
		{"loop", ""}, {"ram", ""}, {"zram", ""}, {"sr", ""}, {"fd", ""}, {"nbd", "nbd"}, {"md", ""}, {"zd", ""},
	} {
		if strings.HasPrefix(name, of[0]) {
			return of[1]
		}
	}
	return "other"
}
