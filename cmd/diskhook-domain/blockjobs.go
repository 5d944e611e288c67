// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"encoding/xml"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"github.com/beevik/etree"
	"libvirt.org/go/libvirt"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// blockVerbs are those on the disks of a running domain.
func blockVerbs() map[string]verb {
	return map[string]verb{
		domains.VerbLive:        typed(live),
		domains.VerbBlockPull:   typed(blockPull),
		domains.VerbBlockJob:    typed(blockJob),
		domains.VerbBlockJobEnd: typed(blockJobEnd),
		domains.VerbFlush:       typed(flush),
		domains.VerbBlockCopy:   typed(blockCopy),
		domains.VerbSuspend:     typed(suspend),
		domains.VerbResume:      typed(resume),
		domains.VerbResumeIO:    typed(resumeIO),
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
	text, err := dom.GetXMLDesc(0)
	return domains.Definition{XML: text}, classified(object(r.Domain)+": XML", err)
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
		libvirt.DOMAIN_BLOCK_JOB_TYPE_COPY:          domains.CopyJob,
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
	job := domains.BlockJob{Type: kind, Done: info.Cur, Total: info.End}
	if kind == domains.CopyJob && info.Cur == info.End {
		// Both also are 0, or the same for a moment, before it is under way.
		job.Ready, err = mirrored(dom, r.Target)
	}
	return job, classified(object(r.Domain)+": disk "+r.Target+": block job", err)
}

// mirrored asks for <mirror ready='yes'>, which is libvirt's word for a copy
// to which the domain can go over.
func mirrored(dom *libvirt.Domain, target string) (bool, error) {
	text, err := dom.GetXMLDesc(0)
	if err != nil {
		return false, err
	}
	doc, err := xmlrewrite.Parse([]byte(text))
	if err != nil {
		return false, err
	}
	ready := false
	err = doc.EditDisk(target, func(e *etree.Element) error {
		if mirror := e.SelectElement("mirror"); mirror != nil {
			ready = mirror.SelectAttrValue("ready", "") == "yes"
		}
		return nil
	})
	return ready, err
}

// blockCopy names the format: libvirt would look for one in the copy otherwise.
// Writes are acknowledged when both have them, so that the mirror always
// catches up.
func blockCopy(conn *libvirt.Connect, r domains.CopyRequest) (struct{}, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return struct{}{}, err
	}
	defer dom.Free()
	err = dom.BlockCopy(r.Target, mirrorXML(r.Path, r.Block), &libvirt.DomainBlockCopyParameters{BandwidthSet: r.Rate > 0, Bandwidth: r.Rate},
		libvirt.DOMAIN_BLOCK_COPY_REUSE_EXT|libvirt.DOMAIN_BLOCK_COPY_TRANSIENT_JOB|libvirt.DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES)
	return struct{}{}, classified(object(r.Domain)+": disk "+r.Target+": block copy", err)
}

func mirrorXML(path string, block bool) string {
	kind, attribute := "file", "file"
	if block {
		kind, attribute = "block", "dev"
	}
	var escaped strings.Builder
	_ = xml.EscapeText(&escaped, []byte(path)) // a Builder takes everything
	return fmt.Sprintf("<disk type='%s'><driver name='qemu' type='raw'/><source %s='%s'/></disk>", kind, attribute, escaped.String())
}

func suspend(conn *libvirt.Connect, r domains.DomainRequest) (struct{}, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return struct{}{}, err
	}
	defer dom.Free()
	return struct{}{}, classified(object(r.Domain)+": suspend", dom.Suspend())
}

func resume(conn *libvirt.Connect, r domains.DomainRequest) (struct{}, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return struct{}{}, err
	}
	defer dom.Free()
	return struct{}{}, classified(object(r.Domain)+": resume", dom.Resume())
}

func blockJobEnd(conn *libvirt.Connect, r domains.EndRequest) (struct{}, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return struct{}{}, err
	}
	defer dom.Free()
	var flags libvirt.DomainBlockJobAbortFlags
	if r.Pivot {
		flags = libvirt.DOMAIN_BLOCK_JOB_ABORT_PIVOT
	}
	err = dom.BlockJobAbort(r.Target, flags)
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
