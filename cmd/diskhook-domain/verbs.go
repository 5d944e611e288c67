// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"diskhook/hooks/domains"
	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
)

// verb serves one request over an open connection.
type verb func(*libvirt.Connect, []byte) (any, error)

func verbs() map[string]verb {
	all := map[string]verb{
		domains.VerbVersion:     typed(tellVersion),
		domains.VerbList:        typed(list),
		domains.VerbFacts:       typed(tellFacts),
		domains.VerbXML:         typed(dumpXML),
		domains.VerbDefine:      typed(define),
		domains.VerbBlockResize: typed(blockResize),
		domains.VerbStart:       typed(start),
	}
	maps.Copy(all, blockVerbs())
	return all
}

// typed reads the request for a verb that wants an R.
func typed[R, A any](act func(*libvirt.Connect, R) (A, error)) verb {
	return func(conn *libvirt.Connect, request []byte) (any, error) {
		var r R
		if err := json.Unmarshal(request, &r); err != nil {
			return nil, failure.New(failure.Usage, "diskhook-domain: request: %w", err)
		}
		return act(conn, r)
	}
}

func tellVersion(conn *libvirt.Connect, _ struct{}) (v domains.Version, err error) {
	if v.URI, err = conn.GetURI(); err != nil {
		return v, classified("libvirt: uri", err)
	}
	if v.Driver, err = conn.GetType(); err != nil {
		return v, classified("libvirt: driver", err)
	}
	if v.Daemon, err = conn.GetLibVersion(); err != nil {
		return v, classified("libvirt: version", err)
	}
	if v.Driver == "QEMU" {
		// A host without any emulator has no version of one.
		v.QEMU, _ = conn.GetVersion()
	}
	if v.Library, err = libvirt.GetVersion(); err != nil {
		return v, classified("libvirt: version of the library", err)
	}
	return v, nil
}

func list(conn *libvirt.Connect, r domains.ListRequest) (domains.List, error) {
	all := domains.List{Domains: []domains.Facts{}}
	found, err := conn.ListAllDomains(0)
	if err != nil {
		return all, classified("libvirt: list of domains", err)
	}
	for i := range found {
		dom := &found[i]
		f, err := facts(dom)
		if err == nil && r.XML {
			err = definitions(dom, &f)
		}
		_ = dom.Free()
		if gone(err) {
			continue // undefined since the list was made
		}
		if err != nil {
			return all, err
		}
		all.Domains = append(all.Domains, f)
	}
	return all, nil
}

// definitions adds what the domain is defined as, and what it runs as.
func definitions(dom *libvirt.Domain, f *domains.Facts) (err error) {
	if f.XML, err = dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE); err == nil && f.Active {
		f.Live, err = dom.GetXMLDesc(0)
	}
	return classified(object(f.Name)+": XML", err)
}

func tellFacts(conn *libvirt.Connect, r domains.DomainRequest) (domains.Facts, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return domains.Facts{}, err
	}
	defer dom.Free()
	return facts(dom)
}

func dumpXML(conn *libvirt.Connect, r domains.DomainRequest) (domains.Definition, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return domains.Definition{}, err
	}
	defer dom.Free()
	xml, err := dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE)
	return domains.Definition{XML: xml}, classified(object(r.Domain)+": XML", err)
}

func define(conn *libvirt.Connect, r domains.Definition) (domains.Facts, error) {
	dom, err := conn.DomainDefineXMLFlags(r.XML, libvirt.DOMAIN_DEFINE_VALIDATE)
	if err != nil {
		return domains.Facts{}, classified("define the domain", err)
	}
	defer dom.Free()
	if err := flushDefinitions(conn); err != nil {
		return domains.Facts{}, err
	}
	return facts(dom)
}

// flushDefinitions makes the definition outlive a power cut: libvirt flushes the
// file and then gives it its name, which is in no directory on disk yet
// (virFileRewrite in src/util/virfile.c).
func flushDefinitions(conn *libvirt.Connect) error {
	uri, err := conn.GetURI()
	if err != nil || uri != domains.HostURI {
		return classified("libvirt: uri", err)
	}
	if err := atomicfile.Sync("/etc/libvirt/qemu"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("definitions: %w", err)
	}
	return nil
}

func blockResize(conn *libvirt.Connect, r domains.ResizeRequest) (struct{}, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return struct{}{}, err
	}
	defer dom.Free()
	err = dom.BlockResize(r.Target, r.Size, libvirt.DOMAIN_BLOCK_RESIZE_BYTES)
	return struct{}{}, classified(object(r.Domain)+": disk "+r.Target+": resize", err)
}

