// SPDX-License-Identifier: Apache-2.0

package failure_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"diskhook/storage/failure"
)

func TestKindSurvivesWrapping(t *testing.T) {
	inner := failure.New(failure.NoSpace, "vg ovirt-local: %w", fs.ErrInvalid)
	err := fmt.Errorf("disk vda: %w", failure.Hint(inner, "extend the volume group"))
	for _, target := range []error{failure.NoSpace, fs.ErrInvalid} {
		if !errors.Is(err, target) {
			t.Errorf("errors.Is(%v, %v) = false", err, target)
		}
	}
	if errors.Is(err, failure.NotFound) {
		t.Error("the error is of a kind nobody gave it")
	}
	if got := failure.KindOf(err); got != failure.NoSpace {
		t.Errorf("KindOf = %v", got)
	}
	if got, want := err.Error(), "disk vda: vg ovirt-local: invalid argument"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

func TestLine(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"plain":            {errors.New("lv a/b: gone"), "lv a/b: gone"},
		"hint":             {failure.Hint(errors.New("lv a/b: gone"), "run x"), "lv a/b: gone; run x"},
		"outer hint wins":  {failure.Hint(failure.Hint(errors.New("e"), "inner"), "outer"), "e; outer"},
		"forged line":      {errors.New("domain a\ndiskhook: all is well: gone"), "domain a diskhook: all is well: gone"},
		"terminal escapes": {errors.New("domain \x1b[2Jx\r: gone"), "domain [2Jx : gone"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := failure.Line(tc.err); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestNilStaysNil(t *testing.T) {
	if failure.Wrap(failure.NoSpace, nil) != nil || failure.Hint(nil, "x") != nil {
		t.Error("nil became an error")
	}
}

func TestFull(t *testing.T) {
	full := failure.Full(fmt.Errorf("write f: %w", &fs.PathError{Op: "write", Path: "f", Err: syscall.ENOSPC}))
	if !errors.Is(full, failure.NoSpace) || !errors.Is(full, syscall.ENOSPC) {
		t.Errorf("%v is of kind %v", full, failure.KindOf(full))
	}
	if other := failure.Full(fs.ErrExist); failure.KindOf(other) != nil {
		t.Errorf("%v is of kind %v", other, failure.KindOf(other))
	}
	if err := failure.Full(nil); err != nil {
		t.Errorf("nothing is %v", err)
	}
}

func TestDenied(t *testing.T) {
	err := failure.Denied(fmt.Errorf("dir: %w", &fs.PathError{Op: "open", Path: "d", Err: syscall.EACCES}))
	if notRoot := os.Geteuid() != 0; errors.Is(err, failure.Precondition) != notRoot || (failure.HintOf(err) == "run this as root") != notRoot {
		t.Errorf("%v is of kind %v, hint %q", err, failure.KindOf(err), failure.HintOf(err))
	}
	if other := failure.Denied(fs.ErrExist); failure.KindOf(other) != nil || failure.Denied(nil) != nil {
		t.Errorf("%v is of kind %v", other, failure.KindOf(other))
	}
}
