// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"slices"
	"strings"
	"time"

	"diskhook/storage/blockdev"
)

// State is where a copy stands.
type State string

// The states of a copy.
const (
	Absent   State = "absent"
	Updating State = "updating"
	Ready    State = "ready"
)

// Copy is what a backend found under a disk's copy name. Sizes are bytes.
type Copy struct {
	State State  `json:"state"`
	UUID  string `json:"uuid,omitempty"`
	Name  string `json:"name,omitempty"`
	// Home and HomeID are volume group and its UUID, or the directory, or the thin
	// cluster with its UUID.
	Home   string `json:"home,omitempty"`
	HomeID string `json:"home_id,omitempty"`
	Path   string `json:"path,omitempty"` // node or file
	// Format is raw, or qcow2 for an overlay.
	Format string `json:"format,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// Open: nil is unknown, which counts as open wherever data could be lost.
	Open *bool `json:"open,omitempty"`
	// Active says that the node should be there.
	Active bool     `json:"active,omitempty"`
	Tags   []string `json:"tags,omitempty"`
	// Origin is the name of the template that the copy is a clone of, or lies on;
	// "" is none, or one that is gone.
	Origin string `json:"origin,omitempty"`
	// Written is when the data of a file was written last; of a volume nobody knows.
	Written time.Time `json:"-"`
	// Zeroes says that what nobody wrote yet reads zero: of a file, and of a
	// volume of a thin pool that zeroes its blocks before it hands them out.
	Zeroes bool `json:"-"`
	// Writable says so of a volume; templates are not.
	Writable bool `json:"-"`
	seal     *seal
	// Pool is the thin pool of a volume; "" is none.
	Pool string `json:"-"`
	// Sick is why the copy cannot be used as it is; "" is well.
	Sick string `json:"sick,omitempty"`
}

// The tags of a copy's volume. All but those with our prefix are oVirt's own,
// so that its hook and ours read each other's volumes. The dir backend keeps
// the same words in its sidecar.
const (
	tagUpdating = "UPDATING"
	tagVM       = "VM_" // domain UUID
	tagImage    = "IU_" // oVirt image id
	tagParent   = "PU_" // oVirt's id of the parent, always blank for a copy
	tagTarget   = "DH_target_"
	tagMachine  = "DH_machine_"
	tagSchema   = "DH_v1"
	tagOverlay  = "DH_overlay" // it is a qcow2 image

	blankUUID = "00000000-0000-0000-0000-000000000000"
)

// creationTags mark the volume of d from the moment it exists.
func creationTags(d Disk) []string {
	tags := append([]string{tagUpdating}, identityTags(d)...)
	if d.overlaid() {
		tags = append(tags, tagOverlay)
	}
	if d.On != "" {
		tags = append(tags, cloneTag(d.On))
	}
	return tags
}

// identityTags say whose copy it is, in oVirt's words.
func identityTags(d Disk) []string {
	tags := []string{tagVM + d.Domain, tagParent + blankUUID}
	if d.Image != "" {
		tags = append(tags, tagImage+d.Image)
	}
	return tags
}

// ourTags are added when a copy is complete. Their absence is how an LV of
// oVirt's hook is known.
func ourTags(d Disk, machine string) []string {
	return []string{tagSchema, tagTarget + d.Target, tagMachine + machine}
}

func (c Copy) has(tag string) bool { return slices.Contains(c.Tags, tag) }

// ours says that diskhook made or adopted the copy.
func (c Copy) ours() bool {
	return slices.ContainsFunc(c.Tags, func(t string) bool { return strings.HasPrefix(t, "DH_") })
}

// closed says that nobody has the copy open, for sure.
func (c Copy) closed() bool { return c.Open != nil && !*c.Open }

// file says that the copy is a file; others are volumes.
func (c Copy) file() bool { return strings.HasPrefix(c.Home, "/") }

// awaitNode waits for udev to make the node of an active volume.
func (c Copy) awaitNode(ctx context.Context) error {
	if c.file() {
		return nil
	}
	_, err := blockdev.WaitNode(ctx, c.Path)
	return err
}

// String names the copy in messages: "lv ovirt-local/x" or "file /x".
func (c Copy) String() string {
	if c.file() {
		return "file " + c.Path
	}
	if cluster, is := strings.CutPrefix(c.Home, thinHome); is {
		return "volume " + cluster + "/" + c.Name
	}
	return "lv " + c.Home + "/" + c.Name
}
