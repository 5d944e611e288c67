// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/host"
)

// A hook goes on with what is right of a configuration. What is wrong counts
// as not said, rather than as what it says.
func TestWrongValuesAreTheDefaults(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	text := `
[paths]
roots = ["images", "/images"]
[local]
backend = "foo"
vg = "-rf"
pool = "a/b"
dir = "rel"
io_class = "realtime"
cache = "yes"
pool_reserve = 200
rate = "1MiB"
[lvm]
devices = ["/dev/sda", "../sdb", "/dev/a|.*"]
`
	if err := os.MkdirAll(filepath.Dir(l.Config()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Config(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := host.Load(l)
	if err == nil {
		t.Error("nothing was said")
	}
	want := host.Defaults(l)
	want.Paths.Roots, want.LVM.Devices, want.Local.Rate = []string{"/images"}, []string{"/dev/sda"}, 1<<20
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
