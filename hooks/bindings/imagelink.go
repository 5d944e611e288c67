// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
)

// The path that a disk names which is an image of a repository:
//
//	/run/diskhook/images/DOMAIN/TARGET/disk       to the volume that holds it now
//	/run/diskhook/images/DOMAIN/TARGET/ID.qcow2   to each volume below that
//
// An image names the one below it relative to itself, so that every host finds
// it; libvirt and QEMU look for that beside the path that they were given, and not
// beside where it leads. So what is below gets a link beside it, by its own name.

const linkOfDisk = "disk"

func imageLink(l host.Layout, domain, target string) string {
	return filepath.Join(l.Images(), domain, target, linkOfDisk)
}

// checkLinked refuses names that would lead elsewhere.
func checkLinked(domain, target string) error {
	if !host.IsUUID(domain) || !isWord(target) {
		return failure.New(failure.Usage, "domain %q, disk %q: not names of links", clip(domain), clip(target))
	}
	return nil
}

// linkImage makes the links. Those that are right stay as they are; there are no
// others after it.
func linkImage(l host.Layout, domain, target string, layers []imagecheck.Layer) error {
	if err := checkLinked(domain, target); err != nil {
		return err
	}
	dir := filepath.Dir(imageLink(l, domain, target))
	for _, d := range []string{l.Images(), filepath.Dir(dir), dir} {
		if err := atomicfile.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("links: %w", err)
		}
	}
	to := map[string]string{linkOfDisk: layers[0].Path}
	for _, below := range layers[1:] {
		if name := filepath.Base(below.Path); to[name] == "" {
			to[name] = below.Path
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if was, err := os.Readlink(path); err == nil && to[e.Name()] == was {
			delete(to, e.Name())
			continue
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("links: %w", err)
		}
	}
	for name, path := range to {
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("links: %w", err)
		}
	}
	return nil
}

// unlinkImage removes them.
func unlinkImage(l host.Layout, domain, target string) error {
	if err := checkLinked(domain, target); err != nil {
		return err
	}
	dir := filepath.Dir(imageLink(l, domain, target))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("links: %w", err)
	}
	_ = os.Remove(filepath.Dir(dir)) // unless another disk has links there
	return nil
}

// ownImage gives what the links of a disk lead to to a user and a group.
func ownImage(l host.Layout, domain, target string, uid, gid int) error {
	if err := checkLinked(domain, target); err != nil {
		return err
	}
	dir := filepath.Dir(imageLink(l, domain, target))
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return failure.Hint(failure.New(failure.Precondition, "its image is not prepared"), "start the domain again")
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Chown(filepath.Join(dir, e.Name()), uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// isDevice goes by the path where there is nothing at it yet: a volume of a volume
// group is there while it is active.
func isDevice(path string) bool {
	if st, err := os.Stat(path); err == nil {
		return st.Mode()&os.ModeDevice != 0
	}
	return strings.HasPrefix(path, "/dev/")
}
