// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"fmt"
	"os/signal"
	"syscall"

	"libvirt.org/go/libvirt"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
)

// blockVerbs are those on the disks of a running domain.
func blockVerbs() map[string]verb {
	return map[string]verb{
		domains.VerbLive:        typed(live),
		domains.VerbBlockPull:   typed(blockPull),
		domains.VerbBlockJob:    typed(blockJob),
		domains.VerbBlockJobEnd: typed(blockJobEnd),
		domains.VerbFlush:       typed(flush),
	}
}

func live(conn *libvirt.Connect, r domains.DomainRequest) (domains.Definition, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return domains.Definition{}, err
	}
	defer dom.Free()
	active, err := dom.IsActive()
	if err == nil && !active {
		err = failure.New(failure.Conflict, "it does not run")
	}
	if err != nil {
		return domains.Definition{}, classified(object(r.Domain), err)
	}
	xml, err := dom.GetXMLDesc(0)
	return domains.Definition{XML: xml}, classified(object(r.Domain)+": XML", err)
}

func blockPull(conn *libvirt.Connect, r domains.PullRequest) (struct{}, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return struct{}{}, err
	}
	defer dom.Free()
	err = dom.BlockPull(r.Target, r.Rate, libvirt.DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
	return struct{}{}, classified(object(r.Domain)+": disk "+r.Target+": block pull", err)
}

// jobTypes are virDomainBlockJobType's; 0 is no job.
func jobTypes() map[libvirt.DomainBlockJobType]string {
	return map[libvirt.DomainBlockJobType]string{
		libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN:       "",
		libvirt.DOMAIN_BLOCK_JOB_TYPE_PULL:          domains.PullJob,
		libvirt.DOMAIN_BLOCK_JOB_TYPE_COPY:          "copy",
		libvirt.DOMAIN_BLOCK_JOB_TYPE_COMMIT:        "commit",
		libvirt.DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "commit",
		libvirt.DOMAIN_BLOCK_JOB_TYPE_BACKUP:        "backup",
	}
}

func blockJob(conn *libvirt.Connect, r domains.DiskRequest) (domains.BlockJob, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return domains.BlockJob{}, err
	}
	defer dom.Free()
	info, err := dom.GetBlockJobInfo(r.Target, 0)
	if err != nil {
		return domains.BlockJob{}, classified(object(r.Domain)+": disk "+r.Target+": block job", err)
	}
	kind, known := jobTypes()[info.Type]
	if !known {
		kind = fmt.Sprintf("type %d", info.Type)
	}
	return domains.BlockJob{Type: kind, Done: info.Cur, Total: info.End}, nil
}

func blockJobEnd(conn *libvirt.Connect, r domains.EndRequest) (struct{}, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return struct{}{}, err
	}
	defer dom.Free()
	err = dom.BlockJobAbort(r.Target, 0)
	return struct{}{}, classified(object(r.Domain)+": disk "+r.Target+": end its block job", err)
}

// flush suspends the domain for a moment: there is no other call of libvirt's
// at which QEMU writes out the tables of its images (vm_stop in system/cpus.c
// flushes all of them). Signals have to wait, so that it is resumed.
func flush(conn *libvirt.Connect, r domains.DomainRequest) (f domains.Flushed, err error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return f, err
	}
	defer dom.Free()
	state, _, err := dom.GetState()
	if err != nil {
		return f, classified(object(r.Domain)+": state", err)
	}
	f.State = stateName(state)
	if state != libvirt.DOMAIN_RUNNING && state != libvirt.DOMAIN_BLOCKED {
		return f, nil
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := dom.Suspend(); err != nil {
		return f, classified(object(r.Domain)+": suspend", err)
	}
	err = dom.Resume()
	for tries := 0; err != nil && tries < 3; tries++ {
		if active, gone := dom.IsActive(); gone == nil && !active {
			break
		}
		err = dom.Resume()
	}
	f.Flushed = err == nil
	if err = classified(object(r.Domain)+": resume", err); err != nil {
		return f, failure.Hint(err, "resume it with `virsh resume %s`", failure.OneLine(r.Domain))
	}
	return f, nil
}
