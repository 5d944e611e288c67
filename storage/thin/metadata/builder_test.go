// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/thin/metadata"
)

func TestBuilderRefuses(t *testing.T) {
	type step func(b *metadata.Builder) error
	dev := func(id uint32) step {
		return func(b *metadata.Builder) error { return b.Device(metadata.Device{ID: id}) }
	}
	run := func(origin, data, length uint64, time uint32) step {
		return func(b *metadata.Builder) error {
			return b.Map(metadata.Run{Origin: origin, Data: data, Length: length, Time: time})
		}
	}
	for _, c := range []struct {
		steps []step
		want  string
	}{
		{[]step{run(0, 0, 1, 0)}, "virtual block 0: of no thin device"},
		{[]step{dev(1 << 24)}, "thin device 16777216: ids are below 16777216"},
		{[]step{dev(3), dev(3)}, "thin device 3 comes after 3"},
		{[]step{dev(3), dev(1)}, "thin device 1 comes after 3"},
		{[]step{dev(3), run(0, 0, 0, 0)}, "thin device 3: 0 blocks from virtual block 0 on"},
		{[]step{dev(3), run(math.MaxUint64, 0, 2, 0)}, "thin device 3: 2 blocks from virtual block 18446744073709551615 on"},
		{[]step{dev(3), run(5, 0, 5, 0), run(9, 0, 1, 0)}, "thin device 3: virtual block 9 comes after others that follow it"},
		{[]step{dev(3), run(math.MaxUint64, 0, 1, 0), run(0, 0, 1, 0)}, "thin device 3: virtual block 0 comes after others that follow it"},
		{[]step{dev(3), run(0, 99, 2, 0)}, "thin device 3: virtual block 0: data blocks 99 and 1 that follow, where there are 100"},
		{[]step{dev(3), run(0, 0, 101, 0)}, "thin device 3: virtual block 0: data blocks 0 and 100 that follow, where there are 100"},
		{[]step{dev(3), run(0, math.MaxUint64, 1, 0)}, "thin device 3: virtual block 0: data blocks 18446744073709551615 and 0 that follow, where there are 100"},
		{[]step{dev(3), run(0, 0, 1, 1<<24)}, "thin device 3: virtual block 0: time 16777216 does not fit into 24 bits"},
	} {
		m := make(image, 64*metadata.BlockSize)
		b, err := metadata.NewBuilder(m, 64, metadata.Superblock{DataBlockSize: 128, DataBlocks: 100})
		must(t, err)
		for i, s := range c.steps {
			err = s(b)
			if i+1 < len(c.steps) {
				must(t, err)
			}
		}
		if !errors.Is(err, failure.Usage) || fmt.Sprint(err) != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestBuilderRefusesPools(t *testing.T) {
	for _, c := range []struct {
		blocks, dataBlocks uint64
		dataBlockSize      uint32
		kind               *failure.Kind
		want               string
	}{
		{64, 100, 127, failure.Usage, "data blocks of 127 sectors: from 128 to 2097152 in steps of 128 are possible"},
		{64, 100, 192, failure.Usage, "data blocks of 192 sectors: from 128 to 2097152 in steps of 128 are possible"},
		{64, 100, 2097280, failure.Usage, "data blocks of 2097280 sectors: from 128 to 2097152 in steps of 128 are possible"},
		{1 << 40, 1 << 40, 128, failure.Usage, "1099511627776 data blocks: at most 1099511627775 are possible"},
		{64, 1 << 39, 128, failure.NoSpace, "64 metadata blocks are not enough for 549755813888 data blocks"},
		{1 << 40, 1 << 39, 128, failure.NoSpace, "1099511627776 metadata blocks are not enough for 549755813888 data blocks"},
	} {
		_, err := metadata.NewBuilder(image{}, c.blocks, metadata.Superblock{DataBlockSize: c.dataBlockSize, DataBlocks: c.dataBlocks})
		if !errors.Is(err, c.kind) || fmt.Sprint(err) != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// However small the device is: the image fits and is right, or there is an
// error, and the device is no pool, not even an empty one.
func TestBuilderOnDevicesOfAnySize(t *testing.T) {
	whole := 0
	for blocks := 3; blocks < 20; blocks++ {
		m := bytes.Repeat([]byte{0xEE}, blocks*metadata.BlockSize)
		b, err := metadata.NewBuilder(image(m), uint64(blocks), small().Superblock)
		if err == nil {
			err = small().stream(b)
		}
		if err == nil {
			whole++
			equal(t, "the image", read(t, image(m)), small().used())
			if used := b.Superblock().MetadataUsed; used > uint64(blocks) {
				t.Errorf("%d blocks of %d are in use", used, blocks)
			}
			continue
		}
		if !errors.Is(err, failure.NoSpace) {
			t.Fatalf("%d blocks: %v", blocks, err)
		}
		if _, err := metadata.Open(image(m)); !errors.Is(err, metadata.ErrDamaged) {
			t.Errorf("%d blocks: unfinished, but Open says %v", blocks, err)
		}
		if !bytes.HasPrefix(m, []byte("diskhook: not all of this metadata has been written\n")) {
			t.Errorf("%d blocks: begins with %q, and the kernel would format zeros", blocks, m[:60])
		}
	}
	if whole != 3 {
		t.Errorf("it fitted on %d devices, want those of 17 blocks and more", whole)
	}
}

// calls records in which order an image is written and made durable.
type calls struct {
	image
	log []string
}

func (c *calls) WriteAt(b []byte, at int64) (int, error) {
	c.log = append(c.log, fmt.Sprintf("write %d blocks at %d", len(b)/metadata.BlockSize, at/metadata.BlockSize))
	return c.image.WriteAt(b, at)
}

func (c *calls) Flush() error {
	c.log = append(c.log, "flush")
	return nil
}

func TestSuperblockIsWrittenLast(t *testing.T) {
	c := &calls{image: make(image, 64*metadata.BlockSize)}
	b, err := metadata.NewBuilder(c, 64, small().Superblock)
	must(t, err)
	must(t, small().stream(b))
	want := "flush, write 1 blocks at 0, flush, write 16 blocks at 1, flush, write 1 blocks at 0, flush"
	if diff := cmp.Diff(want, strings.Join(c.log, ", ")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The kernel's layout, spelled out: what the first bytes of each kind of block
// are in an image of one device that maps one block.
func TestBytesOfAnImage(t *testing.T) {
	p := pool{Superblock: metadata.Superblock{Time: 3, TransactionID: 4, DataBlockSize: 128, DataBlocks: 16}}
	one := device{Device: metadata.Device{ID: 5, Transaction: 6, CreationTime: 1, SnapTime: 2}}
	one.add(metadata.Run{Origin: 7, Data: 9, Length: 1, Time: 3})
	p.devices = append(p.devices, one)
	m := inMemory(t, p, 64)
	for name, c := range map[string]struct {
		block    uint64
		at, size int
		want     string
	}{
		"magic, version, time":      {0, 32, 16, fmt.Sprintf("%x", le(27022010, 8, 2, 4, 3, 4))},
		"transaction, held root":    {0, 48, 16, fmt.Sprintf("%x", le(4, 8, 0, 8))},
		"data space map":            {0, 64, 32, fmt.Sprintf("%x", le(16, 8, 1, 8, 5, 8, 6, 8))},
		"metadata space map":        {0, 192, 32, fmt.Sprintf("%x", le(64, 8, 10, 8, 9, 8, 7, 8))},
		"roots and sizes":           {0, 320, 44, fmt.Sprintf("%x", le(3, 8, 2, 8, 128, 4, 8, 4, 64, 8, 0, 8, 0, 4))},
		"header of the mappings":    {1, 4, 28, fmt.Sprintf("%x", le(2, 4, 1, 8, 1, 4, 252, 4, 8, 4, 0, 4))},
		"the mapping":               {1, 32 + 8*252, 8, fmt.Sprintf("%x", le(9<<24|3, 8))},
		"details":                   {2, 32 + 8*126, 24, fmt.Sprintf("%x", le(1, 8, 6, 8, 1, 4, 2, 4))},
		"device's tree":             {3, 32 + 8*252, 8, fmt.Sprintf("%x", le(1, 8))},
		"bitmap of data":            {4, 8, 16, fmt.Sprintf("%x", le(4, 8, 0b1000<<16, 8))},
		"index of bitmaps":          {5, 32 + 8*168, 16, fmt.Sprintf("%x", le(4, 8, 16319, 4, 0, 4))},
		"bitmap of metadata":        {8, 16, 4, fmt.Sprintf("%x", le(0xAAAAA, 4))},
		"index of metadata bitmaps": {9, 8, 24, fmt.Sprintf("%x", le(9, 8, 8, 8, 16310, 4, 10, 4))},
	} {
		if diff := cmp.Diff(c.want, fmt.Sprintf("%x", m.block(c.block)[c.at:c.at+c.size])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// le is numbers, each followed by its size, in little endian.
func le(pairs ...uint64) []byte {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		for j := range pairs[i+1] {
			b = append(b, byte(pairs[i]>>(8*j)))
		}
	}
	return b
}
