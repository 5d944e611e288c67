// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"diskhook/storage/command"
)

// What connectors would do, from the state of the host as it is. The command
// lines are made by the same functions as those that are run.

func line(program string, args ...string) string {
	return command.Quote(append([]string{program}, args...))
}

// writing is a write to sysfs, as a shell would do it.
func writing(path, value string) string {
	return "echo " + command.Quote([]string{value}) + " > " + command.Quote([]string{path})
}

// mapMade: which paths there will be, only the kernel knows.
func mapMade(many bool) []string {
	if !many {
		return []string{"# multipathd does not run: the device of one path is used"}
	}
	return []string{"# use the multipath map over the new paths; where multipathd makes none by itself: `multipath -a WWID`, and `multipathd add path DEVICE` for each"}
}

func (c *iscsi) Explain(ctx context.Context) ([]string, error) {
	many := c.host.multipathd(ctx)
	targets := c.targets
	var all []string
	if many && c.discover {
		all = append(all, line("iscsiadm", discovery(targets[0].portal)...), "# log in at each portal of the target that it tells of, and at this one:")
	}
	if !many && len(targets) > 1 {
		all = append(all, "# log in at the first of these portals where that works:")
	}
	for _, t := range targets {
		if c.host.iscsiSession(t) != nil {
			all = append(all, fmt.Sprintf("# there is a session with %s at %s", t.iqn, t.portal))
			continue
		}
		all = append(all, line("iscsiadm", t.node(newRecord()...)...), line("iscsiadm", t.node(recordSettings()...)...))
		if c.username != "" {
			all = append(all, "# write user and password into that record")
		}
		all = append(all, line("iscsiadm", t.node("--login")...))
	}
	for _, t := range targets {
		path, what := c.host.scanning(0, "0", "0", t.lun)
		all = append(all, fmt.Sprintf("# look for the LUN in the session at %s: `%s`, with the host of the session", t.portal, writing(strings.Replace(path, "host0", "hostN", 1), what)))
	}
	return append(all, mapMade(many)...), nil
}

func (c *iscsi) ExplainDetach(ctx context.Context, was Attachment, _ []Connector) ([]string, error) {
	mine := c.mine()
	paths := c.paths(mine)
	all, err := c.host.explainSCSI(ctx, paths, was.MultipathID)
	if err != nil {
		return nil, err
	}
	var kept []iscsiSession
	for _, one := range mine {
		others := c.host.scsiDevices(func(_ [4]uint64, dir string) bool { return one.session.has(dir) })
		others = slices.DeleteFunc(others, func(p scsiPath) bool { return slices.Contains(paths, p) })
		if len(others) > 0 {
			all = append(all, fmt.Sprintf("# the session with %s at %s stays: %s is in it, too", one.session.iqn, one.session.portal, others[0].disk))
			kept = append(kept, one.session)
			continue
		}
		all = append(all, line("iscsiadm", iscsiTarget{one.session.portal, one.session.iqn, 0}.node("--logout")...))
	}
	for _, t := range c.orphans(kept) {
		all = append(all, line("iscsiadm", c.forgetting(t)...))
	}
	return slices.Compact(all), nil
}

// explainSCSI is detachSCSI told.
func (h *Host) explainSCSI(ctx context.Context, paths []scsiPath, multipathID string) ([]string, error) {
	maps, err := h.unusedSCSI(ctx, paths, multipathID)
	if err != nil {
		return nil, err
	}
	var all []string
	flush := func(name string) {
		if exists(h.at("dev", name)) {
			all = append(all, line("blockdev", "--flushbufs", h.at("dev", name)))
		}
	}
	for _, dm := range maps {
		name := attr(h.at("sys/class/block", dm), "dm/name")
		if h.alive(dm) {
			flush(dm)
		} else {
			all = append(all, line("multipathd", "disablequeueing", "map", name))
		}
		all = append(all, line("multipath", "-f", name))
	}
	for _, p := range paths {
		if len(maps) == 0 && attr(p.dir, "state") == "running" {
			flush(p.disk)
		}
		all = append(all, writing(filepath.Join(p.dir, "delete"), "1"))
	}
	return all, nil
}

func (f *fibreChannel) Explain(ctx context.Context) ([]string, error) {
	scans, err := f.scans()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, s := range scans {
		all = append(all, writing(f.host.scanning(s.host, s.channel, s.target, s.lun)))
	}
	return append(all, mapMade(f.host.multipathd(ctx))...), nil
}

func (f *fibreChannel) ExplainDetach(ctx context.Context, was Attachment, _ []Connector) ([]string, error) {
	return f.host.explainSCSI(ctx, f.paths(), was.MultipathID)
}

