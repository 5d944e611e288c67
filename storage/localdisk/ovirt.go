// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// ErrNotOVirt says that this host has no user vdsm. It is a failure.Precondition.
var ErrNotOVirt = failure.Wrap(failure.Precondition, errors.New("this is no host of oVirt"))

// OVirtIdentities are the user vdsm, who may read oVirt's exports where root
// may not, and vdsm:qemu, who own what QEMU opens there. Below a moved root,
// and for whoever is not root, there is nobody else to be: both are nil.
func OVirtIdentities(l host.Layout) (*command.Credential, *Owner, error) {
	if l.Root != "" || os.Geteuid() != 0 {
		return nil, nil, nil
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
	return &command.Credential{UID: ids[0], GID: ids[1], Groups: ids[3:]}, &Owner{UID: int(ids[0]), GID: int(ids[2])}, nil
}

func notOVirt(err error) error {
	return failure.Hint(fmt.Errorf("%w: %w", ErrNotOVirt, err), "install vdsm, or use `diskhook` as root")
}

// reader reads the source of d; nil is ourselves.
func (s *Service) reader(d Disk) *command.Credential {
	if d.OVirt() {
		return s.User
	}
	return nil
}

// own gives the copy of an oVirt disk to its owner there; elsewhere libvirt
// does. The udev rule does so too, but nobody waits for it.
func (s *Service) own(o Observed) error {
	if s.Owner == nil || !o.Disk.OVirt() {
		return nil
	}
	if err := os.Chown(o.Copy.Path, s.Owner.UID, s.Owner.GID); err != nil {
		return fmt.Errorf("%s: owner: %w", o.Copy, err)
	}
	return nil
}
