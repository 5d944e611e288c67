// SPDX-License-Identifier: Apache-2.0

package command

import (
	"io"
	"os/exec"
	"syscall"
)

// Child is a program that runs beside us for long, and not longer than us.
type Child struct {
	proc  *exec.Cmd
	ended chan struct{}
	err   error
}

// StartChild starts a program that is watched by the caller. Its stderr goes to
// stderr, which outlives the call; Stdout and Timeout of cmd are not looked
// at.
func StartChild(cmd Cmd, stderr io.Writer) (*Child, error) {
	proc, err := prepare(cmd)
	if err != nil {
		return nil, &Error{Argv: cmd.Argv(), Code: -1, Err: err}
	}
	proc.Stderr = stderr
	c := &Child{proc: proc, ended: make(chan struct{})}
	ended, err := launch(proc)
	if err != nil {
		return nil, &Error{Argv: cmd.Argv(), Code: -1, Err: err}
	}
	go func() {
		c.err = <-ended
		close(c.ended)
	}()
	return c, nil
}

// PID is the child's.
func (c *Child) PID() int { return c.proc.Process.Pid }

// Signal sends sig to the child, which may have gone.
func (c *Child) Signal(sig syscall.Signal) { _ = c.proc.Process.Signal(sig) }

// Ended is closed when the child has gone and was reaped.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// Err is how the child ended: nil for exit code 0. It is valid after Ended.
func (c *Child) Err() error { return c.err }
