// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"strconv"

	"github.com/beevik/etree"
)

// Source is a <source> of a disk or of a layer below it. Which fields mean
// something depends on Type; the others are "".
type Source struct {
	Type string // file, block, dir, network, volume, nvme, vhostuser, vhostvdpa, or what stands there

	File string // file
	Dev  string // block, vhostvdpa
	Dir  string // dir

	Protocol, Name   string // network
	Hosts            []Host // network
	TLS, Query       string // network: attributes of its <source>
	Snapshot, Config string // network, rbd: the snapshot that is read, Ceph's configuration file
	Initiator        string // network, iscsi: its qualified name
	Auth             *Auth  // network

	Pool, Volume, Mode string // volume

	Namespace, Address string // nvme: its namespace and PCI address, 0000:01:00.0

	Socket string // vhostuser

	StartupPolicy string // what libvirt does if it is missing; not mandatory means: goes on without
	Index         string // libvirt's number in live XML
	FDGroup       string // the file comes as an open descriptor of that name

	// What a rewrite has to know about before it takes the source away.
	HasSlices, HasDataStore, HasReservations, HasEncryption, HasCookies, HasAuth bool
}

// Host is one server of a network source.
type Host struct{ Name, Port, Transport, Socket string }

// Auth names the secret that a network source is opened with; libvirt keeps it.
// The secret has a UUID or a Usage.
type Auth struct{ Username, Type, UUID, Usage string }

// Path returns the path of a file, block or dir source; "" for any other and
// for an empty drive.
func (s Source) Path() string {
	switch s.Type {
	case "file":
		return s.File
	case "block":
		return s.Dev
	case "dir":
		return s.Dir
	}
	return ""
}

// String names the source in a message: its path, or what stands for one.
func (s Source) String() string {
	switch s.Type {
	case "file", "block", "dir":
		return or(s.Path(), "no medium")
	case "network":
		return s.Protocol + ":" + s.Name
	case "volume":
		return "volume " + s.Pool + "/" + s.Volume
	case "nvme":
		return "nvme " + s.Address + " namespace " + s.Namespace
	case "vhostuser":
		return "vhost-user " + s.Socket
	case "vhostvdpa":
		return "vhost-vdpa " + s.Dev
	}
	return "source of type " + s.Type
}

// readSource reads the element, which may be nil, as a source of that type.
func readSource(e *etree.Element, kind string) Source {
	s := Source{Type: kind}
	if e == nil {
		return s
	}
	s.StartupPolicy, s.Index, s.FDGroup = attr(e, "startupPolicy"), attr(e, "index"), attr(e, "fdgroup")
	s.HasSlices = child(e, "slices") != nil
	s.HasDataStore = child(e, "dataStore") != nil
	s.HasReservations = child(e, "reservations") != nil
	s.HasEncryption = child(e, "encryption") != nil
	s.HasCookies = child(e, "cookies") != nil
	s.HasAuth = child(e, "auth") != nil
	switch kind {
	case "file":
		s.File = attr(e, "file")
	case "block", "vhostvdpa":
		s.Dev = attr(e, "dev")
	case "dir":
		s.Dir = attr(e, "dir")
	case "network":
		s.Protocol, s.Name = attr(e, "protocol"), attr(e, "name")
		s.TLS, s.Query = attr(e, "tls"), attr(e, "query")
		s.Snapshot, s.Config = attr(child(e, "snapshot"), "name"), attr(child(e, "config"), "file")
		s.Initiator = attr(child(child(e, "initiator"), "iqn"), "name")
		if auth := child(e, "auth"); auth != nil {
			secret := child(auth, "secret")
			s.Auth = &Auth{attr(auth, "username"), attr(secret, "type"), attr(secret, "uuid"), attr(secret, "usage")}
		}
		for c := range e.ChildElementsSeq() {
			if is(c, "", "host") {
				s.Hosts = append(s.Hosts, Host{attr(c, "name"), attr(c, "port"), attr(c, "transport"), attr(c, "socket")})
			}
		}
	case "volume":
		s.Pool, s.Volume, s.Mode = attr(e, "pool"), attr(e, "volume"), attr(e, "mode")
	case "nvme":
		s.Namespace, s.Address = attr(e, "namespace"), pciAddress(child(e, "address"))
	case "vhostuser":
		s.Socket = attr(e, "path")
	}
	return s
}

// pciAddress writes an <address> as lspci does. libvirt takes hexadecimal
// numbers with 0x, octal ones with 0, and decimal ones.
func pciAddress(e *etree.Element) string {
	if e == nil {
		return ""
	}
	var n [4]uint64
	for i, key := range []string{"domain", "bus", "slot", "function"} {
		v, err := strconv.ParseUint(or(attr(e, key), "0"), 0, 32)
		if err != nil {
			return ""
		}
		n[i] = v
	}
	return fmt.Sprintf("%04x:%02x:%02x.%x", n[0], n[1], n[2], n[3])
}
