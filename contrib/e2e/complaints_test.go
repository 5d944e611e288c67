// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// What failed in a guest is found in what it has printed, and nothing else is.
func TestComplaints(t *testing.T) {
	const printed = `[    1.2] testguest systemd[1]: Started.
=== RUN   TestHost/first
    copies_test.go:12: exit code 1
        a journal of the boot, whose line has x_test.go:1: in it
--- FAIL: TestHost (3.00s)
    --- FAIL: TestHost/first (1.00s)
    --- PASS: TestHost/second (1.00s)
panic: test timed out after 54m
FAIL
`
	got := complaints(printed + "    copies_test.go:13: " + strings.Repeat("long ", 1000) + "\n")
	want := `    copies_test.go:12: exit code 1
--- FAIL: TestHost (3.00s)
    --- FAIL: TestHost/first (1.00s)
panic: test timed out after 54m
`
	if head, last, _ := strings.Cut(got, "    copies_test.go:13: "); head != want || len(last) > 650 {
		t.Errorf("got %q", got)
	}
}
