// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

var other = uuid.MustParse("11111111-2222-4333-8444-555555555555")

func mapDisk(t *testing.T) (*layouttest.Disk, layout.Stamp) {
	t.Helper()
	disk := layouttest.New("/dev/vg/hosts", 64<<10)
	at, err := layout.CreateMap(disk, cluster, 1, mapOf(0))
	if err != nil {
		t.Fatal(err)
	}
	for state := range 2 {
		if at, err = layout.CommitMap(disk, cluster, at, 1, mapOf(state+1)); err != nil {
			t.Fatal(err)
		}
	}
	return disk, at
}

func readMap(d layout.Device) error { _, _, err := layout.ReadMap(d, cluster); return err }

// Everything that is refused, with kind, reason and way out, and that nothing is
// written then.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(t *testing.T, d *layouttest.Disk, at layout.Stamp) error
		reason error
		kind   *failure.Kind
		hint   string
	}{
		"empty": {func(t *testing.T, d *layouttest.Disk, _ layout.Stamp) error {
			d.Write(0, make([]byte, 8192))
			return readMap(d)
		}, layout.ErrEmpty, failure.Precondition, "diskhook thin init-cluster"},
		"foreign": {func(t *testing.T, d *layouttest.Disk, _ layout.Stamp) error {
			d.Write(0, []byte(strings.Repeat("LABELONE", 1024)))
			return readMap(d)
		}, layout.ErrForeign, failure.Precondition, "blkid"},
		"other cluster": {func(t *testing.T, d *layouttest.Disk, _ layout.Stamp) error {
			_, _, err := layout.ReadMap(d, other)
			return err
		}, layout.ErrOtherCluster, failure.Precondition, "the LUN of the other cluster"},
		"other kind": {func(t *testing.T, d *layouttest.Disk, _ layout.Stamp) error {
			_, err := layout.ReadLabel(d, cluster)
			return err
		}, layout.ErrForeign, failure.Precondition, "blkid"},
		"a later version": {func(t *testing.T, d *layouttest.Disk, _ layout.Stamp) error {
			restamp(t, d, 0, func(b []byte) { b[12] = 2 })
			return readMap(d)
		}, layout.ErrVersion, failure.Precondition, "install the diskhook"},
		"the newest header lost": {func(t *testing.T, d *layouttest.Disk, _ layout.Stamp) error {
			d.Rot(100)
			d.Rot(4096 - 512 + 100)
			return readMap(d)
		}, layout.ErrDamaged, failure.Problems, "diskhook thin check --rebuild-map"},
		"the newest contents changed": {func(t *testing.T, d *layouttest.Disk, _ layout.Stamp) error {
			d.Rot(contentsOf(t, d, 0))
			return readMap(d)
		}, layout.ErrDamaged, failure.Problems, "diskhook thin check --rebuild-map"},
		"stale epoch": {func(t *testing.T, d *layouttest.Disk, at layout.Stamp) error {
			_, err := layout.CommitMap(d, cluster, at, 0, mapOf(5))
			return err
		}, layout.ErrStale, failure.Conflict, "not the master any more"},
		"an epoch for a second time": {func(t *testing.T, d *layouttest.Disk, at layout.Stamp) error {
			_, _, err := layout.Claim(d, cluster, 1, other)
			return err
		}, layout.ErrStale, failure.Conflict, "not the master any more"},
		"moved": {func(t *testing.T, d *layouttest.Disk, at layout.Stamp) error {
			_, err := layout.CommitMap(d, cluster, layout.Stamp{Epoch: 1, Generation: at.Generation - 1}, 1, mapOf(5))
			return err
		}, layout.ErrMoved, failure.Temporary, "run the verb again"},
		"made twice": {func(t *testing.T, d *layouttest.Disk, at layout.Stamp) error {
			_, err := layout.CreateMap(d, cluster, 9, mapOf(0))
			return err
		}, layout.ErrExists, failure.Conflict, "diskhook thin status"},
		"no room": {func(t *testing.T, d *layouttest.Disk, at layout.Stamp) error {
			m := mapOf(0)
			for i := range uint32(800) {
				v := layout.VolumeRecord{Number: i + 1, UUID: uuid.New(), Name: "v" + strings.Repeat("x", 50) + uuid.NewString()[:8], Size: 512, State: layout.Offline, Generation: 1}
				m.Volumes, m.NextVolume = append(m.Volumes, v), i+2
			}
			_, err := layout.CommitMap(d, cluster, at, 1, m)
			return err
		}, failure.NoSpace, failure.NoSpace, "lvextend -L +"},
	} {
		t.Run(name, func(t *testing.T) {
			disk, at := mapDisk(t)
			before := disk.Writes
			err := c.do(t, disk, at)
			if !errors.Is(err, c.reason) || failure.KindOf(err) != c.kind || !strings.Contains(failure.HintOf(err), c.hint) ||
				!strings.HasPrefix(err.Error(), "/dev/vg/hosts: ") {
				t.Errorf("%v (%v); hint %q", err, failure.KindOf(err), failure.HintOf(err))
			}
			if disk.Writes != before {
				t.Errorf("%d writes", disk.Writes-before)
			}
		})
	}
}