// start starts a domain. That it runs, whoever started it, is what was wanted.
func start(conn *libvirt.Connect, r domains.DomainRequest) (domains.Facts, error) {
	dom, err := lookup(conn, r.Domain)
	if err != nil {
		return domains.Facts{}, err
	}
	defer dom.Free()
	if err := dom.Create(); err != nil {
		if active, failed := dom.IsActive(); failed != nil || !active {
			return domains.Facts{}, classified(object(r.Domain)+": start", err)
		}
	}
	return facts(dom)
}

// lookup finds a domain by UUID if that is what the text is, else, and if no
// domain has it, by name.
func lookup(conn *libvirt.Connect, domain string) (*libvirt.Domain, error) {
	if id, err := uuid.Parse(domain); err == nil {
		dom, err := conn.LookupDomainByUUIDString(id.String())
		if !gone(err) {
			return dom, classified(object(domain), err)
		}
	}
	dom, err := conn.LookupDomainByName(domain)
	return dom, classified(object(domain), err)
}

func object(domain string) string { return fmt.Sprintf("domain %s", failure.OneLine(domain)) }

func facts(dom *libvirt.Domain) (f domains.Facts, err error) {
	if f.Name, err = dom.GetName(); err != nil {
		return f, classified("domain", err)
	}
	state, _, err := dom.GetState()
	if err != nil {
		return f, classified(object(f.Name)+": state", err)
	}
	f.State = stateName(state)
	for _, ask := range []struct {
		what string
		ask  func() error
	}{
		{"uuid", func() (err error) { f.UUID, err = dom.GetUUIDString(); return }},
		{"is it active", func() (err error) { f.Active, err = dom.IsActive(); return }},
		{"run", func() (err error) { f.Run, err = runOf(dom); return }},
		{"is it persistent", func() (err error) { f.Persistent, err = dom.IsPersistent(); return }},
		{"snapshots", func() (err error) { f.Snapshots, err = dom.SnapshotNum(0); return }},
		{"checkpoints", func() (err error) { f.Checkpoints, err = checkpoints(dom); return }},
		{"autostart", func() (err error) { f.Autostart, err = persistentOnly(dom.GetAutostart()); return }},
		{"managed save", func() (err error) { f.ManagedSave, err = persistentOnly(dom.HasManagedSaveImage(0)); return }},
	} {
		if err := ask.ask(); err != nil {
			return f, classified(object(f.Name)+": "+ask.what, err)
		}
	}
	return f, nil
}

// runOf is this boot of the host with the number that libvirt gives to a running
// domain. libvirt counts anew when it is restarted while no domain runs.
func runOf(dom *libvirt.Domain) (string, error) {
	active, err := dom.IsActive()
	if err != nil || !active {
		return "", err
	}
	id, err := dom.GetID()
	if err != nil {
		if active, gone := dom.IsActive(); gone == nil && !active {
			return "", nil
		}
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return fmt.Sprintf("%s/%d", bytes.TrimSpace(boot), id), err
}

// persistentOnly takes "no" from what a transient domain cannot have.
func persistentOnly(is bool, err error) (bool, error) {
	if isCode(err, libvirt.ERR_OPERATION_INVALID) {
		return false, nil
	}
	return is, err
}

// checkpoints counts them; drivers that cannot have any say so.
func checkpoints(dom *libvirt.Domain) (int, error) {
	all, err := dom.ListAllCheckpoints(0)
	if isCode(err, libvirt.ERR_NO_SUPPORT) {
		return 0, nil
	}
	for i := range all {
		_ = all[i].Free()
	}
	return len(all), err
}

// stateName is the word of virsh domstate.
func stateName(s libvirt.DomainState) string {
	names := map[libvirt.DomainState]string{
		libvirt.DOMAIN_RUNNING: "running", libvirt.DOMAIN_BLOCKED: "idle", libvirt.DOMAIN_PAUSED: "paused",
		libvirt.DOMAIN_SHUTDOWN: "in shutdown", libvirt.DOMAIN_SHUTOFF: "shut off", libvirt.DOMAIN_CRASHED: "crashed",
		libvirt.DOMAIN_PMSUSPENDED: "pmsuspended",
	}
	if name, ok := names[s]; ok {
		return name
	}
	return "no state"
}
