// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"diskhook/storage/blockdev"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
)

// TestThinKernel has the kernel pass the table of behaviours that the one in
// memory passes in unit tests.
func TestThinKernel(t *testing.T) {
	host{install: "install", boots: []boot{{"behaviours", thinBehaviours, inOrder}}}.run(t)
}

func thinBehaviours(m machine) {
	m.run("modprobe", "dm-thin-pool")
	next, made := uint64(0), 0 // of the disk: sectors that are taken
	devmappertest.Behaviours(m.T, func(*testing.T) devmappertest.Lab {
		return devmappertest.Lab{
			Mapper: devmapper.Kernel{}, Write: restoreMetadata, Read: dumpMetadata, Elapse: time.Sleep,
			Disk: func(t *testing.T, bytes int64) string {
				t.Helper()
				name, sectors := fmt.Sprintf("disk%d", made), uint64(bytes/512)
				table := devmapper.Of(sectors, devmapper.Linear{Device: "/dev/vdb", Start: next})
				next, made = next+sectors, made+1
				makeDisk(t, name, bytes, table)
				return name
			},
		}
	})
}

// makeDisk makes a window of the disk that reads zeros.
func makeDisk(t *testing.T, name string, bytes int64, table devmapper.Table) {
	t.Helper()
	k := devmapper.Kernel{}
	info, err := k.Create(t.Context(), name, "DISKHOOK-E2E-"+name, table)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Remove(context.WithoutCancel(t.Context()), name); err != nil {
			t.Error(err)
		}
	})
	f, err := os.OpenFile(fmt.Sprintf("/dev/dm-%d", info.Minor), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := blockdev.ZeroRange(t.Context(), f, 0, bytes); err != nil {
		t.Fatal(err)
	}
}

// The metadata's XML, as thin_dump(8) and thin_restore(8) speak it.
type (
	superblockXML struct {
		XMLName     xml.Name    `xml:"superblock"`
		UUID        string      `xml:"uuid,attr"`
		Time        uint32      `xml:"time,attr"`
		Transaction uint64      `xml:"transaction,attr"`
		BlockSize   uint64      `xml:"data_block_size,attr"`
		Blocks      uint64      `xml:"nr_data_blocks,attr"`
		Devices     []deviceXML `xml:"device"`
	}
	deviceXML struct {
		ID          uint32      `xml:"dev_id,attr"`
		Mapped      int         `xml:"mapped_blocks,attr"`
		Transaction uint64      `xml:"transaction,attr"`
		Creation    uint32      `xml:"creation_time,attr"`
		Snap        uint32      `xml:"snap_time,attr"`
		Singles     []singleXML `xml:"single_mapping"`
		Ranges      []rangeXML  `xml:"range_mapping"`
	}
	singleXML struct {
		Origin uint64 `xml:"origin_block,attr"`
		Data   uint64 `xml:"data_block,attr"`
		Time   uint32 `xml:"time,attr"`
	}
	rangeXML struct {
		Origin uint64 `xml:"origin_begin,attr"`
		Data   uint64 `xml:"data_begin,attr"`
		Length uint64 `xml:"length,attr"`
		Time   uint32 `xml:"time,attr"`
	}
)

func restoreMetadata(device string, image devmappertest.Image) error {
	s := superblockXML{Time: image.Time, Transaction: image.Transaction, BlockSize: image.BlockSectors, Blocks: image.Blocks}
	for _, id := range slices.Sorted(maps.Keys(image.Devices)) {
		d := image.Devices[id]
		x := deviceXML{ID: id, Mapped: len(d.Mappings), Transaction: d.Transaction, Creation: d.CreationTime, Snap: d.SnapTime}
		for v, m := range d.Mappings {
			x.Singles = append(x.Singles, singleXML{v, m.Block, m.Time})
		}
		slices.SortFunc(x.Singles, func(a, b singleXML) int { return cmp.Compare(a.Origin, b.Origin) })
		s.Devices = append(s.Devices, x)
	}
	text, err := xml.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	const path = "/run/metadata.xml"
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	return ran(exec.Command("thin_restore", "-q", "-i", path, "-o", nodeOf(device)).CombinedOutput())
}

func dumpMetadata(device string, root uint64) (devmappertest.Image, error) {
	args := []string{nodeOf(device)}
	if root != 0 {
		args = []string{"-m", nodeOf(device)}
	}
	out, err := exec.Command("thin_dump", args...).CombinedOutput()
	if err := ran(out, err); err != nil {
		return devmappertest.Image{}, err
	}
	var s superblockXML
	if err := xml.Unmarshal(out, &s); err != nil {
		return devmappertest.Image{}, err
	}
	image := devmappertest.Image{Time: s.Time, Transaction: s.Transaction, BlockSectors: s.BlockSize, Blocks: s.Blocks, Devices: map[uint32]devmappertest.ThinImage{}}
	for _, x := range s.Devices {
		d := devmappertest.ThinImage{Transaction: x.Transaction, CreationTime: x.Creation, SnapTime: x.Snap, Mappings: map[uint64]devmappertest.Mapped{}}
		for _, one := range x.Singles {
			x.Ranges = append(x.Ranges, rangeXML{one.Origin, one.Data, 1, one.Time})
		}
		for _, r := range x.Ranges {
			for i := range r.Length {
				d.Mappings[r.Origin+i] = devmappertest.Mapped{Block: r.Data + i, Time: r.Time}
			}
		}
		image.Devices[x.ID] = d
	}
	return image, nil
}

func ran(out []byte, err error) error {
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// nodeOf is a device's node that the kernel makes, with no need of udev.
func nodeOf(name string) string {
	info, err := devmapper.Kernel{}.Info(context.Background(), name)
	if err != nil {
		return "/dev/no-device-" + name
	}
	return "/dev/dm-" + strconv.FormatUint(uint64(info.Minor), 10)
}
