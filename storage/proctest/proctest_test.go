// SPDX-License-Identifier: Apache-2.0

package proctest

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

// child says in which way the tests of this package that are not its own behave.
const child = "PROCTEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		// As a package whose tests have these names.
		for _, arg := range os.Args[1:] {
			name, is := strings.CutPrefix(arg, "-test.run=^")
			switch name = strings.TrimSuffix(name, "$"); {
			case arg == "-test.list=.":
				os.Stdout.WriteString("TestLast\nTestFirst\nTestBad\n")
			case is && name == "TestBad" && os.Getenv(child) == "fails":
				os.Stdout.WriteString("--- FAIL: TestBad\nFAIL\n")
				os.Exit(1)
			case is:
				os.Stdout.WriteString("ran " + name + "\nPASS\n")
			}
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestEachTestHasItsProcess(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	lines := func(out *bytes.Buffer) []string {
		all := strings.Split(strings.TrimSpace(out.String()), "\n")
		slices.Sort(all)
		return all
	}
	var out bytes.Buffer
	t.Setenv(child, "passes")
	if err := run(self, []string{"TestFirst"}, &out); err != nil {
		t.Error(err)
	}
	if got := lines(&out); !slices.Equal(got, []string{"ran TestBad", "ran TestFirst", "ran TestLast"}) {
		t.Errorf("%q", got)
	}
	out.Reset()
	t.Setenv(child, "fails")
	if err := run(self, nil, &out); err == nil || !strings.Contains(err.Error(), "TestBad: exit status 1") || strings.Contains(err.Error(), "TestLast") {
		t.Errorf("got %v", err)
	}
	if got := lines(&out); !slices.Equal(got, []string{"--- FAIL: TestBad", "ran TestFirst", "ran TestLast"}) {
		t.Errorf("%q", got)
	}
	if err := run(self, []string{"TestGone"}, &out); err == nil || !strings.Contains(err.Error(), "TestGone") {
		t.Errorf("got %v", err)
	}
}
