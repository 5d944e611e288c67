// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"path/filepath"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// checkDisks refuses everything that VDSM's hooks do not ask for. It is
// lexical: the shared storage may be away, and looking at it may hang. Who
// fills a copy checks the paths again, with links followed.
func (s *Server) checkDisks(disks []localdisk.Disk) error {
	if len(disks) == 0 || len(disks) > maxDisks {
		return failure.New(failure.Usage, "%d disks: there must be 1 to %d", len(disks), maxDisks)
	}
	seen := map[string]bool{}
	for _, d := range disks {
		if err := d.Validate(); err != nil {
			return err
		}
		switch {
		case !d.OVirt():
			return failure.New(failure.Usage, "disk %s: it is no image of oVirt", d.Target)
		case d.Domain != disks[0].Domain:
			return failure.New(failure.Usage, "disk %s: it is of another domain than the first", d.Target)
		case seen[d.Key()]:
			return failure.New(failure.Usage, "disk %s: its image is there twice", d.Target)
		case len(d.DomainName) > 1024:
			return failure.New(failure.Usage, "disk %s: the domain's name is too long", d.Target)
		}
		seen[d.Key()] = true
		if err := s.checkSource(d); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) checkSource(d localdisk.Disk) error {
	if len(d.Source) > imagecheck.MaxLayers {
		return failure.New(failure.Usage, "disk %s: its source has %d layers", d.Target, len(d.Source))
	}
	for _, layer := range d.Source {
		if layer.Format != imagecheck.Raw && layer.Format != imagecheck.QCOW2 {
			return failure.New(failure.Usage, "disk %s: source format %q is not raw or qcow2", d.Target, layer.Format)
		}
		if !slices.ContainsFunc(s.Service.Config.Paths.Roots, func(root string) bool { return below(layer.Path, root) }) {
			err := failure.New(failure.Precondition, "disk %s: %s: not below any of [paths] roots", d.Target, failure.OneLine(layer.Path))
			return failure.Hint(err, "add its directory to roots in diskhook.toml if you trust it")
		}
	}
	return nil
}

// below is for a path that Disk.Validate took: absolute and clean.
func below(path, root string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(filepath.Clean(root), "/")+"/")
}

// checkNode accepts the nodes of oVirt's copies alone, by name: they are
// called by a volume's UUID and lie where the configuration says.
func (s *Server) checkNode(node string) error {
	local := s.Service.Config.Local
	dir, name := filepath.Split(node)
	switch filepath.Clean(dir) {
	case filepath.Join(s.Service.Layout.Dev(), local.VG):
	case filepath.Clean(local.Dir):
		name = strings.TrimSuffix(name, ".raw")
	default:
		return failure.New(failure.Usage, "node %q: not the node of a copy", node)
	}
	if !host.IsUUID(name) || filepath.Clean(node) != node {
		return failure.New(failure.Usage, "node %q: not the node of a copy of oVirt's", node)
	}
	return nil
}
