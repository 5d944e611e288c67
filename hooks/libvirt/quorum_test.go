// SPDX-License-Identifier: Apache-2.0

package libvirt_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/hooks/libvirt"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

func replicas(t *testing.T) (*hooktest.World, *hooktest.Quorum) {
	w, _ := fake(t)
	sets := &hooktest.Quorum{Layout: w.Layout, Err: map[string]error{}, Sets: map[string]quorum.Set{"db": hooktest.Set("db")}}
	w.Quorum = sets
	return w, sets
}

// TestQuorumOperations: the set is served before libvirt looks at the disk, its
// socket labelled when labels are known, and it is stopped whatever happened.
func TestQuorumOperations(t *testing.T) {
	selinux := []byte("<seclabel type='dynamic' model='selinux' relabel='yes'><imagelabel>system_u:object_r:svirt_image_t:s0:c1,c2</imagelabel></seclabel>\n</domain>")
	for _, c := range []struct {
		op, sub, extra string
		calls          []string
		refused        bool
	}{
		{"prepare", "begin", "-", []string{"start db vda 20s"}, false},
		{"start", "begin", "-", []string{"own db vda true 64055:64056 system_u:object_r:svirt_image_t:s0:c1,c2"}, false},
		{"started", "begin", "-", nil, false},
		{"stopped", "end", "-", nil, false},
		{"release", "end", "-", []string{"stop db vda", "stop-rest " + id}, false},
		{"release", "end", "shutdown", []string{"stop db vda", "stop-rest " + id}, false},
		{"migrate", "begin", "-", nil, true},
		{"restore", "begin", "-", []string{"plan db vda"}, false},
		{"reconnect", "begin", "-", []string{"start db vda 10s"}, false},
	} {
		t.Run(c.op+" "+c.extra, func(t *testing.T) {
			w, sets := replicas(t)
			xml := bytes.Replace(bind(t, w, "vda:quorum=db"), []byte("</domain>"), selinux, 1)
			stdout, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: c.op, SubOp: c.sub, Extra: c.extra, Stdin: xml})
			if len(stdout) != 0 || (err != nil) != c.refused {
				t.Errorf("stdout %q, %v", stdout, err)
			}
			if diff := cmp.Diff(c.calls, sets.Calls); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestQuorumVeto(t *testing.T) {
	w, sets := replicas(t)
	xml := bind(t, w, "vda:quorum=db")
	sets.Err["start"] = failure.Hint(failure.New(failure.Precondition, "replica set db: 1 of its replicas have the newest generation 7, 2 are needed (r2: no such file; r3: no such file)"), "bring r2 back, or believe one that is there with `diskhook quorum resync --from r1 db`")
	_, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: "prepare", SubOp: "begin", Extra: "-", Stdin: xml})
	if line := failure.Line(err); err == nil || !strings.HasPrefix(line, "domain vm: disk vda: replica set db: 1 of its replicas") || !strings.HasSuffix(line, "resync --from r1 db`") {
		t.Errorf("%v", err)
	}
	// A running domain is never killed for it.
	if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: "reconnect", SubOp: "begin", Extra: "-", Stdin: xml}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(w.Log.String(), "newest generation 7") {
		t.Error("the log does not tell")
	}
}

// TestInlineNeedsItsOverride: without it QEMU would use the first replica
// alone. A domain whose override is gone, or that gives the quorum another
// disk's node, is not started, and its set is not touched.
func TestInlineNeedsItsOverride(t *testing.T) {
	for name, c := range map[string]struct {
		from, to string
		words    []string
	}{
		"as it was written": {},
		"no override":       {"alias='ua-diskhook-vda'>\n      <qemu:frontend>", "alias='ua-other'>\n      <qemu:frontend>", []string{"disk vda", "/srv/db-r1.raw alone", "diskhook domain apply vm"}},
		"another replica":   {"vda-r2", "vda-r7", []string{"disk vda", "its QEMU would open vda-r7", "replica set db has vda-r2", "diskhook domain apply vm"}},
		"another number":    {"libvirt-4-format", "libvirt-1-format", []string{"disk vda", "takes the node libvirt-1-format", "the number 4", "diskhook domain apply vm"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, sets := replicas(t)
			xml := bind(t, w, "vda:quorum=db,lower=inline")
			if c.from != "" && !bytes.Contains(xml, []byte(c.from)) {
				t.Fatalf("%q is not in\n%s", c.from, xml)
			}
			xml = bytes.Replace(xml, []byte(c.from), []byte(c.to), 1)
			var refused []error
			for _, op := range []string{"prepare", "start"} {
				_, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: op, SubOp: "begin", Extra: "-", Stdin: xml})
				if err != nil {
					refused = append(refused, err)
				}
			}
			calls := []string{"open db vda", "own db vda true 64055:64056"}
			if c.words != nil {
				calls = nil
				if len(refused) != 2 {
					t.Errorf("refused: %v", refused)
				}
			} else if len(refused) > 0 {
				t.Error(refused)
			}
			for _, err := range refused {
				for _, word := range c.words {
					if line := failure.Line(err); !strings.Contains(line, word) {
						t.Errorf("the line lacks %q: %s", word, line)
					}
				}
			}
			if diff := cmp.Diff(calls, sets.Calls); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestQuorumFormer: what the disk was before it was bound goes along with its
// start, in both lowerings.
func TestQuorumFormer(t *testing.T) {
	for _, binding := range []string{"vda:quorum=db", "vda:quorum=db,lower=inline"} {
		w, sets := replicas(t)
		xml := bind(t, w, binding)
		if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: "prepare", SubOp: "begin", Extra: "-", Stdin: xml}); err != nil {
			t.Fatal(err)
		}
		u := sets.Used[0]
		if len(u.Former) == 0 || !strings.HasPrefix(u.Former[0].Path, w.Path("images/")) || u.Replicas || u.Key != "vda" {
			t.Errorf("%s: %+v", binding, u)
		}
	}
}
