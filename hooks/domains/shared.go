// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"path/filepath"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// holding is a chain of images that a disk of another domain is, or was before
// it was bound and will be again.
type holding struct {
	domain bindings.Domain
	target string
	chain  []imagecheck.Layer // top first
	writes bool               // to the top; else it only reads
	bound  bool               // to a local copy, by which the domain's XML names another path
}

// notShared refuses a disk that another domain writes to, at any layer, or
// has below one of its own disks. A base that others only read is no harm. What
// another disk was before it was bound counts as if it still were: the domain
// gets it back some day, and both would then write to it.
func (s *Service) notShared(ctx context.Context, d Domain, bound []bindings.Bound, others []Facts) error {
	if len(bound) == 0 {
		return nil
	}
	paths := resolver{ctx: ctx, real: map[string]string{}}
	for _, other := range others {
		if other.UUID == d.UUID {
			continue
		}
		for _, h := range s.holdings(other) {
			for _, b := range bound {
				if paths.share(b.Disk, h) {
					return shared(d, b.Disk, h)
				}
			}
		}
	}
	return nil
}

func shared(d Domain, disk bindings.Disk, h holding) error {
	path, other := failure.OneLine(disk.Path), h.domain
	if h.bound {
		err := failure.New(failure.Conflict, "%s: disk %s: %s is what the disk %s of the %s was before it was bound to its local copy", d, disk.Target, path, h.target, other)
		return failure.Hint(err, "give this domain a disk of its own, or end the other binding with `diskhook domain revert %s %s`, then run this again", other.NameArg(), h.target)
	}
	err := failure.New(failure.Conflict, "%s: disk %s: the %s has %s, too, as its disk %s", d, disk.Target, other, path, h.target)
	return failure.Hint(err, "give one of both a disk of its own, then run this again")
}

// holdings are those of all disks of a domain, as it is defined, as it runs,
// and as it was bound. What cannot be read is libvirt's own output, of a domain
// that is not ours to judge.
func (s *Service) holdings(other Facts) []holding {
	var all []holding
	domain := bindings.Domain{UUID: other.UUID, Name: other.Name}
	for _, xml := range []string{other.XML, other.Live} {
		doc, err := xmlrewrite.Parse([]byte(xml))
		if xml == "" || err != nil {
			continue
		}
		for _, disk := range doc.Disks() {
			theirs := bindings.ReadDisk(disk, false, xmlrewrite.VDSMDevice{})
			all = append(all, holding{domain: domain, target: disk.Target, chain: theirs.Layers(), writes: !disk.ReadOnly})
		}
	}
	if doc, err := xmlrewrite.Parse([]byte(other.XML)); err == nil {
		all = append(all, s.recorded(domain, doc)...)
	}
	return all
}

// recorded are what the disks of a domain were before they were bound: as its
// metadata say, and where they were taken out as the receipts do. Metadata of a
// clone are not about it.
func (s *Service) recorded(domain bindings.Domain, doc *xmlrewrite.Document) []holding {
	var all []holding
	add := func(target string, chain []imagecheck.Layer) {
		now, there := doc.Disk(target)
		all = append(all, holding{domain: domain, target: target, chain: chain, writes: !there || !now.ReadOnly, bound: true})
	}
	metadata, err := doc.Metadata()
	if err != nil {
		s.Host.Log.Warn("metadata of another domain", "domain", domain.UUID, "err", err)
	}
	if metadata != nil && metadata.Domain == domain.UUID {
		for _, e := range metadata.Disks {
			if origin, err := e.OriginDisk(); err == nil {
				was := bindings.ReadDisk(origin, false, xmlrewrite.VDSMDevice{})
				add(e.Target, was.Layers())
			}
		}
	}
	receipts, err := localdisk.Receipts(s.Host.Layout, domain.UUID)
	if err != nil {
		s.Host.Log.Warn("receipts of another domain", "domain", domain.UUID, "err", err)
	}
	for _, r := range receipts {
		_, told := metadata.Disk(r.Target)
		now, there := doc.Disk(r.Target)
		isCopy := there && now.Source.Path() == localdisk.StablePath(s.Host.Layout, domain.UUID, r.Target)
		if !told && !r.Discarding && (r.Used || isCopy) {
			add(r.Target, r.Source)
		}
	}
	return all
}

// resolver follows symlinks as far as that can be done in time, each once:
// the storage of some other domain may hang.
type resolver struct {
	ctx  context.Context
	real map[string]string
}

func (r resolver) resolve(path string) string {
	if real, known := r.real[path]; known {
		return real
	}
	real, err := withPatience(r.ctx, func() (string, error) { return filepath.EvalSymlinks(path) })
	if err != nil {
		real = filepath.Clean(path)
	}
	r.real[path] = real
	return real
}

func (r resolver) share(disk bindings.Disk, h holding) bool {
	if len(h.chain) == 0 || disk.Path == "" {
		return false
	}
	if h.writes {
		theirs := r.resolve(h.chain[0].Path)
		for _, layer := range disk.Layers() {
			if r.resolve(layer.Path) == theirs {
				return true
			}
		}
	}
	ours := r.resolve(disk.Path)
	for _, layer := range h.chain {
		if r.resolve(layer.Path) == ours {
			return true
		}
	}
	return false
}
