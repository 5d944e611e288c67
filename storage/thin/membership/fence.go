// SPDX-License-Identifier: Apache-2.0

package membership

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// HostMark is what a fence command says in the place of the host's name.
const HostMark = "{host}"

// defaultFenceTimeout is enough to cut a host's power and see that it is off.
const defaultFenceTimeout = 2 * time.Minute

// Fence is a site's own way to keep a host from writing.
type Fence struct {
	// Command is run with HostMark replaced; it exits 0 only when the host is off,
	// or cut off from the disk. Its first word is an absolute path.
	Command []string `json:"command"`
	// Seconds bound it; 0: two minutes.
	Seconds int `json:"seconds,omitempty"`
}

// Check refuses a command that could not fence the host that is meant, as a
// failure.Precondition.
func (f Fence) Check() error {
	var reason string
	switch {
	case len(f.Command) == 0:
		reason = "it is empty"
	case !filepath.IsAbs(f.Command[0]):
		reason = fmt.Sprintf("%q is not an absolute path", f.Command[0])
	case !slices.ContainsFunc(f.Command[1:], func(a string) bool { return strings.Contains(a, HostMark) }):
		reason = "no argument says " + HostMark
	case f.Seconds < 0:
		reason = "its time limit is negative"
	default:
		return nil
	}
	err := failure.New(failure.Precondition, "fence command: %s", reason)
	return failure.Hint(err, `write it as ["/path/to/program", "%s"]`, HostMark)
}

// Host runs the command. Only its success is evidence; an error of any kind says
// that nothing is known of the host. The name has been checked (layout.ValidName).
func (f Fence) Host(ctx context.Context, run command.Runner, host string) (Evidence, error) {
	if err := f.Check(); err != nil {
		return Evidence{}, err
	}
	cmd := command.Cmd{Name: f.Command[0], Timeout: defaultFenceTimeout}
	if f.Seconds > 0 {
		cmd.Timeout = time.Duration(f.Seconds) * time.Second
	}
	for _, a := range f.Command[1:] {
		cmd.Args = append(cmd.Args, strings.ReplaceAll(a, HostMark, host))
	}
	if _, err := run.Run(ctx, cmd); err != nil {
		return Evidence{}, fmt.Errorf("host %s: fence: %w", host, err)
	}
	text := fmt.Sprintf("%s succeeded at %s", filepath.Base(cmd.Name), time.Now().UTC().Format(time.RFC3339))
	return Evidence{FenceAgent, text}, nil
}
