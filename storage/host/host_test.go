// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

func configured(t *testing.T, text string) host.Layout {
	t.Helper()
	l := host.Layout{Root: t.TempDir()}
	if err := os.MkdirAll(filepath.Dir(l.Config()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Config(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestNoFileIsNeeded(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	c, err := host.Load(l)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(host.Defaults(l), c); diff != "" {
		t.Error(diff)
	}
}

func TestFileOverridesKeyByKey(t *testing.T) {
	c, err := host.Load(configured(t, `
[local]
backend = "lvmthin"
deadline = "5m"
reserve = "10G"
rate = 1048576
[[rule]]
name = "web-*"
binding = "local=lvm"
`))
	if err != nil {
		t.Fatal(err)
	}
	l := c.Local
	if l.Backend != "lvmthin" || time.Duration(l.Deadline) != 5*time.Minute || l.Reserve != 10<<30 || l.Rate != 1<<20 || l.VG != "ovirt-local" {
		t.Errorf("got %+v", l)
	}
	if len(c.Rules) != 1 || c.Rules[0].Binding != "local=lvm" {
		t.Errorf("rules %+v", c.Rules)
	}
}

func TestWrongConfigurationIsNamedAndStillUsable(t *testing.T) {
	for text, says := range map[string]string{
		"[local]\nbakend = \"dir\"":                 "unknown key local.bakend",
		"[local]\nbackend = \"zfs\"":                `local.backend: "zfs" is not lvm`,
		"[local]\nvg = \"-rf\"":                     "local.vg",
		"[local]\ndeadline = \"-1s\"":               "negative",
		"[local]\nreserve = \"much\"":               "not a size",
		"[local]\npool_reserve = 100":               "not a percentage",
		"[local]\ncache = \"always\"":               `local.cache: "always" is not auto or off`,
		"[local]\nio_class = \"realtime\"":          `local.io_class: "realtime" is not best-effort or idle`,
		"[lvm]\ndevices = [\"/dev/sda\\\" ] } x\"]": "lvm.devices",
		"[paths]\nroots = [\"srv\"]":                "not absolute",
		"[[rule]]\nname = \"[\"\nbinding = \"l\"":   "not a glob",
		"[[rule]]\nname = \"x\"":                    "binding is missing",
		"[local\n":                                  "diskhook.toml",
	} {
		c, err := host.Load(configured(t, text))
		if err == nil || !strings.Contains(err.Error(), says) || !errors.Is(err, failure.Usage) || failure.HintOf(err) == "" {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
		if c.Local.VG == "" {
			t.Errorf("%q: no usable configuration beside the error", text)
		}
	}
}

func TestAllowed(t *testing.T) {
	dir := t.TempDir()
	inside, outside := filepath.Join(dir, "images"), filepath.Join(dir, "elsewhere")
	for _, d := range []string{inside, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "disk"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(outside, "disk"), filepath.Join(inside, "trap")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("disk", filepath.Join(inside, "alias")); err != nil {
		t.Fatal(err)
	}
	p := host.Paths{Roots: []string{inside}}
	for path, ok := range map[string]bool{
		inside + "/disk":              true,
		inside + "/alias":             true,
		inside + "/trap":              false,
		inside + "/../elsewhere/disk": false,
		outside + "/disk":             false,
		inside + "x/disk":             false,
		inside + "/missing":           false,
		"disk":                        false,
		"/etc/shadow":                 false,
	} {
		resolved, err := p.Allowed(path)
		if (err == nil) != ok {
			t.Errorf("Allowed(%s) = %q, %v", path, resolved, err)
		}
	}
}

// Whoever serves a share also makes the links on it.
func TestLinkToADeviceCountsOnlyWhereLinksNameDevices(t *testing.T) {
	share, vdsm := t.TempDir(), filepath.Join(t.TempDir(), "rhev/data-center")
	if err := os.MkdirAll(vdsm, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{share, vdsm} {
		if err := os.Symlink("/dev/null", filepath.Join(dir, "disk")); err != nil {
			t.Fatal(err)
		}
	}
	p := host.Paths{Roots: []string{share, vdsm, "/dev/disk"}}
	if resolved, err := p.Allowed(filepath.Join(share, "disk")); !errors.Is(err, failure.Precondition) {
		t.Errorf("on a share: %q, %v", resolved, err)
	}
	if resolved, err := p.Allowed(filepath.Join(vdsm, "disk")); err != nil || resolved != "/dev/null" {
		t.Errorf("of VDSM: %q, %v", resolved, err)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "512": 512, "1K": 1024, "10G": 10 << 30, "10GiB": 10 << 30, "1.5M": 3 << 19, "2T": 2 << 40} {
		if got, err := host.ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "G", "1 G", "1g", "9E99", "1GB2", "0x10"} {
		if got, err := host.ParseSize(text); !errors.Is(err, failure.Usage) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestMachineID(t *testing.T) {
	l := configured(t, "")
	for id, ok := range map[string]bool{"0123456789abcdef0123456789abcdef\n": true, "": false, "../../etc": false} {
		if err := os.WriteFile(filepath.Join(l.Root, "etc/machine-id"), []byte(id), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := l.MachineID(); (err == nil) != ok {
			t.Errorf("%q: %q, %v", id, got, err)
		}
	}
}
