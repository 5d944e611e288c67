// SPDX-License-Identifier: Apache-2.0

package member

import (
	"fmt"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
)

// Names of mapped devices. Neither a cluster's nor a volume's name has a "+", so
// no two of them are alike, and udev leaves it as it is:
//
//	dh-CLUSTER+VOLUME       what a guest gets
//	dh-CLUSTER+pool+A       the pool on window A
//	dh-CLUSTER+metadata+A   window A of UUID.host
//	dh-CLUSTER+reserved+0   disk 0, while blocks are released from it
//	dh-CLUSTER+balloon+0    while blocks are collected to be given back
func (c *Member) prefix() string { return "dh-" + c.Name + "+" }

func (c *Member) deviceName(volume string) string { return c.prefix() + volume }
func (c *Member) poolName(window int) string      { return c.prefix() + "pool+" + letter(window) }
func (c *Member) metadataName(window int) string  { return c.prefix() + "metadata+" + letter(window) }
func (c *Member) reservedName() string            { return c.prefix() + "reserved+0" }
func (c *Member) balloonName() string             { return c.prefix() + "balloon+0" }

func letter(window int) string { return string(rune('A' + window)) }

// uuidOf is what a device is listed with: at most 128 bytes, as they are read by
// libdm, and unique as its name is. It says of which membership of this host the
// device is, by the host's number, so that a pool from before the host was fenced is
// never taken for the one that it has now.
func (s *session) uuidOf(name string) string {
	return fmt.Sprintf("%s%d-%s", s.uuidPrefix(), s.header.Number, strings.TrimPrefix(name, s.prefix()))
}

func (c *Member) uuidPrefix() string { return fmt.Sprintf("DISKHOOK-%s-", c.Cluster) }

// fits refuses a volume whose device the kernel could not name, before anything
// has been asked for.
func (c *Member) fits(v layout.VolumeRecord) error {
	if name := c.deviceName(v.Name); !devmapper.ValidName(name) {
		return failure.New(failure.Usage, "volume %s: %q is no name for a mapped device: the names of cluster and volume are too long together", v.Name, name)
	}
	return nil
}
