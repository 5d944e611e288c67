// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

// replicated binds disks to replica sets of this host (package quorum):
//
//	quorum=SET,lower=export|inline|none,transport=nbd|vhost-user
//
// libvirt has no disk of several replicas, so the disk is lowered to one that
// it has: a socket on which the set is served (export), or its first replica
// and arguments for QEMU (inline). none leaves the element as it was proposed
// to libvirt; it is what both start from.
type replicated struct{}

func (replicated) Name() string { return "quorum" }

// How a disk is lowered.
const (
	lowerExport = "export"
	lowerInline = "inline"
	lowerNone   = "none"
)

// How QEMU talks to a set that is served.
const (
	transportNBD   = quorum.NBDExport
	transportVHost = quorum.VhostUser
)

// Migrate refuses: a set is served, and its replicas are counted, by one host.
func (replicated) Migrate() Migration { return Refuse }

// Offline is to take the definition along: replicas carry their marks.
func (replicated) Offline(d Domain, b Bound) string {
	return fmt.Sprintf("shut the domain down; where the other host reaches the same replicas, build the set there with `diskhook quorum build --adopt --replicas A,B,C --threshold N %s`, define the domain, and start it there", b.Binding.Value)
}

var quorumOptions = map[string][]string{
	"lower":     {lowerExport, lowerInline, lowerNone},
	"transport": {transportNBD, transportVHost},
}

func (replicated) Check(b Binding) error {
	if b.Value == "" {
		err := failure.New(failure.Usage, "quorum: which replica set is missing")
		return failure.Hint(err, "write it like vda:quorum=db with a set of `diskhook quorum list`")
	}
	for name, value := range b.Options {
		values, known := quorumOptions[name]
		switch {
		case !known:
			err := failure.New(failure.Usage, "quorum has no option %s", clip(name))
			return failure.Hint(err, "its options are lower and transport")
		case !slices.Contains(values, value):
			err := failure.New(failure.Usage, "%s=%s is not valid", name, clip(value))
			return failure.Hint(err, "use one of %s", strings.Join(values, ", "))
		}
	}
	lower, vhost := b.Option("lower", lowerExport), b.Option("transport", "") == transportVHost
	switch {
	case !b.Named() && b.From != Rule: // a rule has its own way to name disks
		err := failure.New(failure.Usage, "quorum=%s: one replica set cannot be every disk of a domain", clip(b.Value))
		return failure.Hint(err, "name the disk, as in vda:quorum=%s", b.Value)
	case lower != lowerExport && vhost:
		err := failure.New(failure.Usage, "transport=vhost-user needs lower=export: nothing is served with lower=%s", lower)
		return failure.Hint(err, "leave one of the two out")
	case lower == lowerInline && b.From == Property:
		err := failure.New(failure.Usage, "lower=inline is not for VMs of oVirt: VDSM would not know of the other replicas")
		return failure.Hint(err, "leave lower out of the property")
	}
	return nil
}

// Unfit takes what a copy could stand for, the element that names replicas, and
// what this kind has lowered already: VDSM calls a hook point for what an
// earlier one has written.
func (replicated) Unfit(d Disk) string {
	lowered := d.Type == "quorum" || strings.Contains(d.Socket, "/run/diskhook/quorum/")
	if lowered && d.Unfit == wrongSource(d.Type) {
		return ""
	}
	return d.Unfit
}

