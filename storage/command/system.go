// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"diskhook/storage/failure"
)

// System runs real programs. The zero value is ready; Log may be nil.
type System struct{ Log *slog.Logger }

// grace is how long a killed program may take to go before it is abandoned.
const grace = 2 * time.Second

// searchPath is where programs are looked up, and the PATH they get.
var searchPath = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Find returns the absolute path of the program called name. A missing one is
// a failure.Precondition.
func Find(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, executable(name)
	}
	for _, dir := range append(testDirs(), searchPath...) {
		path := filepath.Join(dir, name)
		if executable(path) == nil {
			return path, nil
		}
	}
	err := failure.New(failure.Precondition, "%s: no such program in %s", name, strings.Join(searchPath, ":"))
	return "", failure.Hint(err, "install the package that has %s, then run `diskhook doctor`", name)
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return failure.Wrap(failure.Precondition, err)
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return failure.New(failure.Precondition, "%s: not executable", path)
	}
	return nil
}

// Run implements Runner.
func (s System) Run(ctx context.Context, cmd Cmd) (Result, error) {
	if cmd.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cmd.Timeout)
		defer cancel()
	}
	began := time.Now()
	result, err := run(ctx, cmd)
	if s.Log != nil {
		attrs := []any{"argv", cmd.String(), "took", time.Since(began).Round(time.Millisecond)}
		if err != nil {
			attrs = append(attrs, "err", err)
		}
		s.Log.DebugContext(ctx, "ran", attrs...)
	}
	return result, err
}

func run(ctx context.Context, cmd Cmd) (Result, error) {
	fail := func(code int, stderr []byte, err error) error {
		return &Error{Argv: cmd.Argv(), Code: code, Stderr: tail(stderr), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return Result{}, fail(-1, nil, err)
	}
	proc, err := prepare(cmd)
	if err != nil {
		return Result{}, fail(-1, nil, err)
	}
	var stdout, stderr buffer
	proc.Stderr = &stderr
	if proc.Stdout = io.Writer(&stdout); cmd.Stdout != nil {
		proc.Stdout = cmd.Stdout
	}
	ended, err := launch(proc)
	if err != nil {
		return Result{}, fail(-1, nil, err)
	}
	err = await(ctx, proc, ended)
	result := Result{Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return result, nil
	case errors.As(err, &exit) && ctx.Err() == nil && exit.ExitCode() >= 0:
		return result, fail(exit.ExitCode(), result.Stderr, nil)
	}
	return result, fail(-1, result.Stderr, err)
}

// launch starts proc, and waits for it beside the caller. Without a signal of
// its own the child has what the caller's thread has, such as an I/O class.
func launch(proc *exec.Cmd) (<-chan error, error) {
	ended := make(chan error, 1)
	if proc.SysProcAttr.Pdeathsig == 0 {
		err := proc.Start()
		if err == nil {
			go func() { ended <- proc.Wait() }()
		}
		return ended, err
	}
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that made the child: it is
		// kept until the child has gone, and never given back.
		runtime.LockOSThread()
		err := proc.Start()
		started <- err
		if err == nil {
			ended <- proc.Wait()
		}
	}()
	return ended, <-started
}

// await returns when the program has ended, or after the context has and the
// program was killed, whether it went or not.
func await(ctx context.Context, proc *exec.Cmd, ended <-chan error) error {
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_ = syscall.Kill(-proc.Process.Pid, syscall.SIGKILL)
	select {
	case <-ended: //nolint:errcheck // we killed it; how it ended says nothing
		return ctx.Err()
	case <-time.After(grace):
		return fmt.Errorf("%w: %w", ErrAbandoned, ctx.Err())
	}
}

func prepare(cmd Cmd) (*exec.Cmd, error) {
	argv := append([]string{cmd.Name}, cmd.Args...)
	if cmd.Limits != (Limits{}) {
		argv = append(limitArgs(cmd.Limits), argv...)
		// prlimit(1) looks its program up in PATH, which is searchPath; a
		// test's own directories are not in it.
		path, err := Find(cmd.Name)
		if err != nil {
			return nil, err
		}
		argv[len(argv)-len(cmd.Args)-1] = path
	}
	path, err := Find(argv[0])
	if err != nil {
		return nil, err
	}
	proc := exec.Command(path, argv[1:]...)
	proc.Stdin, proc.Dir, proc.ExtraFiles = cmd.Stdin, cmd.Dir, cmd.Files
	proc.Env = append(append(baseEnv(), testEnv()...), cmd.Env...)
	proc.WaitDelay = grace // a grandchild that keeps the pipes does not hold us
	proc.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: cmd.Death}
	if u := cmd.User; u != nil {
		proc.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	return proc, nil
}

// limitArgs is prlimit(1)'s grammar: --RESOURCE=SOFT:HARD, or one value for
// both; address space in bytes, CPU in seconds.
func limitArgs(l Limits) []string {
	args := []string{"prlimit"}
	if l.AddressSpace > 0 {
		args = append(args, "--as="+strconv.FormatInt(l.AddressSpace, 10))
	}
	if l.CPU > 0 {
		args = append(args, "--cpu="+strconv.Itoa(int(l.CPU.Seconds())))
	}
	return append(args, "--")
}

func baseEnv() []string {
	return []string{
		"LC_ALL=C",
		"PATH=" + strings.Join(searchPath, ":"),
		// lvm complains about each inherited descriptor otherwise, and it
		// inherits locks on purpose.
		"LVM_SUPPRESS_FD_WARNINGS=1",
	}
}

// buffer collects output while Wait copies into it; an abandoned program's
// copier may still be writing when it is read.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func tail(stderr []byte) string {
	const most = 8 << 10
	if len(stderr) > most {
		stderr = stderr[len(stderr)-most:]
	}
	return strings.TrimSpace(string(stderr))
}
