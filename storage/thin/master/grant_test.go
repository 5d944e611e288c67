// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"errors"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

func TestGrantUnasked(t *testing.T) {
	w := newWorld(t)
	number := w.join(1, "h1")
	owned := func(o layout.Owner) uint64 {
		t.Helper()
		var m layout.Map
		err := group.With(t.Context(), w.g, layout.MapName, false, func(dev group.Volume) (err error) {
			m, _, err = layout.ReadMap(dev, clusterID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return m.Owned(o).Blocks()
	}
	mine := layout.Owner{Kind: layout.OfHost, Number: number}
	if err := w.Grant(t.Context(), "h1", 5); err != nil || owned(mine) != 5 {
		t.Errorf("%v; it has %d", err, owned(mine))
	}
	left := owned(layout.Owner{Kind: layout.Free})
	if err := w.Grant(t.Context(), "h1", left+1); !errors.Is(err, failure.NoSpace) || owned(mine) != 5 {
		t.Errorf("more than there is: %v; it has %d", err, owned(mine))
	}
	if err := w.Grant(t.Context(), "h1", left); err != nil || owned(mine) != left+5 {
		t.Errorf("what is left: %v; it has %d", err, owned(mine))
	}
	if err := w.Grant(t.Context(), "h2", 1); !errors.Is(err, failure.NotFound) {
		t.Errorf("a host that is not there: %v", err)
	}
	if err := w.Fence(t.Context(), "h1", 0, "operator:h1"); err != nil {
		t.Fatal(err)
	}
	if err := w.Grant(t.Context(), "h1", 1); !errors.Is(err, failure.Precondition) {
		t.Errorf("a fenced host: %v", err)
	}
}
