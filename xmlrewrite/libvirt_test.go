// SPDX-License-Identifier: Apache-2.0

//go:build integration

package xmlrewrite_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "diskhook/xmlrewrite"
)

// TestLibvirtFixtures runs over libvirt's own domains: what the schema takes
// before, it takes with all disks rewritten and recorded. DISKHOOK_LIBVIRT_TESTS
// names the directory tests/ of a libvirt source tree.
func TestLibvirtFixtures(t *testing.T) {
	root := os.Getenv("DISKHOOK_LIBVIRT_TESTS")
	if root == "" {
		t.Fatal("DISKHOOK_LIBVIRT_TESTS names no libvirt tests directory")
	}
	var before, after []string // files of the same index belong together
	disks, dir := 0, t.TempDir()
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
			if strings.Contains(string(text), "<domain ") {
				t.Errorf("%s: %v", path, err)
			}
			return nil
		}
		checkNoOp(t, doc, text)
		if doc.Root() != "domain" {
			return nil
		}
		out, n := rewriteAll(t, path, doc)
		disks += n
		file := filepath.Join(dir, fmt.Sprintf("%d.xml", len(after)))
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			return err
		}
		before, after = append(before, path), append(after, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	valid, validAfter := validFiles(t, before), validFiles(t, after)
	t.Logf("%d domains, %d of them valid; %d disks rewritten", len(before), len(valid), disks)
	if len(valid) < 500 || disks < 500 {
		t.Error("too few for a libvirt source tree")
	}
	for i, path := range before {
		if valid[path] && !validAfter[after[i]] {
			text, _ := os.ReadFile(path)
			out, _ := os.ReadFile(after[i])
			t.Errorf("%s: not valid any more:\n%s", path, Diff(text, out, "before", "after"))
		}
	}
}

// rewriteAll points every disk that can have a copy at one.
func rewriteAll(t *testing.T, path string, doc *Document) (*Document, int) {
	var done []BoundDisk
	for _, d := range doc.Disks() {
		origin, err := doc.Origin(d.Target)
		if err != nil {
			continue // two disks of one target, which libvirt's tests have
		}
		l := LocalDisk{Target: d.Target, Path: "/copy/" + d.Target, Block: len(done)%2 == 0}
		out, err := Apply(doc, l)
		if err != nil {
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: %v", path, err)
			}
			continue
		}
		if got, ok := parse(t, out.Bytes()).Disk(d.Target); !ok || got.Source.Path() != l.Path || got.Serial != d.Serial {
			t.Errorf("%s: disk %s is %+v", path, d.Target, got)
		}
		doc = out
		done = append(done, BoundDisk{Target: d.Target, Source: l.Path, Local: &Local{Backend: "dir"}, Origin: origin})
	}
	if doc.UUID() == "" || len(done) == 0 {
		return doc, len(done)
	}
	out, err := Apply(doc, SetMetadata{done})
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return doc, len(done)
	}
	return out, len(done)
}

// validFiles asks xmllint, which reads the schema once for all files.
func validFiles(t *testing.T, files []string) map[string]bool {
	args := append([]string{"--noout", "--nonet", "--relaxng", "/usr/share/libvirt/schemas/domain.rng"}, files...)
	out, _ := exec.Command("xmllint", args...).CombinedOutput()
	valid := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if path, ok := strings.CutSuffix(strings.TrimSpace(line), " validates"); ok {
			valid[path] = true
		}
	}
	return valid
}
