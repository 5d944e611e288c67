// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"sync"
)

// Record is a Runner that runs nothing and keeps the command lines, for dry
// runs that show the very commands the real methods would run.
type Record struct {
	mu    sync.Mutex
	lines []string
}

// Run implements Runner; it always succeeds with no output.
func (r *Record) Run(_ context.Context, cmd Cmd) (Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, cmd.String())
	return Result{}, nil
}

// Lines returns the commands so far, quoted for a shell.
func (r *Record) Lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}
