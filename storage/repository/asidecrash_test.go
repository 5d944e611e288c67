// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
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
	for _, kind := range []format.Kind{format.Image, format.Volume, format.Pin} {
		t.Run(string(kind), func(t *testing.T) {
			eachFormat(t, func(t *testing.T, name string) {
				w := newWorld(t, name)
				disk, base := w.diskOnBase()
				id := base
				switch kind {
				case format.Volume:
					id = w.volume("a", base)
				case format.Pin:
					_, err := w.on("h1").PrepareImage(t.Context(), "a", base, repository.Preparing{Holder: "vm"})
					must(t, err)
				}
				w.spoil("a", kind, id)
				args := []string{id}
				if err := w.process("h1", "aside", args, "DISKHOOK_FAILPOINT=repository.aside.kept=kill@1"); err == nil || !strings.Contains(err.Error(), "killed") {
					t.Fatalf("the failpoint did not fire: %v", err)
				}
				must(t, verbs["aside"](t.Context(), w.on("h2"), args))
				forget := w.byName("a", repository.Clean)
				must(t, w.on("h2").FixStorageRepository(t.Context(), "a", forget, repository.Options{Confirm: forget.Images[0]}))
				w.settled()
				w.holds("a", disk, w.path("now.raw"))
			})
		})
	}
}
