// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
)

// named is a domain with those of its disks that are meant; none is all.
type named struct {
	domain string
	disks  []string
}

// namedDisks reads NAME[/DISK]..., as `local list -o name` writes it: a domain's
// name has no slash. What is said of one domain is put together.
func namedDisks(c *cli.Context) ([]named, error) {
	words, err := operandList(c, "NAME")
	if err != nil {
		return nil, err
	}
	var all []named
	for _, word := range words {
		domain, disk, some := strings.Cut(word, "/")
		if domain == "" || some && disk == "" {
			return nil, see(c, failure.New(failure.Usage, "%q: neither NAME nor NAME/DISK", word))
		}
		i := slices.IndexFunc(all, func(n named) bool { return n.domain == domain })
		switch {
		case i < 0 && some:
			all = append(all, named{domain, []string{disk}})
		case i < 0:
			all = append(all, named{domain, nil})
		case !some:
			all[i].disks = nil
		case len(all[i].disks) > 0:
			all[i].disks = append(all[i].disks, disk)
		}
	}
	return all, nil
}
