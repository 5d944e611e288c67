// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"net"
	"net/url"
	"strconv"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// ParseReplica reads a replica as it is named on a command line: an absolute
// path, or an NBD URL, whose grammar is that of the NBD project
// (doc/uri.md there):
//
//	nbd://HOST[:PORT]/EXPORT
//	nbd+unix:///EXPORT?socket=PATH
//
// The result is one layer, of a path one without a type: Build looks whether it
// is a device, and what lies below it. format is raw or qcow2; "" is raw.
func ParseReplica(spec, format string) (Layer, error) {
	if format == "" {
		format = imagecheck.Raw
	}
	if strings.HasPrefix(spec, "/") {
		l := Layer{Path: spec, Format: format}
		if err := checkPath(spec); err != nil {
			return Layer{}, failure.New(failure.Usage, "replica %w", err)
		}
		return l, nil
	}
	bad := func(why string) (Layer, error) {
		err := failure.New(failure.Usage, "replica %q: %s", clip(spec), why)
		return Layer{}, failure.Hint(err, "give an absolute path, nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
	}
	u, err := url.Parse(spec)
	if err != nil || u.User != nil || u.Fragment != "" {
		return bad("neither a path nor an NBD URL")
	}
	l := Layer{Type: NBD, Format: imagecheck.Raw, Export: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd":
		l.Host, l.Port = u.Hostname(), nbdPort
		if port := u.Port(); port != "" {
			l.Port, _ = strconv.Atoi(port)
		}
	case "nbd+unix":
		l.Socket = u.Query().Get("socket")
	default:
		return bad("neither a path nor an NBD URL")
	}
	if err := l.check(); err != nil {
		return bad(err.Error())
	}
	return l, nil
}

const nbdPort = 10809 // IANA

// address is where an NBD layer's server listens.
func (l Layer) address() (network, address string) {
	if l.Socket != "" {
		return "unix", l.Socket
	}
	return "tcp", net.JoinHostPort(l.Host, strconv.Itoa(l.Port))
}
