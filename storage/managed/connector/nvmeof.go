// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// nvmeof is a namespace of an NVMe subsystem on the network, by way of
// nvme-cli. Cinder has two forms of the same:
//
//	{"driver_volume_type": "nvmeof", "data": {"target_portal": "1.1.1.1", "target_port": 4420, "nqn": "nqn.…", "transport_type": "tcp", "ns_id": 10}}
//	{"driver_volume_type": "nvmeof", "data": {"target_nqn": "nqn.…", "vol_uuid": "…", "portals": [["1.1.1.1", "4420", "tcp"], …], "ns_id": 10}}
//
// Several portals are paths that the kernel's own multipathing joins; where
// that is switched off, the first that works is used.
type nvmeof struct {
	host    *Host
	nqn     string
	hostNQN string
	portals []nvmePortal
	uuid    string // of the namespace, with dashes, lower case
	nguid   string // without dashes, lower case
	nsid    string
}

type nvmePortal struct{ transport, address, port string }

const nvmeTime = 60 * time.Second

func newNVMeoF(h *Host, info Info) (Connector, error) {
	if info.has("volume_replicas") {
		return nil, unsupported("a volume of replicas (data.volume_replicas)")
	}
	for _, key := range []string{"dhchap_secret", "dhchap_key", "dhchap_ctrl_secret"} {
		if info.hasSecret(key) {
			return nil, unsupported("in-band authentication (data.%s)", key)
		}
	}
	n := &nvmeof{host: h}
	nqnKey := "nqn"
	if info.has("target_nqn") {
		nqnKey = "target_nqn"
	}
	var uuid, nguid string
	var errs [6]error
	n.nqn, errs[0] = info.text(nqnKey)
	n.hostNQN, errs[1] = info.optional("host_nqn")
	uuid, errs[2] = info.optional("vol_uuid")
	nguid, errs[3] = info.optional("volume_nguid")
	n.portals, errs[4] = nvmePortals(info)
	if info.has("ns_id") {
		var nsid uint64
		nsid, errs[5] = info.number("ns_id")
		n.nsid = strconv.FormatUint(nsid, 10)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	n.uuid, n.nguid = strings.ToLower(uuid), strings.ToLower(strings.ReplaceAll(nguid, "-", ""))
	for _, name := range []string{n.nqn, n.hostNQN} {
		if name != "" && (!word(name, ".:-_") || len(name) > 223) { // NVMe Base 2.0, 4.5
			return nil, invalid("data: %q is not an NVMe qualified name", name)
		}
	}
	if n.uuid != "" && !word(n.uuid, "-") || n.nguid != "" && !word(n.nguid, "") {
		return nil, invalid("data.vol_uuid or data.volume_nguid: not an id")
	}
	return n, nil
}

func nvmePortals(info Info) ([]nvmePortal, error) {
	if !info.has("portals") {
		address, err := info.text("target_portal")
		if err != nil {
			return nil, err
		}
		transport, err := info.optional("transport_type")
		if err != nil {
			return nil, err
		}
		p, err := nvmePortalOf(address, info.Data["target_port"], transport)
		return []nvmePortal{p}, err
	}
	var all []nvmePortal
	for _, entry := range info.list("portals") {
		triple, ok := entry.([]any)
		if !ok || len(triple) != 3 {
			return nil, invalid("data.portals: not all are [ADDRESS, PORT, TRANSPORT]")
		}
		address, ok1 := triple[0].(string)
		transport, ok2 := triple[2].(string)
		if !ok1 || !ok2 {
			return nil, invalid("data.portals: not all are [ADDRESS, PORT, TRANSPORT]")
		}
		p, err := nvmePortalOf(address, triple[1], transport)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	if len(all) == 0 || len(all) > maxPaths {
		return nil, invalid("data.portals: %d of them", len(all))
	}
	return all, nil
}

func nvmePortalOf(address string, port any, transport string) (nvmePortal, error) {
	n, err := number(port)
	ip := net.ParseIP(strings.Trim(address, "[]"))
	switch {
	case err != nil || n == 0 || n > 65535:
		return nvmePortal{}, invalid("data: %v is not a port", port)
	case ip != nil:
		address = ip.String()
	case !word(address, ".-"):
		return nvmePortal{}, invalid("data: %q is not an address", address)
	}
	switch strings.ToLower(transport) {
	case "", "tcp":
		transport = "tcp"
	case "rdma", "rocev2":
		transport = "rdma"
	default:
		return nvmePortal{}, unsupported("transport %q", transport)
	}
	return nvmePortal{transport, address, strconv.FormatUint(n, 10)}, nil
}

func (n *nvmeof) Takes() []string {
	which := n.uuid
	if which == "" {
		which = n.nguid
	}
	if which == "" {
		which = n.nsid
	}
	return []string{"nvme:" + n.nqn + ":" + which}
}

func (n *nvmeof) Shares() []string { return []string{"nvme:" + n.nqn} }

func (n *nvmeof) Attach(ctx context.Context) (Attachment, error) {
	if err := n.connect(ctx); err != nil {
		return Attachment{}, err
	}
	if err := failpoint.Hit("nvme.connected"); err != nil {
		return Attachment{}, err
	}
	if err := n.rescan(); err != nil {
		return Attachment{}, err
	}
	var name string
	var wrong error
	err := n.host.await(ctx, "the namespace of "+n.Takes()[0], func() bool {
		name, wrong = n.namespace()
		return name != "" || wrong != nil
	})
	if err = errors.Join(wrong, err); err != nil {
		return Attachment{}, err
	}
	path := n.host.at("dev", name)
	if err := n.host.await(ctx, path, func() bool { return exists(path) }); err != nil {
		return Attachment{}, err
	}
	body, err := json.Marshal(map[string]string{"type": "block", "path": path})
	return Attachment{Path: path, JSON: body, Identity: n.host.identity(name)}, err
}

// connect makes the controllers that are missing. One is enough.
func (n *nvmeof) connect(ctx context.Context) error {
	have, failed := 0, []error(nil)
	native := n.native()
	for i, p := range n.portals {
		if have > 0 && !native {
			break
		}
		if slices.ContainsFunc(n.controllers(), func(c nvmeController) bool { return c.portal == p }) {
			have++
			continue
		}
		ctx, cancel := portion(ctx, i, len(n.portals))
		err := n.dial(ctx, p)
		cancel()
		if err != nil {
			err = fmt.Errorf("subsystem %s at %s: connect: %w", n.nqn, net.JoinHostPort(p.address, p.port), err)
			n.host.Log.WarnContext(ctx, "no path", "err", err)
			failed = append(failed, err)
			continue
		}
		have++
	}
	if have == 0 {
		return errors.Join(failed...)
	}
	return nil
}

// dial makes one controller. Nothing loads the module for it: nvme-cli writes to
// a node that is there as long as it is loaded.
func (n *nvmeof) dial(ctx context.Context, p nvmePortal) error {
	if module := n.missing(p); module != "" {
		if _, err := n.host.Run.Run(ctx, command.Cmd{Name: "modprobe", Args: []string{"--", module}, Timeout: nvmeTime}); err != nil {
			return failure.Hint(failure.Wrap(failure.Precondition, err), "install a kernel with the module %s", module)
		}
	}
	_, err := n.host.Run.Run(ctx, command.Cmd{Name: "nvme", Args: n.connecting(p), Timeout: nvmeTime})
	return err
}

// missing is the module that has to be loaded before nvme can connect, or "".
func (n *nvmeof) missing(p nvmePortal) string {
	if exists(n.host.at("dev/nvme-fabrics")) {
		return ""
	}
	return "nvme-" + p.transport
}

// connecting is the command that makes a controller.
func (n *nvmeof) connecting(p nvmePortal) []string {
	args := []string{"connect", "-t", p.transport, "-n", n.nqn, "-a", p.address, "-s", p.port, "-Q", "128", "-l", "-1"}
	if n.hostNQN != "" {
		args = append(args, "-q", n.hostNQN)
	}
	return args
}

// native says whether the kernel makes one disk of all paths to a namespace.
func (n *nvmeof) native() bool {
	return attr(n.host.at("sys/module/nvme_core/parameters/multipath")) == "Y"
}

// Detach disconnects from the subsystem unless another volume, or anybody who
// has one of its namespaces open, needs it. As long as it is connected the
// storage decides which namespaces are seen.
func (n *nvmeof) Detach(ctx context.Context, _ Attachment, others []Connector) error {
	name, err := n.namespace()
	if err != nil && !errors.Is(err, ErrMismatch) && !errors.Is(err, ErrInvalid) {
		return err
	}
	if name != "" {
		if err := n.host.unused(ctx, n.host.at("dev", name)); err != nil {
			return err
		}
		if err := n.host.flush(ctx, name); err != nil {
			return err
		}
	}
	why, err := n.needed(ctx, others)
	if err != nil {
		return err
	}
	if why != nil {
		n.host.Log.InfoContext(ctx, "the subsystem stays connected", "nqn", n.nqn, "because", why)
		return nil
	}
	for _, c := range n.controllers() {
		if _, err := n.host.Run.Run(ctx, command.Cmd{Name: "nvme", Args: []string{"disconnect", "-d", c.name}, Timeout: nvmeTime}); err != nil && exists(c.dir) {
			return fmt.Errorf("controller %s: disconnect: %w", c.name, err)
		}
		if err := failpoint.Hit("nvme.disconnected"); err != nil {
			return err
		}
	}
	return n.host.await(ctx, "the end of the controllers", func() bool { return len(n.controllers()) == 0 })
}
