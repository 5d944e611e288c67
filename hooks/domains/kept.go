// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"fmt"
	"strings"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// What verbs on definitions have to know of what keeps the data of a disk under a
// name of its own: a managed volume, an image of a repository, a thin volume.

// keepsData refuses to take it away from a disk without the operator's word: what
// its guest wrote is there, and would go out of sight.
func (d Domain) keepsData(target, verb string) error {
	e := d.entry(target)
	disk, there := d.Disk(target)
	if e == nil || !there || disk.At() != e.Source || disk.ReadOnly {
		return nil // it does not show that, and stays as it is; or no guest wrote to it
	}
	what := failure.OneLine(bindings.KeptBy(*e))
	if what == "" {
		return nil
	}
	if origin, err := e.OriginDisk(); err == nil && origin.Source.Path() == e.Source {
		return nil // which names the same
	}
	noun, _, _ := strings.Cut(what, " ")
	err := failure.New(failure.Conflict, "%s: disk %s: what the guest wrote is on %s, and nowhere else", d, target, what)
	return failure.Hint(err, "give that up with `diskhook domain %s --discard-guest-data %s %s`: the %s stays as it is", verb, d.NameArg(), target, noun)
}

// notAbove refuses to point a disk at what keeps its data while it is a snapshot
// on top of that.
func notAbove(d Domain, b bindings.Bound) error {
	err := failure.New(failure.Conflict, "%s: disk %s: %s is a snapshot on top of %s and has the guest's newest writes", d, b.Disk.Target, failure.OneLine(b.Disk.Path), b.Kept())
	return failure.Hint(err, "start the domain and merge it with `virsh blockcommit %s %s --active --pivot`, shut it down, then run this again", d.NameArg(), b.Disk.Target)
}

// keptBy is what matters of an entry of the metadata: what keeps the disk's data,
// and what a copy of it is made from.
func keptBy(e xmlrewrite.BoundDisk) string {
	kept := bindings.KeptBy(e)
	for _, i := range []*xmlrewrite.Image{e.Image, e.OriginImage} {
		if i != nil {
			kept += fmt.Sprintf(" %+v", *i)
		}
	}
	return kept
}
