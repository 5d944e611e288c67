// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

// A map that nothing can be read of is written anew, and again after any crash; what
// is not the cluster's stays.
func TestRestoreMap(t *testing.T) {
	spoiled := func() *layouttest.Disk {
		d, stamp := mapDisk(t)
		if _, err := layout.CommitMap(d, cluster, stamp, stamp.Epoch, mapOf(2)); err != nil {
			t.Fatal(err)
		}
		d.Rot(4096 + 20) // the newest header, in both of its sectors
		d.Rot(2*4096 - 512 + 20)
		return d
	}
	for power := 0; ; power++ {
		d := spoiled()
		d.Power = power
		_, err := layout.RestoreMap(d, cluster, 9, mapOf(3))
		if err == nil {
			if power < 4 {
				t.Fatalf("done after %d writes", power)
			}
			break
		}
		n := 0
		d.Boot(func() bool { n++; return n%2 == 0 }, 0)
		if _, err := layout.RestoreMap(d, cluster, 10, mapOf(3)); err != nil {
			t.Fatalf("after %d writes: %v", power, err)
		}
		m, stamp, err := layout.ReadMap(d, cluster)
		if diff := cmp.Diff(mapOf(3), m); err != nil || diff != "" || stamp != (layout.Stamp{Epoch: 10, Generation: 2}) {
			t.Fatalf("after %d writes: %v, %v\n%s", power, stamp, err, diff)
		}
		if _, err := layout.CommitMap(d, cluster, stamp, 10, mapOf(4)); err != nil {
			t.Error(err)
		}
	}
	if _, err := layout.RestoreMap(spoiled(), other, 9, mapOf(3)); !errors.Is(err, layout.ErrOtherCluster) {
		t.Error(err)
	}
	if _, err := layout.RestoreMap(spoiled(), cluster, 0, mapOf(3)); !errors.Is(err, layout.ErrStale) {
		t.Error(err)
	}
	foreign := layouttest.New("foreign", 1<<20)
	foreign.Write(0, []byte("a boot sector"))
	if err := layout.Unused(foreign, cluster); !errors.Is(err, layout.ErrForeign) {
		t.Error(err)
	}
}

func TestMappingCopies(t *testing.T) {
	d := layouttest.New("thin", 1<<20)
	if _, err := layout.MappingCopies(d, cluster, object); !errors.Is(err, layout.ErrEmpty) {
		t.Error(err)
	}
	if err := layout.CreateMapping(d, cluster, object, 1, mappingOf(1)); err != nil {
		t.Fatal(err)
	}
	if err := layout.WriteMapping(d, cluster, object, 1, 2, 1, mappingOf(2)); err != nil {
		t.Fatal(err)
	}
	want := []layout.MappingCopy{{Mapping: mappingOf(2), Stamp: layout.Stamp{Epoch: 1, Generation: 2}}, {Mapping: mappingOf(1), Stamp: layout.Stamp{Epoch: 1, Generation: 1}}}
	got, err := layout.MappingCopies(d, cluster, object)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	d.Rot(contentsOf(t, d, 1))
	if got, err = layout.MappingCopies(d, cluster, object); err != nil || len(got) != 1 || got[0].Stamp.Generation != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
