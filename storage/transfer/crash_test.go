// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package transfer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/transfer"
)

// call is a Copy in a process of its own, which may be killed.
type call struct {
	Source transfer.Source
	Target transfer.Target
	Method transfer.Method
	Cursor string
}

func TestMain(m *testing.M) {
	if text := os.Getenv("DISKHOOK_TEST_COPY"); text != "" {
		var c call
		err := json.Unmarshal([]byte(text), &c)
		if err == nil {
			_, err = (&transfer.Engine{Run: command.System{}, CursorEvery: time.Millisecond}).Copy(context.Background(), c.Source, c.Target, transfer.Options{Only: c.Method, Cursor: c.Cursor})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// killedAt runs a copy that dies at the nth point that it passes, and says
// whether it came that far.
func (c call) killedAt(t *testing.T, nth int) bool {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self := exec.Command(os.Args[0])
	self.Env = append(os.Environ(), "DISKHOOK_TEST_COPY="+string(text), fmt.Sprintf("DISKHOOK_FAILPOINT=#%d=kill", nth))
	out, err := self.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return false
}

// Killed at any step, the same call goes on and ends with the same content;
// without a cursor nothing has been written yet.
func TestKilledAtEveryStep(t *testing.T) {
	const size, chunks = 18<<20 + 512, 5
	layers := []layer{
		{"raw", 12 << 20, []step{{512, 3 << 20, 1}, {9 << 20, 1 << 20, 2}}},
		{"qcow2", size, []step{{2 << 20, 1 << 20, 0}, {7<<20 + 512, 512, 3}, {13 << 20, 5 << 20, 4}}},
	}
	for _, method := range []transfer.Method{transfer.Native, transfer.Ranges} {
		for _, device := range []bool{false, true} {
			for _, zeroed := range []bool{false, true} {
				name := fmt.Sprintf("%s device=%t zeroed=%t", method, device, zeroed)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					dir := t.TempDir()
					chain, content := build(t, dir, layers)
					source := identified(t, chain)
					want := append(content, make([]byte, 1<<20-512)...)
					file := filepath.Join(dir, "target")
					before := oldBytes(int64(len(want)))
					if zeroed {
						before = make([]byte, len(want))
					}
					c := call{source, transfer.Target{Path: file, Size: int64(len(want)), Zeroed: zeroed, ID: "it"}, method, file + ".cursor"}
					if err := os.WriteFile(file, before, 0o600); err != nil {
						t.Fatal(err)
					}
					if device {
						c.Target.Path, c.Target.Block = loop(t, file), true
					}
					reset := func() { again(t, c, before, zeroed) }
					nth := 1
					for ; ; nth++ {
						reset()
						if !c.killedAt(t, nth) {
							break
						}
						if _, err := os.Stat(c.Cursor); errors.Is(err, os.ErrNotExist) {
							expect(t, c.Target.Path, before)
						}
						// Once more, with luck elsewhere, then to the end.
						c.killedAt(t, 3)
						if c.killedAt(t, 1000) {
							t.Fatal("1000 steps")
						}
						expect(t, c.Target.Path, want)
					}
					expect(t, c.Target.Path, want)
					if least := map[transfer.Method]int{transfer.Native: chunks + 4, transfer.Ranges: 5}[method]; nth <= least {
						t.Errorf("only %d steps", nth-1)
					}
					equal(t, chain, c.Target.Path, int64(len(want)))
				})
			}
		}
	}
}

// The same where blocks are shared.
func TestReflinkKilledAtEveryStep(t *testing.T) {
	dir := xfs(t)
	chain, content := build(t, dir, []layer{{"raw", 8<<20 + 512, []step{{0, 8 << 20, 1}, {8 << 20, 512, 2}}}})
	source := identified(t, chain)
	want := append(content, make([]byte, 1<<20)...)
	c := call{source, transfer.Target{Path: filepath.Join(dir, "target"), Size: int64(len(want)), Zeroed: true, ID: "it"}, transfer.Reflink, filepath.Join(dir, "cursor")}
	nth := 1
	for ; c.killedAt(t, nth); nth++ {
		if c.killedAt(t, 1000) {
			t.Fatal("1000 steps")
		}
		expect(t, c.Target.Path, want)
		if err := errors.Join(os.Remove(c.Target.Path), os.Remove(c.Cursor)); err != nil {
			t.Fatal(err)
		}
	}
	if expect(t, c.Target.Path, want); nth < 5 {
		t.Errorf("only %d steps", nth-1)
	}
}

// again gives the target its first content, through the device if it is one,
// whose page cache would show other bytes otherwise.
func again(t *testing.T, c call, content []byte, zeroed bool) {
	t.Helper()
	f, err := os.OpenFile(c.Target.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), os.RemoveAll(c.Cursor)); err != nil {
		t.Fatal(err)
	}
	if zeroed && !c.Target.Block {
		tool(t, "fallocate", "--dig-holes", c.Target.Path)
	}
}

// The points that a copy with a cursor passes: each flush comes before the
// cursor that relies on it.
func TestCursorComesAfterFlush(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	t.Setenv("DISKHOOK_FAILPOINT_LOG", log)
	t.Setenv("DISKHOOK_FAILPOINT", "transfer.chunk=sleep:20ms")
	chain, _ := build(t, dir, []layer{{"raw", 40 << 20, []step{{0, 40 << 20, 1}}}})
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 40 << 20, ID: "it"}
	o := transfer.Options{Only: transfer.Native, Cursor: filepath.Join(dir, "cursor")}
	if _, err := (&transfer.Engine{Run: command.System{}, CursorEvery: time.Millisecond}).Copy(t.Context(), identified(t, chain), target, o); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var marks []string
	for _, point := range strings.Fields(string(text)) {
		if strings.HasPrefix(point, "transfer.cursor") {
			marks = append(marks, point)
		}
	}
	if len(marks) < 4 || len(marks)%2 != 0 {
		t.Fatalf("passed %q", text)
	}
	for i, point := range marks {
		if want := []string{"transfer.cursor-flushed", "transfer.cursor"}[i%2]; point != want {
			t.Errorf("%d: %s, want %s", i, point, want)
		}
	}
	if done, ok := transfer.Resumable(o.Cursor, identified(t, chain), target); !ok || done != 40<<20 {
		t.Errorf("in the end it is at %d, %t", done, ok)
	}
}
