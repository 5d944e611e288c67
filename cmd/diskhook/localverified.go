// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"diskhook/storage/localdisk"
)

// verified is what a copy's receipt says of its being read back.
type verified struct {
	Disk     string `json:"disk"` // its target
	Verified bool   `json:"verified"`
	Digest   string `json:"digest,omitempty"`
}

// verified looks up, for who asked for it, which copies were read back. One that
// was complete before, or that somebody else made meanwhile, is not read for
// that: a guest may have written to it.
func (p *program) verified(s *services, d *prestaged) {
	for _, disk := range d.disks {
		if !disk.Verify || d.err != nil {
			continue
		}
		r, err := localdisk.ReadReceipt(s.local.Layout, disk.Domain, disk.Key())
		switch {
		case err != nil:
			d.fail(err)
			return
		case r == nil:
			continue // it was given up just now
		case disk.Instant && r.Unsettled():
			fmt.Fprintf(p.stderr, "diskhook: %s: it is an overlay on its source, of which nothing was copied that could be verified\n", harmless(disk.String()))
		case !r.Verified:
			fmt.Fprintf(p.stderr, "diskhook: %s: its copy was not read back: it was made before, or by somebody who did not ask for that\n", harmless(disk.String()))
		}
		d.Copies = append(d.Copies, verified{r.Target, r.Verified, r.Digest})
	}
}

// allVerified says so of a domain for whose copies it was asked.
func (d *prestaged) allVerified() bool {
	for _, c := range d.Copies {
		if !c.Verified {
			return false
		}
	}
	return len(d.Copies) > 0
}
