// SPDX-License-Identifier: Apache-2.0

// Package command is the one way diskhook runs other programs.
//
// A program is started by absolute path, never through a shell, with a
// scrubbed environment (LC_ALL=C, a fixed PATH), in a session of its own. It
// has a deadline; when that passes or the context ends, its process group is
// killed. A process that hangs in the kernel (a dead NFS server) cannot be
// killed: after a short grace it is abandoned and Run returns all the same,
// so a hung disk never hangs the caller.
//
// A program that fails yields *Error with argv, exit code and stderr. Callers
// add the object ("lv ovirt-local/abc: create: …") and decide what the code
// means; this package knows no tool.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"diskhook/storage/failure"
)

// Cmd is one call of a program.
type Cmd struct {
	// Name is the tool's name ("lvm", "qemu-img"), looked up in the system's
	// directories, or an absolute path.
	Name string
	Args []string

	Stdin io.Reader // nil: /dev/null
	// Env are KEY=VALUE pairs beside the scrubbed base environment.
	Env []string
	Dir string

	// Stdout receives the output as it comes (progress); nil: Result.Stdout.
	Stdout io.Writer

	// Files are inherited as descriptors 3, 4, …: locks that must live as
	// long as the program does (see package lock).
	Files []*os.File

	// Death is the signal that the kernel sends the program when we die, whatever
	// the way (PR_SET_PDEATHSIG of prctl(2)): to one that nobody could end else.
	// 0: it may outlive us.
	Death syscall.Signal

	// Timeout bounds the run; 0 means only the context does.
	Timeout time.Duration

	// User, when set, runs the program with that identity.
	User *Credential

	// Limits bound what the program may use; the zero value bounds nothing.
	Limits Limits
}

// Credential is a numeric identity with its supplementary groups.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}

// Limits are resource limits of a program that reads hostile input.
type Limits struct {
	AddressSpace int64 // bytes
	CPU          time.Duration
}

// Argv is the command as it is run, program first.
func (c Cmd) Argv() []string { return append([]string{c.Name}, c.Args...) }

// String quotes the command so that it can be pasted into a shell.
func (c Cmd) String() string { return Quote(c.Argv()) }

// Result is what a program printed.
type Result struct{ Stdout, Stderr []byte }

// Runner runs programs. System is the real one; commandtest has the fake.
type Runner interface {
	// Run returns *Error (errors.As) when the program could not be started,
	// ended with a code other than 0, or did not end in time. The Result is
	// valid in every case.
	Run(ctx context.Context, cmd Cmd) (Result, error)
}

// Error tells how a program failed.
type Error struct {
	Argv   []string
	Code   int    // exit code; -1 if it was never started, killed or abandoned
	Stderr string // trimmed, at most 8 KiB from its end
	Err    error  // cause: exec error, context error, ErrAbandoned
}

// ErrAbandoned says that a killed program did not go away: it hangs in the
// kernel, most likely on remote storage. It is a failure.Temporary.
var ErrAbandoned = failure.Wrap(failure.Temporary, errors.New("the program hangs in the kernel and was abandoned"))

// Error is one line: program, first words of its arguments, code and stderr.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(brief(e.Argv))
	switch {
	case errors.Is(e.Err, context.DeadlineExceeded) && !errors.Is(e.Err, ErrAbandoned):
		b.WriteString(": it took too long, and was ended")
	case e.Err != nil:
		fmt.Fprintf(&b, ": %v", e.Err)
	default:
		fmt.Fprintf(&b, " exited %d", e.Code)
	}
	if e.Stderr != "" {
		b.WriteString(": ")
		b.WriteString(digest(e.Stderr))
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// digest is what of stderr fits in one line: tools that work in parallel say
// the same once per worker. The whole is in Stderr.
func digest(stderr string) string {
	const most = 3
	lines := strings.Split(stderr, "\n")
	if len(lines) <= most {
		return failure.OneLine(stderr)
	}
	return fmt.Sprintf("%s (and %d lines more)", failure.OneLine(strings.Join(lines[:most-1], " ")), len(lines)-most+1)
}

// brief names program and verb; the whole argv is in the log and in Argv.
func brief(argv []string) string {
	words := 2
	letter := func(r rune) bool { return r >= 'a' && r <= 'z' }
	if len(argv) > 2 && strings.HasPrefix(argv[1], "-") && strings.TrimFunc(argv[2], letter) == "" {
		words = 3 // iscsiadm -m node
	}
	return Quote(argv[:min(words, len(argv))])
}

// Quote joins argv for a POSIX shell, quoting only where needed.
func Quote(argv []string) string {
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		quoted[i] = quote(arg)
	}
	return strings.Join(quoted, " ")
}

func quote(arg string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-+=./:,@%", r)
	}
	if arg != "" && strings.IndexFunc(arg, func(r rune) bool { return !plain(r) }) < 0 {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}
