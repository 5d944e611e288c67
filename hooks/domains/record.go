// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// A definition and the receipts of its disks tell of each other, so that either
// is noticed, or made up for, when it is lost.

// record notes in a domain's metadata which copies its disks have now, and in
// the receipts of those copies how the disks are bound; what was noted of the
// disks in anew is replaced.
func (s *Service) record(ctx context.Context, uuid string, anew ...string) error {
	d, err := s.Look(ctx, uuid)
	if err != nil {
		return err
	}
	if bindings.SameDomain(d.Domain) != nil {
		return nil // a clone's metadata are not about it, and to write them makes them so
	}
	p := &Plan{Domain: d, After: d.Doc}
	if err := s.recordCopies(p, anew...); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	if d, err = s.define(ctx, p); err != nil {
		return err
	}
	return s.noteBindings(ctx, d)
}

// noteBindings keeps beside the copies what the metadata say, which somebody
// may take out of the definition.
func (s *Service) noteBindings(ctx context.Context, d Domain) error {
	if d.Metadata == nil || d.OVirt {
		return nil
	}
	bound, _, err := bindings.Resolve(d.Domain, nil)
	if err != nil {
		return err
	}
	for _, disk := range s.Host.BoundDisks(d.Domain, bound) {
		if err := s.Local.Note(ctx, disk); err != nil {
			return fmt.Errorf("%s: %w", disk, err)
		}
	}
	return nil
}

// recordCopies notes in the metadata which copies complete disks have, and
// forgets those of the disks in anew that have none any more, or whose copy
// the plan replaces. An entry of another disk that names a copy is left alone:
// it may be what tells that the wrong one is here. A copy that is discarded at
// every stop is not noted.
func (s *Service) recordCopies(p *Plan, anew ...string) error {
	metadata, err := p.After.Metadata()
	if err != nil || metadata == nil {
		return err
	}
	receipts, err := s.receipts(p.Domain)
	if err != nil {
		return err
	}
	changed := false
	for i := range metadata.Disks {
		e := &metadata.Disks[i]
		replaced := p.replaces(e.Target)
		if e.Local == nil || e.Local.Copy != "" && !replaced && !slices.Contains(anew, e.Target) {
			continue
		}
		has := ""
		if r, ok := receipts[e.Target]; ok && !replaced && !r.Discarding && e.Local.OnStop == localdisk.Keep {
			has = r.Copy
		}
		if has != e.Local.Copy {
			e.Local.Copy, changed = has, true
		}
	}
	if changed {
		p.After, err = xmlrewrite.Apply(p.After, xmlrewrite.SetMetadata{Disks: metadata.Disks})
	}
	return err
}
