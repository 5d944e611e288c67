// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The trees that QEMU gets, each with every layer's format and end.
func TestNodes(t *testing.T) {
	set := three()
	var trees []*Node
	for i, o := range []Opening{{Direct: true}, {ReadOnly: true, Direct: true}, {}} {
		tree, err := set.ReplicaNode(set.Replicas[i], o)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "replica-"+set.Replicas[i].ID+".json", tree)
		trees = append(trees, tree)
	}
	golden(t, "set.json", set.Node([]string{"r1", "r4"}))
	golden(t, "proxy.json", set.ProxyNode("r4", "/run/diskhook/quorum/db/r4.sock"))
	golden(t, "tree.json", set.Tree(trees))
	for _, name := range nodeNames(trees) {
		if len(name) > 31 {
			t.Errorf("node name %s is too long for QEMU", name)
		}
	}
}

func nodeNames(trees []*Node) (names []string) {
	for _, n := range trees {
		names = append(names, n.NodeName)
		if file, ok := n.File.(*Node); ok {
			names = append(names, nodeNames([]*Node{file})...)
		}
	}
	return names
}

func golden(t *testing.T, name string, n *Node) {
	t.Helper()
	text, err := n.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, []byte(text), "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}
