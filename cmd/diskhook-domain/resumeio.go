// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"slices"

	"libvirt.org/go/libvirt"

	"diskhook/hooks/domains"
)

// resumeIO goes by what libvirt and QEMU say, and not by what the caller
// believes: a domain that somebody paused, or that waits for another disk, stays
// as it is. An error of a disk is QEMU's io-status, which stays until the
// domain is resumed.
func resumeIO(conn *libvirt.Connect, r domains.DiskRequest) (answer domains.Resumed, err error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return answer, err
	}
	defer dom.Free()
	state, reason, err := dom.GetState()
	if err != nil {
		return answer, classified(object(r.Domain)+": state", err)
	}
	answer.State = stateName(state)
	if state != libvirt.DOMAIN_PAUSED || libvirt.DomainPausedReason(reason) != libvirt.DOMAIN_PAUSED_IOERROR {
		answer.Why = "it is not paused for an I/O error"
		return answer, nil
	}
	failed, err := dom.GetDiskErrors(0)
	if err != nil {
		return answer, classified(object(r.Domain)+": disk errors", err)
	}
	if !slices.ContainsFunc(failed, func(e libvirt.DomainDiskError) bool { return e.Disk == r.Target }) {
		answer.Why = "the error is not one of this disk"
		return answer, nil
	}
	if err := dom.Resume(); err != nil {
		return answer, classified(object(r.Domain)+": resume", err)
	}
	answer.Resumed = true
	return answer, nil
}
