// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"diskhook/storage/failure"
)

// What the kernel shows of subsystems on the network.

// nvmeController is a connection to the subsystem.
type nvmeController struct {
	name   string // nvmeN
	dir    string
	portal nvmePortal
}

// controllers reads /sys/class/nvme, where the address of a controller on a
// network is "traddr=1.1.1.1,trsvcid=4420" and what else was given.
func (n *nvmeof) controllers() []nvmeController {
	var all []nvmeController
	for _, dir := range n.host.glob("sys/class/nvme/nvme*") {
		if attr(dir, "subsysnqn") != n.nqn || strings.HasPrefix(attr(dir, "state"), "deleting") {
			continue
		}
		c := nvmeController{name: filepath.Base(dir), dir: dir, portal: nvmePortal{transport: attr(dir, "transport")}}
		for _, part := range strings.Split(attr(dir, "address"), ",") {
			switch key, value, _ := strings.Cut(part, "="); key {
			case "traddr":
				c.portal.address = value
			case "trsvcid":
				c.portal.port = value
			}
		}
		all = append(all, c)
	}
	return all
}

// rescan has each controller look for namespaces that it did not announce.
func (n *nvmeof) rescan() error {
	var failed []error
	controllers := n.controllers()
	for _, c := range controllers {
		if err := n.host.writeAttr(filepath.Join(c.dir, "rescan_controller"), "1"); err != nil {
			failed = append(failed, fmt.Errorf("controller %s: rescan: %w", c.name, err))
		}
	}
	if len(failed) < len(controllers) {
		return nil
	}
	return errors.Join(failed...)
}

// namespaces lists the disks of the subsystem: nvmeXnY, and not the paths to
// them, nvmeXcZnY, which have no node.
func (n *nvmeof) namespaces() []string {
	var all []string
	for _, dir := range n.host.glob("sys/class/block/nvme*n*") {
		name := filepath.Base(dir)
		if attr(dir, "device/subsysnqn") == n.nqn && !strings.Contains(strings.TrimPrefix(name, "nvme"), "c") && !exists(filepath.Join(dir, "partition")) {
			all = append(all, name)
		}
	}
	return all
}

// namespace finds the volume's by the best id that is known of it. A namespace
// with the right number and another id is another volume.
func (n *nvmeof) namespace() (string, error) {
	names := n.namespaces()
	if n.uuid == "" && n.nguid == "" && n.nsid == "" {
		switch len(names) {
		case 0:
			return "", nil
		case 1:
			return names[0], nil
		}
		return "", invalid("data has none of vol_uuid, volume_nguid and ns_id, and the subsystem has %d namespaces", len(names))
	}
	for _, name := range names {
		dir := n.host.at("sys/class/block", name)
		uuid := strings.ToLower(attr(dir, "uuid"))
		nguid := strings.ReplaceAll(strings.ToLower(attr(dir, "nguid")), "-", "")
		nsid := attr(dir, "nsid")
		// Without ids of its own a namespace gets nguid's as its uuid, and a
		// storage may show the uuid as nguid only.
		plain := strings.ReplaceAll(n.uuid, "-", "")
		byID := n.uuid != "" && (uuid == n.uuid || nguid == plain) || n.nguid != "" && nguid == n.nguid
		switch {
		case byID, n.uuid == "" && n.nguid == "" && nsid == n.nsid:
			return name, nil
		case nsid == n.nsid && n.nsid != "":
			return "", failure.New(failure.Conflict, "%w: namespace %s of %s has the uuid %q and the nguid %q", ErrMismatch, nsid, n.nqn, uuid, nguid)
		}
	}
	return "", nil
}

// needed is why the subsystem stays connected without this volume, nil if it
// does not.
func (n *nvmeof) needed(ctx context.Context, others []Connector) (why, err error) {
	for _, other := range others {
		if o, ok := other.(*nvmeof); ok && o.nqn == n.nqn {
			return errors.New("another volume is in it"), nil
		}
	}
	for _, other := range n.namespaces() {
		switch err := n.host.unused(ctx, n.host.at("dev", other)); {
		case errors.Is(err, ErrInUse):
			return err, nil
		case err != nil:
			return nil, err
		}
	}
	return nil, nil
}