func (k replicated) Plan(ctx context.Context, h *Host, d Domain, bound []Bound) ([]Step, error) {
	var steps []Step
	for _, b := range bound {
		step := Step{Target: b.Disk.Target, Kind: k.Name()}
		plan, err := h.Quorum.Plan(ctx, k.use(d, b))
		if err != nil {
			plan.Text, step.Err = "it cannot be used", fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
		step.What = fmt.Sprintf("disk %s: replica set %s: %s", b.Disk.Target, b.Binding.Value, plan.Text)
		step.Commands = plan.Commands
		steps = append(steps, step)
	}
	return steps, nil
}

// Fulfil starts what serves the sets, one after the other: each takes a moment.
// What was started before one failed is stopped again.
func (k replicated) Fulfil(ctx context.Context, h *Host, d Domain, bound []Bound, deadline time.Duration) ([]Placement, error) {
	if deadline == 0 {
		deadline = quorumDeadline
	}
	var placed []Placement
	for i, b := range bound {
		p, err := k.fulfil(ctx, h, d, b, deadline)
		if err != nil {
			err = fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
			if undo := k.Release(context.WithoutCancel(ctx), h, d, bound[:i], ""); undo != nil {
				h.Log.Warn("undo", "domain", d.UUID, "err", undo)
			}
			return nil, err
		}
		placed = append(placed, p)
	}
	return placed, nil
}

// Relink starts what has gone of that which serves the sets.
func (k replicated) Relink(ctx context.Context, h *Host, d Domain, bound []Bound, deadline time.Duration) error {
	var failed []error
	for _, b := range bound {
		if _, err := k.fulfil(ctx, h, d, b, deadline); err != nil {
			failed = append(failed, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err))
		}
	}
	return errors.Join(failed...)
}

// quorumDeadline bounds the start of a set where the caller has no deadline.
const quorumDeadline = time.Minute

func (k replicated) fulfil(ctx context.Context, h *Host, d Domain, b Bound, deadline time.Duration) (Placement, error) {
	p := Placement{Target: b.Disk.Target}
	if b.lower() != lowerExport {
		set, err := h.Quorum.Definition(b.Binding.Value)
		if err != nil {
			return p, err
		}
		p.Path = set.Replicas[0].Top().Path
		return p, h.Quorum.Open(ctx, k.use(d, b), deadline)
	}
	endpoint, err := h.Quorum.Start(ctx, k.use(d, b), deadline)
	p.Path = endpoint.Socket
	return p, err
}

// Restorable asks no more than that the set is there and may be started: what
// the guest wrote before it was saved is in the newest generation.
func (k replicated) Restorable(ctx context.Context, h *Host, d Domain, bound []Bound) error {
	steps, err := k.Plan(ctx, h, d, bound)
	for _, s := range steps {
		err = errors.Join(err, s.Err)
	}
	return err
}

func (replicated) Labelled() bool { return false }

// Own gives QEMU the socket, or for inline the files of all replicas.
func (k replicated) Own(ctx context.Context, h *Host, d Domain, bound []Bound, label Label) error {
	for _, b := range bound {
		if err := h.Quorum.Own(ctx, k.use(d, b), label); err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
	}
	return nil
}

// Release stops what serves the sets. All are tried.
func (k replicated) Release(ctx context.Context, h *Host, d Domain, bound []Bound, _ string) error {
	var failed []error
	for _, b := range bound {
		if err := h.Quorum.Stop(ctx, k.use(d, b)); err != nil {
			failed = append(failed, fmt.Errorf("disk %s: %w", b.Disk.Target, err))
		}
	}
	return errors.Join(failed...)
}

// Rewrite lowers the disk.
func (k replicated) Rewrite(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error) {
	entry := xmlrewrite.BoundDisk{
		Target: b.Disk.Target, Serial: b.Disk.Serial,
		Quorum: &xmlrewrite.Quorum{Set: b.Binding.Value, Lower: b.lower(), Transport: b.Binding.Option("transport", "")},
	}
	set, err := h.Quorum.Definition(b.Binding.Value)
	if err == nil {
		err = k.matches(b.Disk, set)
	}
	if err != nil {
		return nil, entry, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
	}
	if entry.Source, err = k.Source(h, d, entry); err != nil {
		return nil, entry, err
	}
	change, err := k.Point(h, d, entry)
	return change, entry, err
}

