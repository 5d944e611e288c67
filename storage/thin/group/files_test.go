// SPDX-License-Identifier: Apache-2.0

package group

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

func TestFiles(t *testing.T) {
	ctx := t.Context()
	g := Files{Dir: t.TempDir(), Capacity: 10 * page}
	for range 2 {
		if err := g.Create(ctx, thin, 2*page-1); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Create(ctx, layout.MapName, 3*page); err != nil {
		t.Fatal(err)
	}
	if err := g.Extend(ctx, thin, 4*page); err != nil {
		t.Fatal(err)
	}
	if err := g.Extend(ctx, thin, page); err != nil {
		t.Fatal(err)
	}
	list, err := g.List(ctx)
	if diff := cmp.Diff([]LV{{Name: thin, Bytes: 4 * page}, {Name: layout.MapName, Bytes: 3 * page}}, list); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if free, err := g.Free(ctx); err != nil || free != 3*page {
		t.Error(free, err)
	}
	for name, err := range map[string]error{
		"create": g.Create(ctx, layout.DataName, 3*page+1),
		"extend": g.Extend(ctx, thin, 8*page),
	} {
		if !errors.Is(err, failure.NoSpace) {
			t.Errorf("%s: %v", name, err)
		}
	}
	v, err := g.Open(ctx, thin, true)
	if err != nil || v.Size() != 4*page || v.Name() != g.Path(thin) {
		t.Fatal(v, err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := g.Remove(ctx, thin); err != nil {
			t.Error(err)
		}
	}
	if _, err := g.Open(ctx, thin, true); !errors.Is(err, failure.NotFound) {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"create": g.Create(ctx, "../x", 1), "extend": g.Extend(ctx, "x", 1), "remove": g.Remove(ctx, "/etc/passwd"), "deactivate": g.Deactivate(ctx, ""),
	} {
		if !errors.Is(err, failure.Usage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
