// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// Kind is one kind of storage that disks can be bound to. Its methods get all
// disks of one domain that are bound to it, at least one.
type Kind interface {
	// Name is how bindings and metadata call the kind.
	Name() string
	// Migrate says whether a domain with such a disk may be migrated live.
	Migrate() Migration
	// Offline is how a disk gets to another host, or its guest to the same disk
	// there, where Migrate refuses: a hint.
	Offline(Domain, Bound) string
	// Check refuses a value or option that the kind does not know.
	Check(Binding) error
	// Unfit is why the disk cannot be bound to the kind; "" if it can.
	Unfit(Disk) string

	// Plan looks at the storage once and returns what a fulfil would do. It
	// changes nothing.
	Plan(context.Context, *Host, Domain, []Bound) ([]Step, error)
	// Fulfil makes the disks ready, all or none of them, and may wait for the
	// deadline (0: as long as it takes).
	Fulfil(context.Context, *Host, Domain, []Bound, time.Duration) ([]Placement, error)
	// Relink is Fulfil for a domain that runs: each disk by itself, with no copy
	// made and nothing undone.
	Relink(context.Context, *Host, Domain, []Bound, time.Duration) error
	// Restorable refuses disks on which memory that was saved cannot go on,
	// because a fulfil would have to make them anew, or did. It changes nothing.
	Restorable(context.Context, *Host, Domain, []Bound) error
	// Labelled says that libvirt labels what the XML names for a disk, through
	// our links, so that Own is needed only where the disk forbids that.
	Labelled() bool
	// Own gives the nodes of the disks to the domain's QEMU.
	Own(context.Context, *Host, Domain, []Bound, Label) error
	// Release undoes a fulfil once the domain has gone. It may be called at
	// any time, more than once, and without a fulfil before it.
	Release(ctx context.Context, h *Host, d Domain, disks []Bound, reason string) error

	// Rewrite is how a domain is made to use the disk: the change of the disk
	// itself, and the entry for the metadata.
	Rewrite(*Host, Domain, Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error)
	// Place is the change of the disk alone, for a hook that rewrites the domain
	// at every start and leaves no metadata (VDSM).
	Place(*Host, Domain, Bound) (xmlrewrite.Rewriter, error)

	// Recorded reads an entry of the metadata as a binding, but for where it was
	// found; false if the entry is of another kind.
	Recorded(xmlrewrite.BoundDisk) (Binding, bool)
	// Source is what the XML must name for a disk of the domain with that entry:
	// the path of a file, device or socket.
	Source(*Host, Domain, xmlrewrite.BoundDisk) (string, error)
	// Point points a disk at its Source again, whatever it is now.
	Point(*Host, Domain, xmlrewrite.BoundDisk) (xmlrewrite.Rewriter, error)
	// Reassign makes an entry that was copied with the definition of another
	// domain the domain's own, or says why it cannot be.
	Reassign(*Host, Domain, *xmlrewrite.BoundDisk) error
}

// Migration says what a kind means for live migration.
type Migration string

// What a kind may say.
const (
	Allow  Migration = "allow"
	Refuse Migration = "refuse"
)

// Step is what a plan does with one disk.
type Step struct {
	Target   string   `json:"target"`
	Kind     string   `json:"kind"`
	What     string   `json:"what"`
	Commands []string `json:"commands"` // exact command lines and file writes
	Err      error    `json:"-"`        // why it will be refused; nil: it will not
}

// Label is what libvirt has chosen for all that a domain's QEMU opens.
type Label struct {
	Owned    bool // by UID and GID
	UID, GID int
	SELinux  string // context; "" for none
}

// Placement is where a fulfilled disk is.
type Placement struct {
	Target string
	Path   string // what the domain's XML must name
	Block  bool   // a block device, else a file
}

// Kinds is the table of the kinds.
func Kinds() []Kind { return []Kind{local{}, replicated{}, volume{}, image{}, thin{}} }

// recordedKind is the kind of an entry of the metadata, and the entry as a
// binding. An entry that only a newer diskhook understands has none.
func recordedKind(r xmlrewrite.BoundDisk) (Kind, Binding, bool) {
	if len(r.Unknown) > 0 {
		return nil, Binding{}, false
	}
	for _, k := range Kinds() {
		if b, is := k.Recorded(r); is {
			b.Select, b.Kind, b.From = r.Target, k.Name(), Metadata
			return k, b, true
		}
	}
	return nil, Binding{}, false
}

func kindNames() []string {
	var names []string
	for _, k := range Kinds() {
		names = append(names, k.Name())
	}
	return names
}

func kindOf(name string) (Kind, error) {
	for _, k := range Kinds() {
		if k.Name() == name {
			return k, nil
		}
	}
	err := failure.New(failure.Usage, "kind %q: there is no such kind", clip(name))
	return nil, failure.Hint(err, "use one of %s", strings.Join(kindNames(), ", "))
}
