// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// patience bounds everything that is waited for.
const patience = 5 * time.Minute

// try runs a command to its end.
func try(t *testing.T, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A process that outlives the command must not be waited for.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("%s %q: %v %v\n%s", name, args, err, ctx.Err(), stderr.String())
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs a command that has to work, and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := try(t, name, args...)
	if r.code != 0 {
		t.Fatalf("%s %q: exit %d\n%s%s", name, args, r.code, r.stdout, r.stderr)
	}
	return strings.TrimRight(r.stdout, "\n")
}

// diskhook runs the program and checks its exit code. It returns all that it
// said.
func diskhook(t *testing.T, code int, args ...string) string {
	t.Helper()
	r := try(t, "/usr/bin/diskhook", args...)
	said := r.stdout + r.stderr
	if r.code != code {
		t.Fatalf("diskhook %q: exit %d, not %d\n%s", args, r.code, code, said)
	}
	return said
}

// says checks that a text holds all the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q is missing in\n%s", word, text)
		}
	}
}

// eventually waits until something is true.
func eventually(t *testing.T, is func() bool, otherwise string) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(otherwise)
		}
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// moved takes a file or folder away until back is called, or the test ends.
func moved(t *testing.T, path string) (back func()) {
	t.Helper()
	away := path + ".away"
	if err := os.Rename(path, away); err != nil {
		t.Fatal(err)
	}
	done := false
	back = func() {
		if done {
			return
		}
		done = true
		if err := os.Rename(away, path); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(back)
	return back
}

// configured writes diskhook's configuration until the test ends. The images
// of the tests lie below a root of their own.
func configured(t *testing.T, text string) {
	t.Helper()
	set := func(text string) {
		if err := os.WriteFile("/etc/diskhook/diskhook.toml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set(text)
	t.Cleanup(func() { set(roots) })
}

// roots is the configuration of all tests that ask for nothing else.
var roots = "[paths]\nroots = [\"" + work + "/images\"]\n"

func containsAny(text string, words ...string) bool {
	for _, word := range words {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}