func (n *nvmeof) Explain(context.Context) ([]string, error) {
	var all []string
	have := n.controllers()
	for _, p := range n.portals {
		switch {
		case slices.ContainsFunc(have, func(c nvmeController) bool { return c.portal == p }):
			all = append(all, "# there is a controller at "+net.JoinHostPort(p.address, p.port))
		case len(all) > 0 && !n.native():
			all = append(all, "# only if that fails, as the kernel has no native multipath:", line("nvme", n.connecting(p)...))
		default:
			all = append(all, line("nvme", n.connecting(p)...))
		}
	}
	if module := n.missing(n.portals[0]); module != "" {
		all = slices.Insert(all, 0, line("modprobe", "--", module))
	}
	return append(all, "# have its controllers look again for namespaces (rescan_controller), and find the volume's"), nil
}

func (n *nvmeof) ExplainDetach(ctx context.Context, _ Attachment, others []Connector) ([]string, error) {
	name, err := n.namespace()
	if err != nil && !errors.Is(err, ErrMismatch) && !errors.Is(err, ErrInvalid) {
		return nil, err
	}
	var all []string
	if name != "" {
		if err := n.host.unused(ctx, n.host.at("dev", name)); err != nil {
			return nil, err
		}
		all = append(all, line("blockdev", "--flushbufs", n.host.at("dev", name)))
	}
	why, err := n.needed(ctx, others)
	if err != nil {
		return nil, err
	}
	if why != nil {
		return append(all, fmt.Sprintf("# the subsystem stays connected: %v", why)), nil
	}
	for _, c := range n.controllers() {
		all = append(all, line("nvme", "disconnect", "-d", c.name))
	}
	return all, nil
}

func (r *rbd) Explain(ctx context.Context) ([]string, error) {
	name, err := r.mapped(ctx)
	if err != nil {
		return nil, err
	}
	if name != "" {
		return []string{"# the image is mapped: " + r.host.at("dev", name)}, nil
	}
	keyring := r.info.hasSecret("keyring") && r.info.Data["keyring"] != ""
	var all []string
	if len(r.monitors) > 0 {
		all = append(all, "# write "+r.conf())
	}
	if keyring {
		all = append(all, "# write "+r.keyring())
	}
	return append(all, line("rbd", r.mapping(keyring)...)), nil
}

func (r *rbd) ExplainDetach(ctx context.Context, _ Attachment, _ []Connector) ([]string, error) {
	name, err := r.mapped(ctx)
	if err != nil {
		return nil, err
	}
	var all []string
	if name != "" {
		node := r.host.at("dev", name)
		if err := r.host.unused(ctx, node); err != nil {
			return nil, err
		}
		all = append(all, line("rbd", "unmap", "--", node))
	}
	if exists(r.dir()) {
		all = append(all, line("rm", "-r", "--", r.dir()))
	}
	return all, nil
}

func (n *nfs) Explain(context.Context) ([]string, error) {
	mounted, err := n.mounted()
	if err != nil {
		return nil, err
	}
	if mounted {
		return []string{"# the export is mounted at " + n.mountPoint()}, nil
	}
	return []string{line("mkdir", "-m", "711", "-p", n.mountPoint()), line("mount", n.mounting()...)}, nil
}

func (n *nfs) ExplainDetach(ctx context.Context, _ Attachment, others []Connector) ([]string, error) {
	mounted, err := n.mounted()
	if err == nil && mounted {
		err = n.unused(ctx)
	}
	if errors.Is(err, command.ErrNoAnswer) && !n.shared(others) {
		err = nil
	}
	switch {
	case err != nil:
		return nil, err
	case n.shared(others):
		return []string{"# the export stays mounted: another volume is on it"}, nil
	case !mounted:
		return nil, nil
	}
	return []string{line("umount", "--", n.mountPoint()), line("rmdir", n.mountPoint())}, nil
}

// Explain tells whether the device is there, since nobody here can bring it.
func (l *local) Explain(context.Context) ([]string, error) {
	if _, err := l.host.device(l.host.at(l.path)); err != nil {
		return nil, fmt.Errorf("device of the volume: %w", err)
	}
	return []string{"# the device is there: " + l.host.at(l.path)}, nil
}

func (l *local) ExplainDetach(ctx context.Context, was Attachment, others []Connector) ([]string, error) {
	return nil, l.Detach(ctx, was, others)
}

func (a *adapter) Explain(context.Context) ([]string, error) {
	return []string{"# the connection_info goes to the program on standard input", line(a.program, "attach")}, nil
}

func (a *adapter) ExplainDetach(ctx context.Context, was Attachment, _ []Connector) ([]string, error) {
	if err := a.unused(ctx, was); err != nil {
		return nil, err
	}
	return []string{"# the connection_info goes to the program on standard input", line(a.program, "detach")}, nil
}