// What a crash or an idle copy may look like is not refused.
func TestNotRefused(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, d *layouttest.Disk){
		"contents of the older copy": func(t *testing.T, d *layouttest.Disk) { d.Rot(contentsOf(t, d, 1)) },
		"one sector of a header":     func(t *testing.T, d *layouttest.Disk) { d.Rot(100) },
		"its other sector":           func(t *testing.T, d *layouttest.Disk) { d.Rot(4096 - 512) },
	} {
		t.Run(name, func(t *testing.T) {
			disk, at := mapDisk(t)
			spoil(t, disk)
			m, got, err := layout.ReadMap(disk, cluster)
			if err != nil || got != at {
				t.Fatalf("%v, %v", got, err)
			}
			if _, err := layout.CommitMap(disk, cluster, at, 1, m); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMapCopies(t *testing.T) {
	disk, at := mapDisk(t)
	disk.Rot(contentsOf(t, disk, 0))
	copies, err := layout.MapCopies(disk, cluster)
	if err != nil || len(copies) != 2 || copies[0].Stamp != at || !errors.Is(copies[0].Err, layout.ErrDamaged) ||
		copies[1].Err != nil || copies[1].Map.Hosts[0].Sequence != 1 {
		t.Errorf("%+v, %v", copies, err)
	}
}

// A predecessor that slept between its check and its writes does no harm after
// the new master's first act: it lands on the copy that does not count.
func TestClaimOutlivesASleeper(t *testing.T) {
	disk, at := mapDisk(t)
	sleeper := &sleepy{Device: disk}
	sleeper.before = func() {
		m, stamp, err := layout.Claim(disk, cluster, 2, other)
		if err != nil {
			t.Fatal(err)
		}
		if m.Hosts[0].Sequence != 2 || stamp.Generation != at.Generation+2 {
			t.Fatalf("%+v %v", m, stamp)
		}
	}
	_, err := layout.CommitMap(sleeper, cluster, at, 1, mapOf(30))
	if err != nil {
		t.Logf("the sleeper: %v", err)
	}
	m, got, err := layout.ReadMap(disk, cluster)
	if err != nil || got.Epoch != 2 || m.Hosts[0].Sequence != 2 {
		t.Fatalf("%v %v; state %d", got, err, m.Hosts[0].Sequence)
	}
	if _, err := layout.CommitMap(disk, cluster, at, 1, mapOf(31)); !errors.Is(err, layout.ErrStale) {
		t.Errorf("awake, it got %v", err)
	}
	if _, err := layout.CommitMap(disk, cluster, got, 2, mapOf(3)); err != nil {
		t.Error(err)
	}
}

// sleepy calls before before its first write.
type sleepy struct {
	layout.Device
	before func()
}

func (s *sleepy) WriteAt(p []byte, off int64) (int, error) {
	if s.before != nil {
		do := s.before
		s.before = nil
		do()
	}
	return s.Device.WriteAt(p, off)
}

// A map grows with the volume that it lies on.
func TestExtendedVolume(t *testing.T) {
	disk := layouttest.New("hosts", 16<<10)
	at, err := layout.CreateMap(disk, cluster, 1, mapOf(0))
	if err != nil {
		t.Fatal(err)
	}
	for state := 1; state < 60; state++ {
		m := mapOf(state)
		for i := range 5 * uint64(state) {
			m.Give(extent.Of(extent.Extent{Start: 200 + 2*i, Length: 1}), layout.Owner{Kind: layout.OfHost, Number: 1})
		}
		next, err := layout.CommitMap(disk, cluster, at, 1, m)
		if errors.Is(err, failure.NoSpace) {
			if _, still, err := layout.ReadMap(disk, cluster); err != nil || still != at {
				t.Fatalf("state %d: %v, %v", state, still, err)
			}
			disk.Grow(16 << 10)
			next, err = layout.CommitMap(disk, cluster, at, 1, m)
		}
		if err != nil {
			t.Fatalf("state %d in %d bytes: %v", state, disk.Size(), err)
		}
		at = next
	}
	if disk.Size() == 16<<10 {
		t.Error("it never grew")
	}
}

// shortened is a device as somebody knows it who opened it before it was extended.
type shortened struct {
	layout.Device
	size int64
}

func (d shortened) Size() int64 { return d.size }

// Who knows an older length of a volume is told to open it again: neither that it is
// damaged, nor what was committed before.
func TestExtendedSinceItWasOpened(t *testing.T) {
	disk, at := mapDisk(t)
	old := shortened{disk, disk.Size()}
	disk.Grow(1 << 20)
	short := 0
	for state := range 2 {
		var err error
		if at, err = layout.CommitMap(disk, cluster, at, 1, mapOf(state)); err != nil {
			t.Fatal(err)
		}
		m, stamp, err := layout.ReadMap(old, cluster)
		switch {
		case err == nil && stamp == at && m.Hosts[0].Sequence == uint64(state):
		case errors.Is(err, layout.ErrShort) && errors.Is(err, failure.Temporary) && !strings.Contains(failure.HintOf(err), "rebuild-map"):
			short++
		default:
			t.Errorf("%v: %v, %v, hint %q", at, stamp, err, failure.HintOf(err))
		}
	}
	if short == 0 {
		t.Error("nothing was written beyond the length that was known")
	}
}