// Place lowers the disk for one start.
func (k replicated) Place(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, error) {
	change, _, err := k.Rewrite(h, d, b)
	return change, err
}

// Recorded reads the entry of a disk of replicas.
func (replicated) Recorded(r xmlrewrite.BoundDisk) (Binding, bool) {
	if r.Quorum == nil {
		return Binding{}, false
	}
	b := Binding{Value: r.Quorum.Set, Options: map[string]string{}}
	for name, value := range map[string]string{"lower": r.Quorum.Lower, "transport": r.Quorum.Transport} {
		if value != "" {
			b.Options[name] = value
		}
	}
	return b, true
}

// Source is the socket, which is there only while the set is served. A set
// that is not served is known by its first replica.
func (replicated) Source(h *Host, d Domain, r xmlrewrite.BoundDisk) (string, error) {
	if r.Quorum.Lower == lowerExport {
		return endpointOf(h.Layout, r.Quorum.Set, r.Quorum.Transport == transportVHost).Socket, nil
	}
	set, err := h.Quorum.Definition(r.Quorum.Set)
	if err != nil {
		return "", fmt.Errorf("%s: disk %s: %w", d, r.Target, err)
	}
	return set.Replicas[0].Top().Path, nil
}

func (k replicated) Point(h *Host, d Domain, r xmlrewrite.BoundDisk) (xmlrewrite.Rewriter, error) {
	if r.Quorum.Lower == lowerExport {
		vhost := r.Quorum.Transport == transportVHost
		e := endpointOf(h.Layout, r.Quorum.Set, vhost)
		x := xmlrewrite.ExportQuorum{Target: r.Target, Socket: e.Socket, Name: e.Export, VhostUser: vhost}
		if vhost || h.Libvirt >= xmlrewrite.ReconnectSince {
			x.Reconnect = reconnectAfter
		}
		return x, nil
	}
	set, err := h.Quorum.Definition(r.Quorum.Set)
	if err != nil {
		return nil, fmt.Errorf("%s: disk %s: %w", d, r.Target, err)
	}
	element := elementOf(set, r.Target)
	if r.Quorum.Lower == lowerInline {
		return inlined{xmlrewrite.InlineDisk{QuorumDisk: element, Name: inlineNode(r.Target)}}, nil
	}
	return xmlrewrite.ProduceQuorum{QuorumDisk: element}, nil
}

// A server that was killed is back within a moment. A guest whose requests wait
// for it is not even stopped.
const reconnectAfter = 10 // seconds

// Reassign refuses: two domains that write to one set would destroy it.
func (replicated) Reassign(_ *Host, d Domain, r *xmlrewrite.BoundDisk) error {
	err := failure.New(failure.Conflict, "its replica set %s is that of the domain which this is a clone of", r.Quorum.Set)
	return failure.Hint(err, "run `diskhook domain unbind %s`, build a set of its own with `diskhook quorum build --replicas A,B,C --threshold 2 --from SRC NAME`, then bind it with `diskhook domain apply --quorum %s=NAME %s`", d.NameArg(), r.Target, d.NameArg())
}

func (b Bound) lower() string { return b.Binding.Option("lower", lowerExport) }

func (replicated) use(d Domain, b Bound) QuorumUse {
	u := QuorumUse{
		Set: b.Binding.Value, Domain: d.UUID, DomainName: d.Name, Target: b.Disk.Target, Key: quorumKey(d, b.Disk),
		VhostUser: b.Binding.Option("transport", "") == transportVHost, Inline: b.lower() != lowerExport,
	}
	u.Former, _ = b.source()
	u.Replicas = b.wasElement()
	return u
}

// wasElement says that the disk, without the set, is an element that names
// replicas.
func (b Bound) wasElement() bool {
	if b.Recorded == nil {
		return b.Disk.Type == "quorum"
	}
	origin, err := b.Recorded.OriginDisk()
	return err == nil && origin.Type == "quorum"
}
