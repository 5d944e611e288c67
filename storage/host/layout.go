// SPDX-License-Identifier: Apache-2.0

// Package host knows this machine: where diskhook keeps its files, what its
// configuration says, and which machine and boot this is.
//
// It reads; nothing here creates state. A wrong configuration is an error for
// the CLI and a warning for a hook (Load returns both, the caller decides).
package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// Layout names diskhook's files. Root is "" on a real host; demo, tests and
// use without root move every path below another directory.
type Layout struct{ Root string }

func (l Layout) at(path string) string { return filepath.Join("/", l.Root, path) }

// Config is the configuration file, root 0644.
func (l Layout) Config() string { return l.at("/etc/diskhook/diskhook.toml") }

// Definitions is the directory of one kind of definition: volumes, quorum,
// repos or clusters; root 0600 files NAME.json.
func (l Layout) Definitions(kind string) string { return l.at("/etc/diskhook/" + kind + ".d") }

// State is the directory of what must survive a reboot.
func (l Layout) State() string { return l.at("/var/lib/diskhook") }

// Receipts holds DOMAIN-UUID/TARGET.json, world readable.
func (l Layout) Receipts() string { return l.at("/var/lib/diskhook/receipts") }

// LocalDir is where the dir backend keeps copies unless configured otherwise.
func (l Layout) LocalDir() string { return l.at("/var/lib/diskhook/local") }

// Cursors holds one file for each copy that is being filled: how far it is.
func (l Layout) Cursors() string { return l.at("/var/lib/diskhook/cursors") }

// Homes notes the volume groups and directories in which copies were made.
func (l Layout) Homes() string { return l.at("/var/lib/diskhook/homes") }

// Run is the directory of what a reboot clears.
func (l Layout) Run() string { return l.at("/run/diskhook") }

// Links holds DOMAIN-UUID/TARGET symlinks, the paths that bound disks name.
func (l Layout) Links() string { return l.at("/run/diskhook/disks") }

// Images holds DOMAIN-UUID/TARGET/disk, the paths that disks name which are images
// of storage repositories, and beside each the images below it.
func (l Layout) Images() string { return l.at("/run/diskhook/images") }

// ThinDisks holds DOMAIN-UUID/TARGET symlinks, the paths that disks name which are
// volumes of thin clusters.
func (l Layout) ThinDisks() string { return l.at("/run/diskhook/thin-disks") }

// Status holds DOMAIN-UUID/TARGET.json progress files, world readable.
func (l Layout) Status() string { return l.at("/run/diskhook/status") }

// Locks holds the lock files.
func (l Layout) Locks() string { return l.at("/run/diskhook/lock") }

// MachineID is this machine's id (machine-id(5)), which receipts and metadata
// carry so that a definition moved to another host is noticed.
func (l Layout) MachineID() (string, error) {
	return readID(l.at("/etc/machine-id"), "/etc/machine-id")
}

// BootID changes with every boot (random(4)).
func (l Layout) BootID() (string, error) {
	return readID("/proc/sys/kernel/random/boot_id")
}

// readID reads the first of the files that exists. Both ids are UUIDs, the
// machine id without dashes.
func readID(paths ...string) (string, error) {
	var first error
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		id := strings.TrimSpace(string(b))
		if _, err := uuid.Parse(id); err != nil {
			return "", fmt.Errorf("%s: %q is not an id: %w", path, id, err)
		}
		return id, nil
	}
	return "", first
}
