// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

func hostDisk(t interface{ Fatal(...any) }) *layouttest.Disk {
	disk := layouttest.New("/dev/vg/h.host", 4<<20)
	disk.Write(512<<10, bytes.Repeat([]byte{0xaa}, 64<<10)) // what an earlier owner left
	if _, err := layout.CreateHost(disk, cluster, object, 1, hostOf(0)); err != nil {
		t.Fatal(err)
	}
	return disk
}

func TestRequestAndReply(t *testing.T) {
	disk := hostDisk(t)
	if _, err := layout.ReadRequest(disk, cluster, object); !errors.Is(err, layout.ErrEmpty) {
		t.Fatalf("before the first request: %v", err)
	}
	asked := layout.Message{Sequence: 4, Epoch: 2, Code: 1, Body: []byte(`{"blocks":100}`)}
	if err := layout.WriteRequest(disk, cluster, object, asked); err != nil {
		t.Fatal(err)
	}
	got, err := layout.ReadRequest(disk, cluster, object)
	if diff := cmp.Diff(asked, got); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	if _, err := layout.ReadReply(disk, cluster, object, 4); !errors.Is(err, layout.ErrPending) || failure.KindOf(err) != failure.Temporary {
		t.Errorf("before the reply: %v", err)
	}
	answer := layout.Message{Sequence: 4, Epoch: 3, Body: make([]byte, layout.MaxBody)}
	if err := layout.WriteReply(disk, cluster, object, answer); err != nil {
		t.Fatal(err)
	}
	got, err = layout.ReadReply(disk, cluster, object, 4)
	if diff := cmp.Diff(answer, got); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	for name, c := range map[string]struct {
		err    error
		reason error
	}{
		"to the next request":  {second(layout.ReadReply(disk, cluster, object, 5)), layout.ErrPending},
		"to an older request":  {second(layout.ReadReply(disk, cluster, object, 3)), layout.ErrMoved},
		"of an older master":   {layout.WriteReply(disk, cluster, object, layout.Message{Sequence: 4, Epoch: 2}), layout.ErrStale},
		"older than the last":  {layout.WriteReply(disk, cluster, object, layout.Message{Sequence: 3, Epoch: 3}), layout.ErrMoved},
		"too long":             {layout.WriteReply(disk, cluster, object, layout.Message{Sequence: 9, Epoch: 3, Body: make([]byte, layout.MaxBody+1)}), layout.ErrInvalid},
		"another host's slot":  {second(layout.ReadReply(disk, cluster, other, 4)), layout.ErrOtherCluster},
		"another cluster's":    {second(layout.ReadRequest(disk, other, object)), layout.ErrOtherCluster},
		"over another cluster": {layout.WriteRequest(disk, other, object, asked), layout.ErrOtherCluster},
	} {
		if !errors.Is(c.err, c.reason) || failure.HintOf(c.err) == "" {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	if again, err := layout.ReadReply(disk, cluster, object, 4); err != nil || cmp.Diff(answer, again) != "" {
		t.Errorf("the reply changed: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A request that was torn is never read as anything else than the old one, the
// new one, or as damaged; and may always be written again.
func TestTornRequest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := hostDisk(t)
		last := layout.Message{}
		for sequence := uint64(1); sequence < 8; sequence++ {
			m := layout.Message{Sequence: sequence, Epoch: 1, Body: rapid.SliceOfN(rapid.Byte(), 1, layout.MaxBody).Draw(t, "body")}
			disk.Power = rapid.IntRange(-1, 1).Draw(t, "power")
			err := layout.WriteRequest(disk, cluster, object, m)
			disk.Boot(func() bool { return rapid.Bool().Draw(t, "arrived") }, rapid.IntRange(0, 9).Draw(t, "torn"))
			got, readErr := layout.ReadRequest(disk, cluster, object)
			switch {
			case readErr == nil && (cmp.Equal(got, m) || err != nil && cmp.Equal(got, last)):
			case err != nil && (errors.Is(readErr, layout.ErrDamaged) && failure.KindOf(readErr) == failure.Temporary ||
				sequence == 1 && errors.Is(readErr, layout.ErrEmpty)):
			default:
				t.Fatalf("sequence %d: wrote %v, read %d, %v", sequence, err, got.Sequence, readErr)
			}
			if err := layout.WriteRequest(disk, cluster, object, m); err != nil {
				t.Fatalf("once more: %v", err)
			}
			last = m
		}
	})
}
