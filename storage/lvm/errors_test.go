// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// meanings is what each recorded failure must be taken for; nil is a plain
// failure.
var meanings = map[string]struct {
	means error
	kind  *failure.Kind
}{
	"no-vg":                   {ErrNoVG, failure.Precondition},
	"no-lv":                   {ErrNoLV, failure.NotFound},
	"no-lv-extend":            {ErrNoLV, failure.NotFound},
	"no-origin":               {ErrNoLV, failure.NotFound},
	"no-pool":                 {ErrNoPool, failure.Precondition},
	"not-a-pool":              {ErrNoPool, failure.Precondition},
	"exists":                  {ErrExists, failure.Conflict},
	"no-space-create":         {errNoSpace, failure.NoSpace},
	"no-space-extend":         {errNoSpace, failure.NoSpace},
	"pool-full":               {errNoSpace, failure.NoSpace},
	"in-use-open":             {ErrInUse, failure.Conflict},
	"in-use-mounted":          {ErrInUse, failure.Conflict},
	"in-use-holder":           {ErrInUse, failure.Conflict},
	"same-name":               {ErrSameName, failure.Conflict},
	"exported":                {ErrExported, failure.Precondition},
	"foreign":                 {ErrForeign, failure.Precondition},
	"partial":                 {ErrPartial, failure.Precondition},
	"locked":                  {ErrLocked, failure.Temporary},
	"not-root":                {errNotRoot, failure.Precondition},
	"no-driver-create-exit-3": {ErrNoDeviceMapper, failure.Precondition},
	"no-driver-activate":      {ErrNoDeviceMapper, failure.Precondition},
	"no-driver-pool":          {ErrNoDeviceMapper, failure.Precondition},
	"extend-same":             {errUnchanged, nil},
	"extend-smaller":          {errUnchanged, nil},
	"reserved-exit-3":         {errRefused, failure.Usage},
	"size-exit-3":             {errRefused, failure.Usage},
	"unexplained":             {nil, nil},
}

func TestExplain(t *testing.T) {
	recordings := recorded(t)
	if len(recordings) != len(meanings) {
		t.Errorf("%d recordings, %d meanings", len(recordings), len(meanings))
	}
	for name, stderr := range recordings {
		t.Run(name, func(t *testing.T) {
			want, ok := meanings[name]
			if !ok {
				t.Fatal("recorded, but nobody says what it means")
			}
			ran := &command.Error{Argv: []string{"lvm", "lvx"}, Code: 5, Stderr: strings.TrimSpace(stderr)}
			got := explain("lv vg/a: verb", ran)
			for name, other := range meanings {
				is := errors.Is(got, other.means)
				if should := errors.Is(want.means, other.means); other.means != nil && is != should {
					t.Errorf("errors.Is(%s) = %v", name, is)
				}
			}
			if kind := failure.KindOf(got); kind != want.kind {
				t.Errorf("kind %v, want %v", kind, want.kind)
			}
			var failed *command.Error
			if !errors.As(got, &failed) || failed != ran {
				t.Error("the command's error is out of reach")
			}
			if text := got.Error(); !strings.HasPrefix(text, "lv vg/a: verb: lvm lvx exited 5: ") || strings.Contains(text, "\n") {
				t.Errorf("text %q", text)
			}
		})
	}
}

// recorded reads the fixture: "-- NAME --" lines, each with its text below.
func recorded(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fixtures + "/stderr-2.03.16.txtar")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	name := ""
	for line := range strings.Lines(string(b)) {
		if head, ok := strings.CutPrefix(line, "-- "); ok {
			name = strings.TrimSuffix(head, " --\n")
			continue
		}
		if name != "" {
			files[name] += line
		}
	}
	return files
}

// A group that is away says nothing about its volumes, so it must never look
// like an absent volume.
func TestNoVGIsNotNotFound(t *testing.T) {
	if errors.Is(ErrNoVG, failure.NotFound) {
		t.Error("a caller would make a new copy of a disk whose group is away")
	}
}

func TestExplainWhatLVMDidNotSay(t *testing.T) {
	if explain("x", nil) != nil {
		t.Error("nil became an error")
	}
	exit5 := explain("vg x: report", &command.Error{Argv: []string{"lvm"}, Code: 5})
	if failure.KindOf(exit5) != nil {
		t.Errorf("exit 5 alone is of kind %v", failure.KindOf(exit5))
	}
	late := explain("x", &command.Error{Argv: []string{"lvm"}, Code: -1, Err: context.DeadlineExceeded})
	if failure.KindOf(late) != failure.Temporary || failure.HintOf(late) == "" || !errors.Is(late, context.DeadlineExceeded) {
		t.Errorf("deadline: %v, hint %q", failure.KindOf(late), failure.HintOf(late))
	}
	stopped := explain("x", &command.Error{Argv: []string{"lvm"}, Code: -1, Err: context.Canceled, Stderr: "  Can't get lock for vg."})
	if !errors.Is(stopped, context.Canceled) || failure.KindOf(stopped) != nil {
		t.Errorf("cancelled: %v", failure.KindOf(stopped))
	}
	// A warning beside an unknown failure explains nothing.
	warned := explain("x", &command.Error{Argv: []string{"lvm"}, Code: 5, Stderr: "  WARNING: Logical volume a in use.\n  Something new."})
	if failure.KindOf(warned) != nil {
		t.Errorf("a warning is taken for %v", failure.KindOf(warned))
	}
}
