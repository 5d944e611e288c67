// SPDX-License-Identifier: Apache-2.0

//go:build integration

package xmlrewrite_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "diskhook/xmlrewrite"
)

// TestLibvirtFixtures runs over libvirt's own domains. DISKHOOK_LIBVIRT_TESTS
// names the directory tests/ of a libvirt source tree.
func TestLibvirtFixtures(t *testing.T) {
	root := os.Getenv("DISKHOOK_LIBVIRT_TESTS")
	if root == "" {
		t.Fatal("DISKHOOK_LIBVIRT_TESTS names no libvirt tests directory")
	}
	var domains, disks, rewritten int
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".xml") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil // a dangling link
		}
		doc, err := Parse(text)
		if err != nil {
			t.Logf("%s: %v", path, err)
			return nil
		}
		if doc.Root() == "domain" {
			domains++
		}
		checkNoOp(t, doc, text)
		for _, d := range doc.Disks() {
			if _, unique := doc.Disk(d.Target); !unique {
				continue
			}
			disks++
			out, err := Apply(doc, LocalDisk{Target: d.Target, Path: "/copy"})
			if err != nil {
				if !errors.Is(err, ErrUnsupported) {
					t.Errorf("%s: %v", path, err)
				}
				continue
			}
			rewritten++
			if got, ok := parse(t, out.Bytes()).Disk(d.Target); !ok || got.Source.Path() != "/copy" || got.Target != d.Target || got.Serial != d.Serial {
				t.Errorf("%s: disk %s is %+v", path, d.Target, got)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d domains, %d disks, %d rewritten", domains, disks, rewritten)
	if domains < 500 || rewritten < 500 {
		t.Error("too few for a libvirt source tree")
	}
}
