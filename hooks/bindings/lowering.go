// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"errors"

	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// unlowered adds the way out where the definition of a domain does not allow
// what one of its disks is to be lowered to.
func unlowered(bound []Bound, err error) error {
	if !errors.Is(err, xmlrewrite.ErrUnsupported) {
		return err
	}
	for _, b := range bound {
		switch {
		case b.Binding.Kind != (replicated{}).Name():
		case b.lower() == lowerInline:
			return failure.Hint(err, "bind disk %s with lower=export, for which it does not matter which disks the domain has", b.Disk.Target)
		case b.Binding.Option("transport", "") == transportVHost:
			return failure.Hint(err, "change the domain's definition, or bind disk %s with transport=nbd", b.Disk.Target)
		}
	}
	return err
}
