// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os/user"
	"strconv"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// identities are the user vdsm, who may read oVirt's exports where root may
// not, and vdsm:qemu, who own what QEMU opens.
func identities(l host.Layout) (*command.Credential, *localdisk.Owner, error) {
	if l.Root != "" {
		return nil, nil, nil // a moved root is a test's, and belongs to whoever runs it
	}
	vdsm, err := user.Lookup("vdsm")
	if err != nil {
		return nil, nil, notOVirt(err)
	}
	qemu, err := user.LookupGroup("qemu")
	if err != nil {
		return nil, nil, notOVirt(err)
	}
	groups, err := vdsm.GroupIds()
	if err != nil {
		return nil, nil, notOVirt(err)
	}
	ids := make([]uint32, 0, len(groups)+3)
	for _, s := range append([]string{vdsm.Uid, vdsm.Gid, qemu.Gid}, groups...) {
		id, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, nil, notOVirt(err)
		}
		ids = append(ids, uint32(id))
	}
	return &command.Credential{UID: ids[0], GID: ids[1], Groups: ids[3:]},
		&localdisk.Owner{UID: int(ids[0]), GID: int(ids[2])}, nil
}

func notOVirt(err error) error {
	err = failure.Wrap(failure.Precondition, fmt.Errorf("this is no host of oVirt: %w", err))
	return failure.Hint(err, "install vdsm, or use `diskhook` as root")
}
