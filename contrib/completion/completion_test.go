// SPDX-License-Identifier: Apache-2.0

// Package completion tests the completion of command lines in bash.
package completion

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBash(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "diskhook"), "diskhook/cmd/diskhook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	for _, c := range []struct{ line, want string }{
		{"diskhook lo", "local"},
		{"diskhook local re", "recreate remove resize"},
		{"diskhook local fi", ""}, // hidden
		{"diskhook domain apply --re", "--refresh"},
		{"diskhook local remove --dis", "--discard-guest-data"},
		{"diskhook domain apply --local vda=dir --con", "--connect"},
		{"diskhook nonsense x", ""},
	} {
		const script = `
			source ./diskhook.bash
			COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
			_diskhook
			printf '%s\n' "${COMPREPLY[@]}"`
		bash := exec.CommandContext(t.Context(), "bash", append([]string{"-euc", script, "bash"}, strings.Fields(c.line)...)...)
		bash.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := bash.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", c.line, err, out)
		}
		if diff := cmp.Diff(c.want, strings.Join(strings.Fields(string(out)), " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.line, diff)
		}
	}
}
