// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/beevik/etree"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// A disk whose data went to a file runs on that file from then on. Its origin
// has what was there before the copy was made: to go back to that would hide
// from the guest what it wrote.

// planExport takes up that a disk is to be exported. That there is no copy to
// export is a failure.NotFound.
func (p *Plan) planExport(target, to string, r localdisk.Receipt, filled bool) error {
	d, set := p.Domain, ""
	if e := p.Domain.entry(target); e != nil && e.Quorum != nil {
		set = e.Quorum.Set
	}
	switch {
	case set == "" && (!filled || r.Discarding):
		err := failure.New(failure.NotFound, "%s: disk %s: --export %s: it has no local copy with data", d, target, to)
		return failure.Hint(err, "run `diskhook domain revert %s %s` without it", d.NameArg(), target)
	case !filepath.IsAbs(to) || filepath.Clean(to) != to:
		return failure.New(failure.Usage, "%s: disk %s: --export %q: not a clean absolute path", d, target, to)
	}
	if p.exported == nil {
		p.exported = map[string]string{}
	}
	p.exported[target] = to
	if disk, there := d.Disk(target); there && d.entry(target) == nil && disk.Path == to && isThere(to) {
		// An earlier revert exported the disk and defined it, but did not get
		// to remove the copy; no guest could start since.
		p.Notes = append(p.Notes, fmt.Sprintf("disk %s: it is on %s already", target, to))
		return nil
	}
	if isThere(to) {
		return failure.Hint(failure.New(failure.Conflict, "%s: disk %s: --export: %s: exists", d, target, to), "name a file that does not exist")
	}
	p.Exports = append(p.Exports, Export{Target: target, To: to, Set: set})
	return nil
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// unbound points a disk that has a copy, but no binding any more, at the file
// that the copy goes to, if the disk is still the copy or what it was made of.
func (p *Plan) unbound(target, to string) (change xmlrewrite.Rewriter, note string) {
	disk, there := p.Domain.Disk(target)
	if !there || disk.Path == to {
		return nil, ""
	}
	if slices.Contains(p.originless, target) {
		return exportedDisk{target, to}, ""
	}
	for _, r := range p.Remove {
		if r.Target == target && len(r.Source) > 0 && r.Source[0].Path == disk.Path {
			return exportedDisk{target, to}, ""
		}
	}
	return nil, stays(disk)
}

func stays(disk bindings.Disk) string {
	return fmt.Sprintf("disk %s: it is %s now, not what was bound, and stays so", disk.Target, disk.At())
}

// Outcome says of each exported disk where it is after the plan was done.
func (p *Plan) Outcome() []string {
	var lines []string
	for _, target := range p.released {
		to, exported := p.exported[target]
		if !exported {
			continue
		}
		line := fmt.Sprintf("what the guest wrote to disk %s is in %s", target, to)
		if disk, there := p.After.Disk(target); there && disk.Source.Path() == to {
			line = fmt.Sprintf("disk %s is %s now, with what the guest wrote", target, to)
		}
		lines = append(lines, line)
	}
	return lines
}

// exportedDisk points a disk that has its origin back at the image file that
// its data was exported to. What the driver says of cache and I/O stays as it
// was, also if that was nothing.
type exportedDisk struct{ Target, File string }

func (x exportedDisk) Rewrite(doc *xmlrewrite.Document) error {
	var was xmlrewrite.Driver
	if disk, there := doc.Disk(x.Target); there {
		was = disk.Driver
	}
	local := xmlrewrite.LocalDisk{Target: x.Target, Path: x.File, Format: ExportFormat(x.File), Cache: was.Cache, IO: was.IO}
	if err := local.Rewrite(doc); err != nil {
		return err
	}
	return doc.EditDisk(x.Target, func(disk *etree.Element) error {
		driver := disk.SelectElement("driver")
		if was.Cache == "" {
			driver.RemoveAttr("cache")
		}
		if was.IO == "" {
			driver.RemoveAttr("io")
		}
		return nil
	})
}

// ExportFormat is the image format that a file's name asks for.
func ExportFormat(file string) string {
	if strings.HasSuffix(file, ".qcow2") {
		return "qcow2"
	}
	return "raw"
}
