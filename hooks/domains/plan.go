// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// Plan is what a verb is about to do to one domain. Everything that forbids it
// has been asked before there is a plan.
type Plan struct {
	Domain  Domain
	After   *xmlrewrite.Document // the new definition; Domain.Doc if it stays
	Skipped []bindings.Skipped   // disks that a binding for all passed over
	Exports []Export             // done before the definition changes
	Fill    []bindings.Step      // copies to make after it
	Remove  []localdisk.Receipt  // copies to give up after it
	Notes   []string             // what the operator should know

	binds    []bindings.Bound // disks that are bound anew, or to another source
	fills    []localdisk.Disk // disks whose copies are made, or may be there already
	rebinds  bool             // all disks are bound anew: the definition is a clone, or came from elsewhere
	anew     []string         // targets of Fill whose copy, if there is one, is replaced
	foreign  []bindings.Bound // bound disks that get another source, as refresh accepts it
	released []string         // targets that lose their binding
	discard  bool             // the operator gave up what guests wrote

	remembered []string             // targets whose binding is written again from a receipt
	originless []string             // targets that are their copy, and nobody knows what they were before
	base       *xmlrewrite.Document // what a release starts from: the definition with what was remembered; nil: as it is

	sources map[string]string // fingerprints of disks that become replica sets, from before the sets were looked at
	truths  []string          // targets that have used the sets which they are bound to

	forget []bindings.QuorumUse // replica sets whose data is given up after the definition

	exported map[string]string // files that have or get the disks' data, by target
}

// Export is one disk to be written to a file.
type Export struct {
	Target, To string
	Set        string // the replica set that has the data; "": a local copy has it
}

// Redefines says that the definition will change.
func (p *Plan) Redefines() bool { return !bytes.Equal(p.Domain.Doc.Bytes(), p.After.Bytes()) }

// replaces says that a disk gets a copy that is not there yet.
func (p *Plan) replaces(target string) bool { return slices.Contains(p.anew, target) }

// Changes says that there is anything to do.
func (p *Plan) Changes() bool {
	return p.Redefines() || len(p.Exports)+len(p.Fill)+len(p.Remove)+len(p.forget) > 0
}

// Diff is how the definition changes; "" if it does not.
func (p *Plan) Diff() string {
	return xmlrewrite.Diff(p.Domain.Doc.Bytes(), p.After.Bytes(), p.Domain.Name+" (now)", p.Domain.Name+" (after)")
}

// Commands lists in order what will be run and written.
func (p *Plan) Commands(c *Client) []string {
	var lines []string
	for _, e := range p.Exports {
		lines = append(lines, fmt.Sprintf("export disk %s to %s", e.Target, e.To))
	}
	if p.Redefines() {
		lines = append(lines, c.Cmd(VerbDefine).String()+" # the XML below")
	}
	for _, s := range p.Fill {
		lines = append(lines, s.Commands...)
	}
	for _, r := range p.Remove {
		lines = append(lines, fmt.Sprintf("remove the copy %s/%s of disk %s and its receipt", r.Home, r.Name, r.Target))
	}
	for _, u := range p.forget {
		lines = append(lines, fmt.Sprintf("forget that disk %s has used replica set %s", u.Target, u.Set))
	}
	return lines
}

// define replaces the definition by what the plan says and returns the domain
// as libvirt stored it.
func (s *Service) define(ctx context.Context, p *Plan) (Domain, error) {
	if !p.Redefines() {
		return p.Domain, nil
	}
	d := p.Domain
	now, err := s.Look(ctx, d.UUID)
	if err != nil && now.Doc == nil {
		return now, err
	}
	if err := s.untouchable(now); err != nil {
		return now, err
	}
	if err := p.stillFor(now); err != nil {
		return now, err
	}
	if err := s.Libvirt.Define(ctx, p.After.Bytes()); err != nil {
		return now, fmt.Errorf("%s: %w", d, err)
	}
	stored, err := s.Look(ctx, d.UUID)
	if err == nil {
		err = same(p.After, stored)
	}
	if err != nil {
		err = fmt.Errorf("%s: libvirt did not store what it was given: %w", d, err)
		if back := s.Libvirt.Define(context.WithoutCancel(ctx), d.Doc.Bytes()); back != nil {
			return stored, failure.Hint(fmt.Errorf("%w; and the old definition cannot be put back: %w", err, back), "see `virsh dumpxml %s`", d.NameArg())
		}
		return stored, failure.Hint(err, "nothing is changed; report this with the output of `virsh dumpxml %s`", d.NameArg())
	}
	return stored, nil
}

// same compares what was defined with what libvirt stored: our metadata and
// the disks' sources. The bytes differ, since libvirt writes its own XML.
func same(want *xmlrewrite.Document, got Domain) error {
	metadata, err := want.Metadata()
	if err != nil {
		return err
	}
	wanted, stored := describe(metadata), describe(got.Metadata)
	if len(wanted) != len(stored) {
		return fmt.Errorf("%d disks are bound, not %d", len(stored), len(wanted))
	}
	for target, entry := range wanted {
		if stored[target] != entry {
			return fmt.Errorf("disk %s: the metadata are %+v, not %+v", target, stored[target], entry)
		}
	}
	for _, disk := range want.Disks() {
		is, ok := got.Doc.Disk(disk.Target)
		if !ok || is.Source.String() != disk.Source.String() {
			return fmt.Errorf("disk %s: its source is not %s", disk.Target, disk.Source)
		}
	}
	return nil
}

// binding is what matters of a metadata entry.
type binding struct {
	domain, source, origin string
	local                  xmlrewrite.Local
	quorum                 xmlrewrite.Quorum
	kept                   string
}

func describe(m *xmlrewrite.Metadata) map[string]binding {
	all := map[string]binding{}
	if m == nil {
		return all
	}
	for _, e := range m.Disks {
		b := binding{domain: m.Domain, source: e.Source, kept: keptBy(e)}
		if e.Local != nil {
			b.local = *e.Local
		}
		if e.Quorum != nil {
			b.quorum = *e.Quorum
		}
		if origin, err := e.OriginDisk(); err == nil {
			b.origin = origin.Driver.Type + " " + origin.Source.String()
		}
		all[e.Target] = b
	}
	return all
}
