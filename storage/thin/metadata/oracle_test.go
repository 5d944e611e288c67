// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// tool runs one of thin-provisioning-tools.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name) // not on every user's PATH
	}
	cmd := exec.Command(path, args...)
	var out, diagnosis bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnosis
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, out.String(), diagnosis.String())
	}
	return out.String()
}

// randomly tries f on a number of random pools.
func randomly(t *testing.T, checks string, f func(t *testing.T, p pool)) {
	if testing.Short() {
		checks = "5"
	}
	must(t, flag.Set("rapid.checks", checks))
	must(t, flag.Set("rapid.nofailfile", "true"))
	rapid.Check(t, func(rt *rapid.T) {
		p := randomPool(rt)
		if !t.Run("pool", func(t *testing.T) { f(t, p) }) {
			t.FailNow() // a smaller pool would not say more
		}
	})
}

// What we write is what thin_check takes for sound and thin_dump dumps as we
// do, and what thin_restore makes of that dump reads as what we wrote.
func TestToolsAgreeOnRandomPools(t *testing.T) {
	randomly(t, "15", func(t *testing.T, p pool) {
		image := build(t, p)
		equal(t, "our image", read(t, open(t, image)), p.used())
		tool(t, "thin_check", image)

		theirs := filepath.Join(t.TempDir(), "dump.xml")
		must(t, os.WriteFile(theirs, []byte(tool(t, "thin_dump", image)), 0o600))
		var ours bytes.Buffer
		must(t, dump(t.Context(), open(t, image), &ours))
		if diff := cmp.Diff(readFile(t, theirs), ours.String()); diff != "" {
			t.Fatalf("dumps (-thin_dump +ours):\n%s", diff)
		}

		restored := newImage(t)
		tool(t, "thin_restore", "-q", "-i", theirs, "-o", restored)
		equal(t, "restored by thin_restore", read(t, open(t, restored)), p.used())

		again := newImage(t)
		must(t, restore(t.Context(), &ours, open(t, again)))
		if readFile(t, again) != readFile(t, image) {
			t.Fatal("our dump, restored by us, is not the image that was dumped")
		}
	})
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}
