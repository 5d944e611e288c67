// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"

	"diskhook/hooks/bindings"
	"diskhook/xmlrewrite"
)

// Listed is a domain with bindings, or with metadata that cannot be read.
type Listed struct {
	Domain
	Err error
}

// List returns the domains that have metadata of ours.
func (s *Service) List(ctx context.Context) ([]Listed, error) {
	all, err := s.Libvirt.List(ctx, true)
	if err != nil {
		return nil, err
	}
	var bound []Listed
	for _, facts := range all {
		d := Domain{Facts: facts}
		if d.Doc, err = xmlrewrite.Parse([]byte(facts.XML)); err == nil {
			d.Domain, err = bindings.ReadDomain(d.Doc)
		}
		damaged := errors.Is(err, xmlrewrite.ErrMetadata)
		if damaged || err == nil && d.Metadata != nil {
			bound = append(bound, Listed{d, err})
		}
	}
	return bound, nil
}
