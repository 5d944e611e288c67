// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"strings"
	"testing"
)

// prestaged is a domain whose disk is bound, and whose copy a start may make.
func prestaged(t *testing.T, name, binding string) *domain {
	t.Helper()
	d := bootable(t, name)
	diskhook(t, 0, "domain", "apply", "--local", "vda=dir,"+binding, name)
	return d
}

// TestPrestageThenStart: every domain runs on its copy as soon as that is
// complete, and one that cannot have it is not started and stops no other.
func TestPrestageThenStart(t *testing.T) {
	copied := prestaged(t, "ahead", "fill=start")
	other := startsAtOnce(t, "aheadnow")
	broken := prestaged(t, "aheadnot", "fill=start")
	back := moved(t, broken.image())

	said := diskhook(t, 3, "local", "prestage", "--then-start", "--jobs", "2", "ahead", "aheadnot", "aheadnow")
	says(t, said, "domain ahead: started", "domain aheadnow: started", "domain aheadnot: failed: ", broken.image(), "1 of 3 failed")
	for _, d := range []*domain{copied, other.domain} {
		d.boots(1)
		if s := d.state(); s != "running" {
			t.Errorf("%s is %s", d.name, s)
		}
		if r := d.receipt(); r == nil || !r.Used {
			t.Errorf("%s: receipt %+v", d.name, r)
		}
	}
	copied.linked(true)
	holds(t, copied.copy(), after(diskImage(false), 1))
	if s := broken.state(); s != "shut off" || broken.receipt() != nil || exists(broken.link()) {
		t.Errorf("%s is %s, with receipt %+v", broken.name, s, broken.receipt())
	}

	// What runs is left alone; the one that failed is made up for.
	back()
	said = diskhook(t, 0, "local", "prestage", "--then-start", "ahead", "aheadnot", "aheadnow")
	says(t, said, "domain aheadnot: started")
	broken.boots(1)
	copied.boots(1)
	other.boots(1)

	copied.destroy()
	holds(t, copied.copy(), after(diskImage(false), 1))
	diskhook(t, 0, "local", "prestage", "--then-start", "ahead")
	copied.boots(2)
	copied.destroy()
}

// TestPrestageThenStartIsVetoed: what the hook refuses is told as its words, and
// the copy stays for the next start.
func TestPrestageThenStartIsVetoed(t *testing.T) {
	d := prestaged(t, "aheadveto", "fill=start")
	diskhook(t, 0, "local", "prestage", "aheadveto")
	made := d.receipt()
	sidecar := strings.TrimSuffix(d.copy(), ".raw") + ".json"
	text := content(t, sidecar)
	if err := os.WriteFile(sidecar, []byte(strings.ReplaceAll(text, made.Copy, "11111111-2222-3333-4444-555555555555")), 0o644); err != nil {
		t.Fatal(err)
	}
	said := diskhook(t, 4, "local", "prestage", "--then-start", "aheadveto")
	says(t, said, "domain aheadveto: disk vda: ", "another volume took its place", "diskhook local adopt aheadveto vda")
	if s := d.state(); s != "shut off" {
		t.Errorf("it is %s", s)
	}
	if err := os.WriteFile(sidecar, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	says(t, diskhook(t, 0, "local", "prestage", "--then-start", "aheadveto"), "domain aheadveto: started")
	d.boots(1)
	if now := d.receipt(); now.Copy != made.Copy {
		t.Errorf("it was copied again: %+v", now)
	}
	d.destroy()
}
