// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"diskhook/storage/repository"
)

func init() {
	verbs["aside"] = func(ctx context.Context, s *repository.Service, args []string) error {
		report, err := s.CheckStorageRepository(ctx, "a")
		if err != nil {
			return err
		}
		for _, fix := range report.Fixes {
			if fix.ByName && fix.Type == repository.Mend {
				return s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: args[0]})
			}
		}
		return errors.New("there is no such fix")
	}
}

// Between the document that is kept and the one that goes both are there.
func TestAnInterruptedPuttingAsideIsEnded(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		disk, base := w.diskOnBase()
		w.damage("a", base)
		args := []string{base}
		if err := w.process("h1", "aside", args, "DISKHOOK_FAILPOINT=repository.aside.kept=kill@1"); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the failpoint did not fire: %v", err)
		}
		must(t, verbs["aside"](t.Context(), w.on("h2"), args))
		must(t, w.on("h2").FixStorageRepository(t.Context(), "a", w.byName("a", repository.Clean), repository.Options{Confirm: base}))
		w.settled()
		w.holds("a", disk, w.path("now.raw"))
	})
}
