// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"fmt"
	"os"
	"strings"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// remember writes the metadata of disks anew whose source is their copy, but
// whose entry somebody took out of the definition: the receipts know what was
// bound, and from what. Of the origin's chain they tell the top layer alone,
// which is what a definition without <backingStore> says. fit chooses receipts.
// It returns the definition and the targets that are bound in it again.
func (s *Service) remember(d bindings.Domain, doc *xmlrewrite.Document, receipts map[string]localdisk.Receipt, fit func(localdisk.Receipt) bool) (*xmlrewrite.Document, []string, error) {
	if d.OVirt || bindings.SameDomain(d) != nil {
		return doc, nil, nil
	}
	var entries []xmlrewrite.BoundDisk
	if d.Metadata != nil {
		entries = append(entries, d.Metadata.Disks...)
	}
	var targets []string
	for _, disk := range d.Disks {
		r, filled := receipts[disk.Target]
		_, bound := d.Metadata.Disk(disk.Target)
		stable := localdisk.StablePath(s.Host.Layout, d.UUID, disk.Target)
		if !filled || bound || disk.Path != stable || r.Volume != "" || len(r.Source) == 0 || !fit(r) {
			continue
		}
		origin, err := originFrom(doc, r)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: disk %s: its receipt: %w", d, disk.Target, failure.Wrap(failure.Precondition, err))
		}
		entries = append(entries, xmlrewrite.BoundDisk{
			Target: disk.Target, Serial: disk.Serial, Source: stable, Origin: origin,
			Local: &xmlrewrite.Local{Backend: r.Backend, Fill: "now", OnStop: r.OnStop, Host: r.Machine},
		})
		targets = append(targets, disk.Target)
	}
	if len(targets) == 0 {
		return doc, nil, nil
	}
	after, err := xmlrewrite.Apply(doc, xmlrewrite.SetMetadata{Disks: entries})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", d, failure.Wrap(failure.Precondition, err))
	}
	return after, targets, nil
}

// originFrom is the disk of a receipt as it was before, but for what only its
// definition knew.
func originFrom(doc *xmlrewrite.Document, r localdisk.Receipt) ([]byte, error) {
	top := r.Source[0]
	was, err := xmlrewrite.Apply(doc, xmlrewrite.LocalDisk{Target: r.Target, Path: top.Path, Format: top.Format, Block: isBlock(top.Path)})
	if err != nil {
		return nil, err
	}
	return was.Origin(r.Target)
}

// isBlock goes by the path where there is nothing at it, as on storage that is
// away.
func isBlock(path string) bool {
	if st, err := os.Stat(path); err == nil {
		return st.Mode()&os.ModeDevice != 0
	}
	return strings.HasPrefix(path, "/dev/")
}
