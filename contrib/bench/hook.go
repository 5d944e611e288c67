// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"
)

// rounds is how often each program is started.
const rounds = 400

// unbound is a domain of an oVirt host with nothing of diskhook in it.
const unbound = "testdata/domains/vdsm-mixed.in.xml"

// hookCalls starts the hook as libvirt does, /bin/true and Python in turns. The
// least time of each is compared: what else the machine does can only add to a
// start, and of many some are not disturbed.
func hookCalls(ctx context.Context, out io.Writer) error {
	contestants := []struct {
		name string
		argv []string
	}{
		{"/bin/true", []string{"/bin/true"}},
		{"qemu-hook prepare", []string{"bin/qemu-hook", "vm1", "prepare", "begin", "-"}},
		{"qemu-hook started", []string{"bin/qemu-hook", "vm1", "started", "begin", "-"}},
		// Not what PATH has first: that may be a wrapper.
		{"python3 -c pass", []string{"/usr/bin/python3", "-c", "pass"}},
	}
	least := make([]time.Duration, len(contestants))
	for range rounds {
		for i, c := range contestants {
			took, err := spawn(ctx, c.argv, unbound)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if least[i] == 0 || took < least[i] {
				least[i] = took
			}
		}
	}
	for i, c := range contestants {
		fmt.Fprintf(out, "  %-20s %8.2f ms  %5.1f × /bin/true\n", c.name, milliseconds(least[i]), ratio(least[i], least[0]))
	}
	fmt.Fprintf(out, "  the hook is %.1f × faster than Python doing nothing (the least of %d starts each)\n", ratio(least[3], least[1]), rounds)
	return nil
}

// spawn runs argv with the file on its standard input and returns the time
// from start to exit. It does no more than it must: what os/exec does beside
// fork, exec and wait would be counted for all alike, and hide differences.
func spawn(ctx context.Context, argv []string, stdin string) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	in, err := os.Open(stdin)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	attributes := &syscall.ProcAttr{
		Env:   []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, // as libvirt has it
		Files: []uintptr{in.Fd(), 1, 2},
	}
	from := time.Now()
	pid, err := syscall.ForkExec(argv[0], argv, attributes)
	if err != nil {
		return 0, err
	}
	var status syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR { //nolint:errorlint // an Errno, never wrapped
			break
		}
	}
	took := time.Since(from)
	if err == nil && status.ExitStatus() != 0 {
		err = fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return took, err
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
