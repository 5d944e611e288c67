// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bufio"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"diskhook/storage/failure"
)

// A source that apply --refresh accepts is looked at as that of a first apply:
// it must be nobody else's, and a copy can be made of it.
func TestRefreshOntoAForeignSource(t *testing.T) {
	tool := func(t *testing.T, name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	overlay := func(base string) func(t *testing.T, root, image string) {
		return func(t *testing.T, root, image string) {
			base := strings.ReplaceAll(base, "ROOT", root)
			tool(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", base, image, "1M")
		}
	}
	raw := func(t *testing.T, _, image string) { write(t, image, strings.Repeat("x", 4096)) }
	for name, tc := range map[string]struct {
		format string
		make   func(t *testing.T, root, image string)
		want   *failure.Kind
		words  string
	}{
		"fine":              {"raw", raw, nil, ""},
		"a fine chain":      {"qcow2", overlay("ROOT/images/base.raw"), nil, ""},
		"open elsewhere":    {"raw", func(t *testing.T, root, image string) { raw(t, root, image); opened(t, image) }, failure.Conflict, "ROOT/images/new.img is in use by "},
		"not there":         {"raw", func(*testing.T, string, string) {}, failure.NotFound, "ROOT/images/new.img"},
		"base not there":    {"qcow2", overlay("ROOT/images/gone.raw"), failure.NotFound, "ROOT/images/gone.raw"},
		"base out of roots": {"qcow2", overlay("/etc/passwd"), failure.Precondition, "/etc/passwd: not below any of [paths] roots"},
		"no image at all":   {"qcow2", raw, failure.Precondition, "ROOT/images/new.img"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			image := root + "/images/new.img"
			xml := boundTo(root, testMachine, "", "vda")
			disk := xml[strings.Index(xml, "<devices>"):]
			edited := strings.NewReplacer(root+"/run/diskhook/disks/"+testUUID+"/vda", image, "type='raw'", "type='"+tc.format+"'").Replace(disk)
			libvirt := &oneDomain{xml: strings.Replace(xml, disk, edited, 1)}
			s := testService(t, root, libvirt)
			s.Host.Config.Local.Reserve, s.Local.Config.Local.Reserve = 0, 0
			write(t, root+"/images/base.raw", strings.Repeat("b", 1<<20))
			tc.make(t, root, image)
			p, err := s.PlanApply(t.Context(), "vm", nil, true)
			if tc.want == nil {
				if err != nil {
					t.Fatal(failure.Line(err))
				}
				if m, err := p.After.Metadata(); err != nil || !strings.Contains(string(m.Disks[0].Origin), image) || len(p.Fill) != 1 {
					t.Errorf("%v, fills %v\n%s", err, p.Fill, p.After.Bytes())
				}
				return
			}
			refusedWith(t, err, tc.want, strings.ReplaceAll(tc.words, "ROOT", root), "")
			if failure.KindOf(err) != failure.NotFound && failure.HintOf(err) == "" {
				t.Errorf("no way out: %v", err)
			}
			if !strings.Contains(fmt.Sprint(err), "disk vda") {
				t.Errorf("which disk? %v", err)
			}
		})
	}
}

// opened holds a file open in another process until the test ends.
func opened(t *testing.T, path string) {
	t.Helper()
	holder := exec.Command("sh", "-c", `exec 3<>"$0"; echo open; exec cat`, path)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = holder.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("%q, %v", line, err)
	}
}
