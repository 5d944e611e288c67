// SPDX-License-Identifier: Apache-2.0

// Package commandtest has the fake Runner of unit tests. It answers from a
// script and keeps what was asked, so that tests assert on whole argvs. It
// stands beside tests with the real programs, never instead of them.
package commandtest

import (
	"context"
	"strings"
	"sync"
	"testing"

	"diskhook/storage/command"
)

// Answer is what the fake gives back when a command line begins with Prefix.
type Answer struct {
	Prefix string // compared with the quoted command line (command.Quote)
	Stdout string
	Stderr string
	Code   int
	Err    error
	Do     func(command.Cmd) // side effect, before the answer
}

// Runner answers each command with the first Answer that fits and fails the
// test when none does.
type Runner struct {
	T       testing.TB
	Answers []Answer

	mu   sync.Mutex
	runs []command.Cmd
}

// Run implements command.Runner.
func (r *Runner) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	r.T.Helper()
	r.mu.Lock()
	r.runs = append(r.runs, cmd)
	r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return command.Result{}, &command.Error{Argv: cmd.Argv(), Code: -1, Err: err}
	}
	line := cmd.String()
	for _, a := range r.Answers {
		if !strings.HasPrefix(line, a.Prefix) {
			continue
		}
		if a.Do != nil {
			a.Do(cmd)
		}
		result := command.Result{Stdout: []byte(a.Stdout), Stderr: []byte(a.Stderr)}
		if cmd.Stdout != nil {
			_, _ = cmd.Stdout.Write(result.Stdout)
		}
		if a.Code != 0 || a.Err != nil {
			return result, &command.Error{Argv: cmd.Argv(), Code: a.Code, Stderr: a.Stderr, Err: a.Err}
		}
		return result, nil
	}
	r.T.Errorf("unexpected command: %s", line)
	return command.Result{}, &command.Error{Argv: cmd.Argv(), Code: 127, Stderr: "no answer scripted"}
}

// Lines returns the commands run so far, quoted, in order.
func (r *Runner) Lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := make([]string, len(r.runs))
	for i, cmd := range r.runs {
		lines[i] = cmd.String()
	}
	return lines
}
