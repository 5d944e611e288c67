// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

// output is written by the reporter and read by the test.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

var vda = localdisk.Disk{DomainName: "vm", Target: "vda"}

func copying(percent int64) progress.Status {
	return progress.Status{State: progress.Copying, Done: percent << 20, Total: 100 << 20, Rate: 1 << 20, ETA: 100 - percent}
}

// Off a terminal there is a line each ten percent, and one at the end.
func TestProgressInLines(t *testing.T) {
	out := &output{}
	p := &program{stderr: out}
	r := p.reporter(table)
	defer r.close()
	r.copies(vda, progress.Status{State: progress.Failed, Updated: time.Now().Add(-time.Hour)}) // an earlier one
	for _, percent := range []int64{0, 1, 9, 10, 11, 19, 55, 56} {
		r.copies(vda, copying(percent))
	}
	r.copies(vda, progress.Status{State: progress.Ready, Updated: time.Now()})
	r.copies(vda, progress.Status{State: progress.Ready, Updated: time.Now()})
	want := []string{
		"diskhook: domain vm: disk vda: 0 % of 100 MiB, 1.0 MiB/s, 1m40s left",
		"diskhook: domain vm: disk vda: 10 % of 100 MiB, 1.0 MiB/s, 1m30s left",
		"diskhook: domain vm: disk vda: 55 % of 100 MiB, 1.0 MiB/s, 45s left",
		"diskhook: domain vm: disk vda: ready",
	}
	if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(out.String()), "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestProgressAsJSON(t *testing.T) {
	out := &output{}
	p := &program{stderr: out}
	r := p.reporter(inJSON)
	defer r.close()
	r.copies(vda, copying(40))
	var got map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := map[string]any{
		"type": "progress", "object": "domain vm: disk vda", "state": "copying",
		"done": float64(40 << 20), "total": float64(100 << 20), "rate": float64(1 << 20), "eta": 60.0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// SIGUSR1 gets a line now, however little has changed since the last.
func TestProgressOnRequest(t *testing.T) {
	out := &output{}
	p := &program{stderr: out}
	r := p.reporter(table)
	defer r.close()
	r.copies(vda, copying(40))
	r.copies(vda, copying(43))
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if strings.Contains(out.String(), "43 %") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("no line: %s", out)
}

func TestNamesInProgressAreHarmless(t *testing.T) {
	out := &output{}
	r := (&program{stderr: out}).reporter(table)
	defer r.close()
	r.tell("domain \x1b[2J", copying(1))
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("got %q", out)
	}
}
