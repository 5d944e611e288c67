// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/thin/group/grouptest"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

// A cluster that nobody said the length of has room for hosts and volumes beside the
// data, in a small group too.
func TestSmallGroupHasRoomForHosts(t *testing.T) {
	g := grouptest.New(640 << 20)
	w := &world{nominee(t, g), t, g, map[uuid.UUID]uint64{}}
	if _, err := w.Init(t.Context(), master.Shape{}); err != nil {
		t.Fatal(err)
	}
	for n := byte(1); n <= 4; n++ {
		_, err := w.Join(t.Context(), master.Newcomer{UUID: id(n), Name: fmt.Sprint("h", n)})
		w.must(err)
	}
	for n := byte(20); n < 36; n++ {
		w.done(1, request.Create{ID: id(n), Name: fmt.Sprint("v", n), Size: 1 << 30})
	}
}

// What is chosen leaves a tenth of a large group, and never more than half of any.
func TestFill(t *testing.T) {
	for _, c := range []struct{ free, least, most uint64 }{
		{1 << 44, 1 << 44 / 10 * 9, 1<<44/10*9 + 10},
		{1 << 37, 1 << 37 / 10 * 9, 1<<37/10*9 + 10},
		{640 << 20, 400 << 20, 576<<20 - 1},
		{100 << 20, 50 << 20, 50 << 20},
		{0, 0, 0},
	} {
		m := nominee(t, grouptest.New(c.free))
		shape, err := m.Fill(t.Context(), master.Shape{})
		if err != nil || shape.Bytes < c.least || shape.Bytes > c.most {
			t.Errorf("%d free: %d, %v", c.free, shape.Bytes, err)
		}
		given := master.Shape{Bytes: 5 << 20, BlockSize: layout.MinBlockSize}
		if shape, err = m.Fill(t.Context(), given); shape != given || err != nil {
			t.Errorf("%+v, %v", shape, err)
		}
	}
}
