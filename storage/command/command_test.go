// SPDX-License-Identifier: Apache-2.0

package command_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

func TestErrorCarriesArgvCodeAndStderr(t *testing.T) {
	_, err := command.System{}.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"-c", "echo one; echo two >&2; exit 5"}})
	var failed *command.Error
	if !errors.As(err, &failed) {
		t.Fatalf("got %v", err)
	}
	if failed.Code != 5 || failed.Stderr != "two" || failed.Argv[2] != "echo one; echo two >&2; exit 5" {
		t.Errorf("got %+v", failed)
	}
	if want := "sh -c exited 5: two"; err.Error() != want {
		t.Errorf("text %q, want %q", err, want)
	}
}

func TestErrorTextIsBoundedAndStderrIsNot(t *testing.T) {
	_, err := command.System{}.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"-c", "for i in 1 2 3 4 5 6 7 8; do echo full $i >&2; done; exit 1"}})
	if want := "sh -c exited 1: full 1 full 2 (and 6 lines more)"; err.Error() != want {
		t.Errorf("text %q, want %q", err, want)
	}
	var failed *command.Error
	if !errors.As(err, &failed) || !strings.HasSuffix(failed.Stderr, "full 8") {
		t.Errorf("stderr %q", failed.Stderr)
	}
}

func TestEnvironmentIsScrubbed(t *testing.T) {
	t.Setenv("LD_PRELOAD", "/nonexistent/evil.so")
	t.Setenv("LVM_SYSTEM_DIR", "/nonexistent")
	res, err := command.System{}.Run(t.Context(), command.Cmd{Name: "env", Env: []string{"A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "LC_ALL=C\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nLVM_SUPPRESS_FD_WARNINGS=1\nA=b\n"
	if string(res.Stdout) != want {
		t.Errorf("environment %q, want %q", res.Stdout, want)
	}
}

// The line names the verb behind an option, and a time limit in words.
func TestErrorsNameWhatWasRun(t *testing.T) {
	for want, e := range map[string]command.Error{
		"iscsiadm -m node exited 8: no session":                           {Argv: []string{"iscsiadm", "-m", "node", "-T", "iqn"}, Code: 8, Stderr: "no session"},
		"multipath -f exited 1":                                           {Argv: []string{"multipath", "-f", "3600a"}, Code: 1},
		"iscsiadm -m node: it took too long, and was ended":               {Argv: []string{"iscsiadm", "-m", "node", "--login"}, Code: -1, Err: context.DeadlineExceeded},
		"mount -t nfs: the program hangs in the kernel and was abandoned": {Argv: []string{"mount", "-t", "nfs", "x"}, Code: -1, Err: command.ErrAbandoned},
	} {
		if got := e.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTimeoutKillsTheWholeGroup(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	began := time.Now()
	_, err := command.System{}.Run(t.Context(), command.Cmd{
		Name: "sh", Args: []string{"-c", "while :; do touch " + mark + "; sleep 0.05; done & sleep 300"}, Timeout: 100 * time.Millisecond,
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
	_ = os.Remove(mark)
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(mark); err == nil {
		t.Error("a grandchild lived on and wrote")
	}
}

// A program that dies with us outlives the thread that started it, and is waited
// for like any other.
func TestDeathIsOursAlone(t *testing.T) {
	stop := make(chan struct{})
	var threads sync.WaitGroup
	threads.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				threads.Go(runtime.LockOSThread) // ends with its goroutine
				time.Sleep(time.Millisecond)
			}
		}
	})
	defer threads.Wait()
	defer close(stop)
	res, err := command.System{}.Run(t.Context(), command.Cmd{Name: "sh", Args: []string{"-c", "sleep 0.3; echo done"}, Death: syscall.SIGKILL})
	if err != nil || string(res.Stdout) != "done\n" {
		t.Errorf("%q, %v", res.Stdout, err)
	}
	_, err = command.System{}.Run(t.Context(), command.Cmd{Name: "sleep", Args: []string{"600"}, Death: syscall.SIGKILL, Timeout: 100 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a timeout: %v", err)
	}
}

func TestMissingProgramIsAPrecondition(t *testing.T) {
	_, err := command.System{}.Run(t.Context(), command.Cmd{Name: "no-such-program"})
	if !errors.Is(err, failure.Precondition) || failure.HintOf(err) == "" {
		t.Errorf("got %v, hint %q", err, failure.HintOf(err))
	}
}

func TestLimitsReachTheProgram(t *testing.T) {
	res, err := command.System{}.Run(t.Context(), command.Cmd{
		Name: "sh", Args: []string{"-c", "ulimit -v; ulimit -t"},
		Limits: command.Limits{AddressSpace: 1 << 30, CPU: 30 * time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(res.Stdout), "1048576\n30\n"; got != want {
		t.Errorf("limits %q, want %q", got, want)
	}
}

// A lock handed to a child lives as long as the child, whoever started it.
func TestInheritedLockOutlivesTheParent(t *testing.T) {
	dir := t.TempDir()
	held, err := lock.Try(dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := command.System{}.Run(context.Background(), command.Cmd{Name: "sleep", Args: []string{"1"}, Files: []*os.File{held.File()}})
		done <- err
	}()
	time.Sleep(300 * time.Millisecond)
	held.Release()
	if is, err := lock.Held(dir, "disk"); err != nil || !is {
		t.Errorf("held = %v, %v while the child runs", is, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if is, err := lock.Held(dir, "disk"); err != nil || is {
		t.Errorf("held = %v, %v after the child ended", is, err)
	}
}

func TestQuote(t *testing.T) {
	got := command.Quote([]string{"lvm", "lvs", "-o", "lv_name", `a'b`, "", "x y"})
	if want := `lvm lvs -o lv_name 'a'\''b' '' 'x y'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDetachReturnsAtOnceAndSharesNoPipe(t *testing.T) {
	dir := t.TempDir()
	allowed, mark := filepath.Join(dir, "allowed"), filepath.Join(dir, "mark")
	// The child holds no pipe of ours; System.Run on a shell that detaches would hang otherwise.
	if err := command.Detach(t.Context(), command.System{}, command.Detached{
		Unit: "diskhook-test-" + filepath.Base(t.TempDir()), Argv: []string{"/bin/sh", "-c", "until [ -e " + allowed + " ]; do sleep 0.05; done; echo done >" + mark},
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(allowed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 1200 {
		if b, _ := os.ReadFile(mark); strings.TrimSpace(string(b)) == "done" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the detached process never ran")
}
