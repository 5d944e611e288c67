// SPDX-License-Identifier: Apache-2.0

// Package proctest runs the tests of a package side by side though they change
// the environment of their process, which forbids t.Parallel: each gets a
// process of its own. It is for tests that wait more than they work, for
// programs that they start and kill, and for disks to flush.
//
// A call of TestMain ends with os.Exit(proctest.Main(m)). Where go test is told
// which tests to run, to fuzz, or to measure, they run in the one process as
// ever.
package proctest

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// perCPU is how many tests run at a time for each processor.
const perCPU = 2

// passedOn are the flags of a test binary that mean the same for each of its
// tests alone.
var passedOn = []string{"test.v", "test.count", "test.failfast", "test.paniconexit0", "test.short", "test.testlogfile", "test.timeout"}

// Main is m.Run. The tests whose names are in first begin first: those that
// take longest. It returns the exit code.
func Main(m *testing.M, first ...string) int {
	flag.Parse()
	alone := false
	flag.Visit(func(f *flag.Flag) { alone = alone || !slices.Contains(passedOn, f.Name) })
	if alone {
		return m.Run()
	}
	self, err := os.Executable()
	if err == nil {
		err = run(self, first, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		fmt.Fprintln(os.Stdout, "FAIL")
		return 1
	}
	fmt.Fprintln(os.Stdout, "PASS")
	return 0
}

func run(self string, first []string, out io.Writer) error {
	listed, err := exec.CommandContext(context.Background(), self, "-test.list=.").Output()
	if err != nil {
		return fmt.Errorf("list the tests: %w", err)
	}
	tests := strings.Fields(string(listed))
	for _, name := range first {
		if !slices.Contains(tests, name) {
			return fmt.Errorf("there is no test %s to begin with", name)
		}
	}
	tests = append(slices.Clone(first), slices.DeleteFunc(tests, func(name string) bool { return slices.Contains(first, name) })...)
	var (
		workers sync.WaitGroup
		mu      sync.Mutex // of out and failed
		failed  []string
	)
	next := make(chan string)
	for range perCPU * runtime.NumCPU() {
		workers.Go(func() {
			runtime.LockOSThread() // Pdeathsig is about the thread
			for name := range next {
				said, err := alone(self, name)
				mu.Lock()
				_, _ = out.Write(said)
				if err != nil {
					failed = append(failed, fmt.Sprintf("%s: %v", name, err))
				}
				mu.Unlock()
			}
		})
	}
	for _, name := range tests {
		next <- name
	}
	close(next)
	workers.Wait()
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// alone runs one test and returns what it said, without the line that says how
// all of them ended.
func alone(self, name string) ([]byte, error) {
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool { return strings.HasPrefix(arg, "-test.testlogfile=") })
	cmd := exec.CommandContext(context.Background(), self, append(args, "-test.run=^"+name+"$")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := cmd.CombinedOutput()
	for _, last := range []string{"PASS\n", "FAIL\n"} {
		if rest, is := bytes.CutSuffix(said, []byte(last)); is && (len(rest) == 0 || rest[len(rest)-1] == '\n') {
			return rest, err
		}
	}
	return said, err
}
