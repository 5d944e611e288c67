// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

// Service changes definitions. All fields are needed.
type Service struct {
	Libvirt *Client
	Host    *bindings.Host
	Local   *localdisk.Service
	Quorum  *quorum.Service
}

// Domain is a domain as libvirt has it now.
type Domain struct {
	bindings.Domain
	Facts Facts
	Doc   *xmlrewrite.Document
}

// Look reads a domain by name or UUID. Damaged metadata of ours are an error
// beside a Domain that is complete but for them.
func (s *Service) Look(ctx context.Context, name string) (Domain, error) {
	facts, err := s.Libvirt.Facts(ctx, name)
	if err != nil {
		return Domain{}, err
	}
	// By UUID from here on: a name may be given to another domain meanwhile.
	xml, err := s.Libvirt.XML(ctx, facts.UUID)
	if err != nil {
		return Domain{}, err
	}
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		return Domain{}, fmt.Errorf("domain %s: %w", failure.OneLine(facts.Name), err)
	}
	d := Domain{Facts: facts, Doc: doc}
	d.Domain, err = bindings.ReadDomain(doc)
	return d, err
}

// entry is what the metadata say about a disk; nil: nothing.
func (d Domain) entry(target string) *xmlrewrite.BoundDisk {
	e, _ := d.Metadata.Disk(target)
	return e
}

// receipts are those of a domain, by target.
func (s *Service) receipts(d Domain) (map[string]localdisk.Receipt, error) {
	all, err := localdisk.Receipts(s.Host.Layout, d.UUID)
	if err != nil {
		return nil, err
	}
	byTarget := map[string]localdisk.Receipt{}
	for _, r := range all {
		byTarget[r.Target] = r
	}
	return byTarget, nil
}
