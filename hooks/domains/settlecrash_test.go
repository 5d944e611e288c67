// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package domains

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// passedToRaw are the failpoints that going over to a raw copy passes; of a domain
// that does not run where the emulator dies first.
func passedToRaw(t *testing.T, least int, first func(*emulator)) []string {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	e := defined(t)
	first(e)
	t.Setenv("DISKHOOK_FAILPOINT_LOG", log)
	if err := e.toRaw(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DISKHOOK_FAILPOINT_LOG", "")
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(b))
	slices.Sort(points)
	if points = slices.Compact(points); len(points) < least {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	return points
}

func pivotPoints(t *testing.T) []string {
	t.Helper()
	return passedToRaw(t, 14, func(*emulator) {})
}

// interrupted ends the change at a point, as if nobody was there any more.
func interrupted(t *testing.T, e *emulator, point string) {
	t.Helper()
	t.Setenv("DISKHOOK_FAILPOINT", point+"=error")
	if err := e.toRaw(); err == nil {
		t.Fatal("the failpoint did not fire")
	}
	t.Setenv("DISKHOOK_FAILPOINT", "")
	e.polls = 3
}

// Whatever point it was interrupted at, the next call goes on while the guest
// runs, or is suspended.
func TestSettleRawGoesOnAtEveryPoint(t *testing.T) {
	for _, point := range pivotPoints(t) {
		t.Run(point, func(t *testing.T) {
			e := defined(t)
			interrupted(t, e, point)
			if err := e.toRaw(); err != nil && failure.KindOf(err) != failure.NotFound {
				t.Fatal(err)
			}
			e.isRaw()
			e.finds("raw", true)
		})
	}
}

// Where both die, the disk is what the receipt says, with all that the guest
// wrote. A start that the definition does not fit to names what puts it right.
func TestSettleRawDiesWithTheEmulatorAtEveryPoint(t *testing.T) {
	for _, point := range pivotPoints(t) {
		t.Run(point, func(t *testing.T) {
			e := defined(t)
			interrupted(t, e, point)
			wrote := slices.Contains(e.answered, VerbSuspend)
			e.dies()
			format, err := e.starts()
			if err != nil {
				if !strings.Contains(failure.HintOf(err), "diskhook local settle --raw vm vda") {
					t.Fatalf("no way out of %v", err)
				}
				if err := e.toRaw(); err != nil && failure.KindOf(err) != failure.Precondition {
					t.Fatal(err)
				}
				if format, err = e.starts(); err != nil {
					t.Fatal(err)
				}
			}
			all, err := localdisk.Receipts(e.s.Host.Layout, testUUID)
			if err != nil || all[0].Format() != format {
				t.Fatalf("opened as %s: %+v, %v", format, all, err)
			}
			e.finds(format, wrote)
			if err := e.toRaw(); err != nil && failure.KindOf(err) != failure.NotFound {
				t.Fatal(err)
			}
			e.isRaw()
			e.finds("raw", true)
		})
	}
}

// The same for a domain that does not run. Until the mark it starts on its
// overlay; from then on a start is refused with the command, and nothing else is
// needed than that command, or the next settling of all.
func TestSettleRawOfAStoppedDomainGoesOnAtEveryPoint(t *testing.T) {
	for _, point := range passedToRaw(t, 8, (*emulator).dies) {
		t.Run(point, func(t *testing.T) {
			e := defined(t)
			e.dies()
			interrupted(t, e, point)
			marked := slices.Contains([]string{"pivot.marked", "pivot.redefined", "pivot.resumed", "pivot.cleaned"}, point)
			format, err := e.starts()
			switch {
			case point == "pivot.marked":
				if err == nil || !strings.Contains(failure.HintOf(err), "diskhook local settle --raw vm vda") {
					t.Fatalf("started as %s, %v", format, err)
				}
			case err != nil || (format == "raw") != marked:
				t.Fatalf("started as %s, %v", format, err)
			default:
				e.finds(format, false)
				e.dies()
			}
			if err := e.toRaw(); err != nil && failure.KindOf(err) != failure.NotFound {
				t.Fatal(err)
			}
			e.isRaw()
			if format, err := e.starts(); err != nil || format != "raw" {
				t.Fatalf("started as %s, %v", format, err)
			}
			e.finds("raw", false)
		})
	}
}

// Interrupted between pivot and mark, and resumed by somebody, the guest writes
// to the raw copy alone. It is not thrown away, whatever became of the domain.
func TestSettleRawKeepsARawCopyThatTheGuestWroteTo(t *testing.T) {
	wrote := func(t *testing.T) *emulator {
		e := defined(t)
		t.Setenv("DISKHOOK_FAILPOINT", "pivot.pivoted=error")
		if err := e.toRaw(); err == nil {
			t.Fatal("the failpoint did not fire")
		}
		t.Setenv("DISKHOOK_FAILPOINT", "")
		tool(t, "qemu-io", "-f", "raw", "-c", "write -q -P 0x79 0 64k", "-c", "flush", e.raw)
		return e
	}
	has := func(e *emulator, file string) {
		e.t.Helper()
		b, err := os.ReadFile(file)
		if err != nil || len(b) < 2<<20 || b[0] != 0x79 || b[1<<20] != 0x77 || b[3<<19] != 0x78 {
			e.t.Errorf("%s is not what the guest wrote last (%v)", file, err)
		}
	}
	t.Run("shut off", func(t *testing.T) {
		e := wrote(t)
		e.dies()
		to := filepath.Join(t.TempDir(), "export")
		err := e.s.Local.Export(t.Context(), testUUID, "vda", localdisk.ExportOptions{To: to, Format: "raw"})
		if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "settle --raw vm vda") {
			t.Errorf("exported the older one: %v", err)
		}
		if err := e.toRaw(); err != nil {
			t.Fatal(err)
		}
		e.isRaw()
		if format, err := e.starts(); err != nil || format != "raw" {
			t.Fatalf("%s, %v", format, err)
		}
		has(e, localdisk.StablePath(e.s.Host.Layout, testUUID, "vda"))
	})
	t.Run("on its overlay again", func(t *testing.T) {
		e := wrote(t)
		e.source, e.state = "", "running"
		err := e.toRaw()
		if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.Line(err), "virsh edit") {
			t.Errorf("%v", err)
		}
		has(e, e.raw)
	})
	for name, answer := range map[string]error{
		"undefined":    failure.New(failure.NotFound, "no such domain"),
		"no answer":    failure.New(failure.Temporary, "no answer"),
		"not readable": errors.New("not readable"),
	} {
		t.Run(name, func(t *testing.T) {
			e := wrote(t)
			e.dies()
			e.on = func(verb string) error {
				if verb == VerbXML || verb == VerbFacts && failure.KindOf(answer) == failure.NotFound {
					return answer
				}
				return nil
			}
			if err := e.toRaw(); err == nil {
				t.Error("no error")
			}
			has(e, e.raw)
			e.on = nil
			if err := e.toRaw(); err != nil {
				t.Fatal(err)
			}
			e.isRaw()
		})
	}
}
