// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Where the unit is not installed, the same process runs as a transient one,
// which must come back and give up alike.
func TestTransientUnitIsLikeTheInstalled(t *testing.T) {
	text, err := os.ReadFile("../../contrib/systemd/diskhook-quorum@.service")
	if err != nil {
		t.Fatal(err)
	}
	installed := strings.Split(string(text), "\n")
	properties := (&Service{}).process("db").Properties
	for _, p := range properties {
		if !slices.Contains(installed, p) {
			t.Errorf("the unit lacks %s", p)
		}
	}
	for _, line := range installed {
		name, _, _ := strings.Cut(line, "=")
		if (strings.HasPrefix(name, "Restart") || strings.HasPrefix(name, "StartLimit")) && !slices.Contains(properties, line) {
			t.Errorf("the transient unit lacks %s", line)
		}
	}
}
