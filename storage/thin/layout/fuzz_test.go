// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"testing"

	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

// FuzzRead changes bytes of good volumes at two places, seals them again and
// reads them: nothing panics, and what is read passes its own check.
func FuzzRead(f *testing.F) {
	var disks []*layouttest.Disk
	add := func(size int64, write func(d layout.Device) error) {
		d := layouttest.New("disk", size)
		if err := write(d); err != nil {
			f.Fatal(err)
		}
		disks = append(disks, d)
	}
	add(64<<10, func(d layout.Device) error { _, err := layout.CreateMap(d, cluster, 1, mapOf(5)); return err })
	add(64<<10, func(d layout.Device) error { return layout.CreateMapping(d, cluster, object, 1, mappingOf(5)) })
	add(4<<20, func(d layout.Device) error { _, err := layout.CreateHost(d, cluster, object, 1, hostOf(5)); return err })
	add(64<<10, func(d layout.Device) error { return layout.CreateLabel(d, cluster, 1, geometry) })
	for i := range disks {
		f.Add(uint8(i), uint16(64), []byte{0xff, 0xff}, uint16(3), []byte{0x80})
		f.Add(uint8(i), uint16(511), []byte{0xff, 0xff}, uint16(16), []byte{0xff, 0xff, 0xff, 0xff})
	}
	f.Fuzz(func(t *testing.T, which uint8, headerAt uint16, header []byte, at uint16, contents []byte) {
		from := disks[int(which)%len(disks)]
		d := layouttest.New("disk", from.Size())
		d.Write(0, bytesOf(t, from))
		b := bytesOf(t, d)
		end := contentsEnd(b)
		copy(b[min(8192+int(at), end):end], contents)
		copy(b[min(int(headerAt), 508):508], header)
		reseal(b)
		d.Write(0, b)
		if m, _, err := layout.ReadMap(d, cluster); err == nil && m.Check() != nil {
			t.Error(m.Check())
		}
		if m, err := layout.ReadMapping(d, cluster, object, 1); err == nil && m.Check() != nil {
			t.Error(m.Check())
		}
		_, _, _ = layout.ReadHost(d, cluster, object)
		_, _ = layout.ReadLabel(d, cluster)
		_, _ = layout.ReadRequest(d, cluster, object)
		_, _ = layout.MapCopies(d, cluster)
	})
}
