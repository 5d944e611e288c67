// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// Start reads a domain that is about to start and settles what its disks are
// bound to. Everything that forbids the start before storage is asked is an
// error. written are the bindings of properties.
func (h *Host) Start(ctx context.Context, doc *xmlrewrite.Document, written []Binding) (Domain, []Bound, error) {
	d, err := ReadDomain(doc)
	if err != nil {
		return d, nil, err
	}
	bound, err := h.Settle(ctx, d, written)
	return d, bound, err
}

// Settle is Start for a domain that was read already.
func (h *Host) Settle(ctx context.Context, d Domain, written []Binding) ([]Bound, error) {
	if err := SameDomain(d); err != nil {
		return nil, err
	}
	bound, skipped, err := Resolve(d, written)
	if err != nil {
		return nil, err
	}
	for _, s := range skipped {
		h.Log.Info("disk is not bound", "domain", d.UUID, "disk", s.Target, "why", s.Why)
	}
	if err := h.Undrifted(ctx, d, bound); err != nil {
		return nil, err
	}
	if err := h.Vanished(d); err != nil {
		return nil, err
	}
	return bound, h.Forsaken(d, bound)
}

// Plan is what an operation would do, as `hook simulate` and --dry-run print it.
type Plan struct {
	Domain  string    `json:"domain"`
	Op      string    `json:"op"`
	Steps   []Step    `json:"steps"`
	Skipped []Skipped `json:"skipped"`
	Note    string    `json:"note"` // what the operation does beyond the steps
	Veto    error     `json:"-"`    // why the operation would be refused; nil: it would not
	Diff    string    `json:"diff"` // how the XML would change
}

// effect is what an operation does with bound disks.
type effect int

const (
	checks   effect = iota // refuses if a binding does not hold
	fulfils                // makes the disks ready
	relinks                // makes links again, and no copy
	restores               // refuses if the disks are not those of the saved memory
	moves                  // refuses what cannot be migrated
	releases               // undoes a fulfil
)

// operations are those that Simulate knows: libvirt's, then VDSM's hook points.
var operations = map[string]struct {
	effect effect
	note   string
}{
	"prepare":                  {fulfils, "make the disks ready, or refuse the start"},
	"start":                    {checks, "give the disks' nodes to QEMU's user where libvirt was told not to"},
	"release":                  {releases, "deactivate the copies and remove their links"},
	"restore":                  {restores, "pass the XML as it is, or refuse if the disks are not as they were saved"},
	"migrate":                  {moves, "pass the XML as it is, or refuse the migration"},
	"reconnect":                {relinks, "make missing links of a running domain again"},
	"after_disk_prepare":       {fulfils, "make the disk ready, or refuse the start"},
	"before_vm_start":          {fulfils, "make the disks ready, or refuse the start"},
	"before_vm_migrate_source": {moves, "refuse the migration if a disk cannot be migrated"},
	"before_vm_dehibernate":    {restores, "refuse to resume if the disks are not as they were saved"},
	"after_vm_destroy":         {releases, "deactivate the copies"},
}

// Simulate works out what the operation op of libvirt or hook point of VDSM
// would do with the domain, given the properties' bindings as written (none:
// those that an oVirt domain has in its metadata). It changes nothing. That the operation would be refused is told in the plan;
// the error is for XML that cannot be read and for an unknown operation.
func Simulate(ctx context.Context, h *Host, op string, xml []byte, written []Binding) (*Plan, error) {
	_, known := operations[op]
	if !known {
		err := failure.New(failure.Usage, "operation %q: diskhook does nothing at it", clip(op))
		return nil, failure.Hint(err, "use --op prepare, start, release, restore, migrate, reconnect, or a hook point of VDSM")
	}
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		return nil, failure.Wrap(failure.Usage, fmt.Errorf("domain XML: %w", err))
	}
	plan := &Plan{Op: op, Note: operations[op].note}
	plan.Veto = plan.work(ctx, h, doc, written)
	return plan, nil
}

// work fills in the plan and returns why the operation would be refused.
func (p *Plan) work(ctx context.Context, h *Host, doc *xmlrewrite.Document, written []Binding) error {
	d, err := ReadDomain(doc)
	p.Domain = d.Name
	if err != nil {
		return err
	}
	if vdsm, ovirt := doc.VDSM(); ovirt && len(written) == 0 {
		// VDSM hands a hook the properties that Engine wrote here.
		written, err = Properties(func(name string) (string, bool) { v, ok := vdsm.Custom[name]; return v, ok })
		if err != nil {
			return err
		}
	}
	_, p.Skipped, _ = Resolve(d, written)
	bound, err := h.Settle(ctx, d, written)
	switch {
	case err != nil:
		return err
	case len(bound) == 0:
		p.Note = "nothing: no disk is bound"
		return nil
	}
	switch operations[p.Op].effect {
	case fulfils:
		return p.observe(ctx, h, doc, d, bound)
	case relinks:
		return p.observe(ctx, h, doc, d, OnlyReady(bound))
	case restores:
		return h.Restorable(ctx, d, bound)
	case moves:
		return Migratable(d, bound)
	case releases:
		for _, b := range bound {
			what := fmt.Sprintf("disk %s: release its copy (%s) unless it is open", b.Disk.Target, b.Binding)
			p.Steps = append(p.Steps, Step{Target: b.Disk.Target, Kind: b.Binding.Kind, What: what})
		}
	}
	return nil
}

// observe fills in the change of the XML, asks the storage and fills in the
// steps.
func (p *Plan) observe(ctx context.Context, h *Host, doc *xmlrewrite.Document, d Domain, bound []Bound) error {
	if d.OVirt {
		changes, err := h.Place(d, bound)
		if err != nil {
			return err
		}
		after, err := xmlrewrite.Apply(doc, changes...)
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		p.Diff = xmlrewrite.Diff(doc.Bytes(), after.Bytes(), "before", "after")
	}
	steps, err := h.Plan(ctx, d, bound)
	p.Steps = steps
	for _, s := range steps {
		err = errors.Join(err, s.Err)
	}
	return err
}

// Plan looks at the storage once per kind and returns what a fulfil would do.
func (h *Host) Plan(ctx context.Context, d Domain, bound []Bound) ([]Step, error) {
	kinds, groups := byKind(bound)
	var steps []Step
	for _, k := range kinds {
		s, err := k.Plan(ctx, h, d, groups[k.Name()])
		if err != nil {
			return nil, err
		}
		steps = append(steps, s...)
	}
	return steps, nil
}

// String is the plan as text.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "domain %s: %s: %s\n", failure.OneLine(p.Domain), p.Op, p.Note)
	for _, s := range p.Skipped {
		fmt.Fprintf(&b, "  disk %s: not bound: %s\n", failure.OneLine(s.Target), s.Why)
	}
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "  %s\n", failure.OneLine(s.What))
		for _, line := range s.Commands {
			fmt.Fprintf(&b, "    %s\n", line)
		}
	}
	if p.Veto != nil {
		fmt.Fprintf(&b, "  refused: %s\n", failure.Line(p.Veto))
	}
	b.WriteString(p.Diff)
	return b.String()
}
