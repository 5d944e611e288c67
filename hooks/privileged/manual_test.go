// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"os"
	"strings"
	"testing"
)

// TestManual wants every verb in diskhook-helper(8), by its last word under
// local and by both otherwise.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../contrib/man/diskhook-helper.8")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		items, ok := strings.CutPrefix(strings.TrimSpace(line), ".It Cm ")
		if !ok {
			continue
		}
		for verb := range strings.SplitSeq(items, " , ") {
			listed[verb] = true
		}
	}
	for verb := range verbs {
		if name := strings.TrimPrefix(verb, "local "); !listed[name] {
			t.Errorf("the verb %q is not in the manual", verb)
		}
	}
}
