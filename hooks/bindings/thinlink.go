// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"fmt"
	"os"
	"path/filepath"

	"diskhook/storage/atomicfile"
	"diskhook/storage/host"
)

// The path that a disk names which is a thin volume, /run/diskhook/thin-disks/DOMAIN/TARGET,
// leads to the one by which the cluster has the volume on this host.

func thinLink(l host.Layout, domain, target string) string {
	return filepath.Join(l.ThinDisks(), domain, target)
}

// linkThin makes the link, or makes it right.
func linkThin(l host.Layout, domain, target, to string) error {
	if err := checkLinked(domain, target); err != nil {
		return err
	}
	link := thinLink(l, domain, target)
	if now, err := os.Readlink(link); err == nil && now == to {
		return nil
	}
	for _, dir := range []string{l.ThinDisks(), filepath.Dir(link)} {
		if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("links: %w", err)
		}
	}
	// Whatever is there is no link of ours that is right.
	if err := os.RemoveAll(link); err != nil {
		return fmt.Errorf("links: %w", err)
	}
	if err := os.Symlink(to, link); err != nil {
		return fmt.Errorf("links: %w", err)
	}
	return nil
}

func unlinkThin(l host.Layout, domain, target string) error {
	if err := checkLinked(domain, target); err != nil {
		return err
	}
	link := thinLink(l, domain, target)
	if err := atomicfile.Remove(link); err != nil {
		return fmt.Errorf("links: %w", err)
	}
	_ = os.Remove(filepath.Dir(link)) // unless another disk has a link there
	return nil
}

// unlinkAllThin removes the links of a domain that has ended.
func unlinkAllThin(l host.Layout, domain string) error {
	if err := checkLinked(domain, linkOfDisk); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(l.ThinDisks(), domain)); err != nil {
		return fmt.Errorf("links: %w", err)
	}
	return nil
}
