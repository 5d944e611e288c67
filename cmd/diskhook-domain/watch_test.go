// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"diskhook/hooks/domains"
)

// A libvirt that is away is waited for; whoever asked ends it by closing the
// input.
func TestWatchWaitsForLibvirt(t *testing.T) {
	input, open, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	output, lines := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- run([]string{"--connect", "qemu:///system?socket=" + t.TempDir() + "/none", domains.VerbWatch}, input, lines, io.Discard)
		_ = lines.Close()
	}()
	if _, err := io.WriteString(open, `{"domain":"69b6b942-b5bf-4740-bb95-6752ffbd3bcf"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(output)
	line, err := in.ReadString('\n')
	var told domains.Told
	if err != nil || json.Unmarshal([]byte(line), &told) != nil || told.Listening || !strings.Contains(told.Why, "none") {
		t.Fatalf("%q, %v", line, err)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("the same again: %q, %v", rest, err)
	}
	if c := <-code; c != 0 {
		t.Errorf("exit code %d", c)
	}
}

// A driver without QEMU has no such events, and never will.
func TestWatchGivesUp(t *testing.T) {
	for request, says := range map[string]string{
		`{"domain":"x"}`: `"code":"precondition"`,
		`nonsense`:       `"code":"usage"`,
	} {
		var out strings.Builder
		if code := run([]string{"--connect", "test:///default", domains.VerbWatch}, strings.NewReader(request), &out, io.Discard); code != 1 || !strings.Contains(out.String(), says) {
			t.Errorf("%s: exit code %d: %s", request, code, &out)
		}
	}
}
