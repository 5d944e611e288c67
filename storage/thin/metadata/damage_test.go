// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/thin/metadata"
)

// deep is a pool whose trees have several levels.
func deep() pool {
	p := pool{Superblock: metadata.Superblock{Time: 1, DataBlockSize: 128, DataBlocks: 40_000}}
	for id := range uint32(200) {
		d := device{Device: metadata.Device{ID: 2 * id, SnapTime: 1}}
		for i := range uint64(3) {
			d.add(metadata.Run{Origin: 5 * i, Data: i, Length: 1})
		}
		if id == 100 {
			d.add(metadata.Run{Origin: 1 << 20, Data: 100, Length: 3000, Time: 1})
		}
		p.devices = append(p.devices, d)
	}
	return p
}

var salts = []uint32{metadata.SuperblockSalt, metadata.NodeSalt, metadata.BitmapSalt, metadata.ListSalt}

// saltOf says which kind of block this is.
func saltOf(m image, number uint64) (uint32, bool) {
	for _, salt := range salts {
		b := slices.Clone(m.block(number))
		metadata.Seal(b, number, salt)
		if string(b) == string(m.block(number)) {
			return salt, true
		}
	}
	return 0, false
}

// edit changes one number somewhere and makes the checksum right again.
func edit(m image, block uint64, at int, size int, change func(uint64) uint64) {
	block %= uint64(len(m) / metadata.BlockSize)
	at %= metadata.BlockSize - 8
	salt, known := saltOf(m, block)
	if !known {
		return
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], change(binary.LittleEndian.Uint64(m.block(block)[at:])))
	m.change(block, salt, at, binary.LittleEndian.Uint64(b[:]), size)
}

// use does all that can be done with an image, and demands of what it gives
// that it is possible.
func use(t *testing.T, m image) {
	r, err := metadata.Open(m)
	if err != nil {
		mustBeDamage(t, err)
		return
	}
	report, err := metadata.Check(t.Context(), m, uint64(len(m)/metadata.BlockSize), metadata.CheckOptions{Times: true, Sharing: true})
	must(t, err)
	sound := !slices.ContainsFunc(report.Problems, func(p metadata.Problem) bool { return p.Kind == metadata.Damage })
	devices := 0
	var mappings uint64
	for d, err := range r.Devices() {
		if err != nil {
			mustBeDamage(t, err)
			if sound {
				t.Fatalf("Check found nothing, but: %v", err)
			}
			break
		}
		devices++
		next := uint64(0)
		for run, err := range r.Mappings(d.ID) {
			if err != nil {
				if mustBeDamage(t, err); sound {
					t.Fatalf("Check found nothing, but: %v", err)
				}
				break
			}
			if run.Origin < next || run.Length == 0 || run.Data+run.Length > r.Superblock().DataBlocks || run.Time > metadata.MaxTime {
				t.Fatalf("run %+v after %d", run, next)
			}
			next = run.Origin + run.Length
			mappings += run.Length
		}
	}
	if sound && (devices != report.Devices || mappings != report.Mappings) {
		t.Fatalf("Check counted %d devices and %d mappings, there are %d and %d", report.Devices, report.Mappings, devices, mappings)
	}
	if _, err := r.Snapshot(); r.Superblock().HeldRoot != 0 && err != nil {
		mustBeDamage(t, err)
	}
	if err := dump(t.Context(), m, io.Discard); err != nil {
		mustBeDamage(t, err)
	}
}

func mustBeDamage(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, metadata.ErrDamaged) {
		t.Fatalf("%v is not damage", err)
	}
}

// FuzzImage changes numbers in images whose checksums stay right.
func FuzzImage(f *testing.F) {
	bases := []image{inMemory(f, small(), 24), inMemory(f, deep(), 240)}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{0, 0, 80, 0, 255, 255, 255, 255, 255, 0, 0, 0, 8})
	f.Add(uint8(1), []byte{1, 0, 16, 0, 255, 0, 0, 0, 0, 0, 0, 0, 4})
	f.Fuzz(func(t *testing.T, base uint8, edits []byte) {
		m := slices.Clone(bases[int(base)%len(bases)])
		for ; len(edits) >= 13; edits = edits[13:] {
			le := binary.LittleEndian
			edit(m, uint64(le.Uint16(edits)), int(le.Uint16(edits[2:])), int(edits[12])%8+1,
				func(uint64) uint64 { return le.Uint64(edits[4:]) })
		}
		use(t, m)
	})
}

// FuzzXML gives anything to ReadXML. What it takes, it takes again from a dump.
func FuzzXML(f *testing.F) {
	f.Add(smallXML)
	f.Add(`<superblock uuid='' time='0' transaction='0' data_block_size='128' nr_data_blocks='9'><def name='a'><single_mapping origin_block='0' data_block='1' time='0'/></def><device dev_id='1' mapped_blocks='1' transaction='0' creation_time='0' snap_time='0'><ref name='a'/></device></superblock>`)
	f.Add("<?xml?><!-- > --><superblock/>")
	f.Fuzz(func(t *testing.T, text string) {
		m := make(image, 64*metadata.BlockSize)
		into := func(text string) error {
			return metadata.ReadXML(t.Context(), strings.NewReader(text), func(sb metadata.Superblock) (metadata.Sink, error) {
				return metadata.NewBuilder(m, 64, sb)
			})
		}
		if into(text) != nil {
			return
		}
		if report, err := metadata.Check(t.Context(), m, 64, metadata.CheckOptions{}); err != nil || len(report.Problems) > 0 {
			t.Fatalf("%v, %v", report.Problems, err)
		}
		var first, second strings.Builder
		must(t, dump(t.Context(), m, &first))
		must(t, into(first.String()))
		must(t, dump(t.Context(), m, &second))
		if first.String() != second.String() {
			t.Fatalf("%s\nbecame\n%s", first.String(), second.String())
		}
	})
}

// Whatever thin_check minds in an image with one wrong number, Check minds.
func TestCheckMindsWhatThinCheckMinds(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	wholes := []image{inMemory(t, small(), 17), inMemory(t, deep(), 230)}
	path := filepath.Join(t.TempDir(), "image")
	program, err := exec.LookPath("thin_check")
	if err != nil {
		program = "/usr/sbin/thin_check"
	}
	minded, rounds := 0, 60
	if testing.Short() {
		rounds = 20
	}
	for i := range rounds {
		m := slices.Clone(wholes[i%2])
		last := uint64(len(m) / metadata.BlockSize)
		block, at := last-1-r.Uint64N(17), []int{16, 32, 40, 64, 80, 88, 320, 328, 32 + 8*126, 32 + 8*168, 32 + 8*252, 32 + 8*r.IntN(500)}[r.IntN(12)]
		add := []uint64{1, 2, 1 << 24, 3, ^uint64(0)}[r.IntN(5)]
		edit(m, block, at, 8, func(v uint64) uint64 { return v + add })
		use(t, m)
		must(t, os.WriteFile(path, m, 0o600))
		out, err := exec.Command(program, path).CombinedOutput()
		var failed *exec.ExitError
		if err == nil {
			continue
		}
		if !errors.As(err, &failed) {
			t.Fatal(err)
		}
		minded++
		report, err := metadata.Check(t.Context(), m, last, metadata.CheckOptions{})
		must(t, err)
		if report.Problems == nil {
			t.Errorf("block %d, byte %d, %+d: Check finds nothing, thin_check says\n%s", block, at, int64(add), out)
		}
	}
	t.Logf("thin_check minded %d of %d changes", minded, rounds)
	if minded < rounds/10 {
		t.Errorf("thin_check minded only %d of %d changes", minded, rounds)
	}
}

// Bits that tip over by themselves are found by the checksum of their block.
func TestFlippedBitsAreFound(t *testing.T) {
	whole := inMemory(t, small(), 24)
	for block := range uint64(17) {
		m := slices.Clone(whole)
		m.block(block)[2000] ^= 4
		if len(problems(t, m, metadata.CheckOptions{})) == 0 {
			t.Errorf("block %d: a bit tipped over and Check found nothing", block)
		}
		use(t, m)
	}
	for _, size := range []int{0, 100, 4096, 5000, 3 * 4096, 16 * 4096} {
		use(t, whole[:size])
	}
}

// A loop in a tree, a tree without an end, a count that is absurd: an error,
// and soon.
func TestAbsurdImages(t *testing.T) {
	leaf := func(m image) uint64 { return m.u64(m.u64(0, mappings), mappingValues) }
	for name, c := range map[string]struct {
		change func(m image)
		want   string
	}{
		"a node that is its own child": {func(m image) {
			n := leaf(m)
			m.change(n, metadata.NodeSalt, 4, 1, 4)
			m.change(n, metadata.NodeSalt, 16, 1, 4)
			m.change(n, metadata.NodeSalt, mappingValues, n, 8)
		}, "block 5: more than 16 levels"},
		"a node with more entries than there is room": {func(m image) { m.change(leaf(m), metadata.NodeSalt, 16, 1<<32-1, 4) },
			"block 5: btree node with 4294967295 entries, room for 252"},
		"a node with more room than there is": {func(m image) { m.change(leaf(m), metadata.NodeSalt, 20, 1<<32-1, 4) },
			"block 5: btree node with 4 entries, room for 4294967295"},
		"values of another size": {func(m image) { m.change(leaf(m), metadata.NodeSalt, 24, 1<<31, 4) },
			"block 5: btree node with values of 2147483648 bytes, not 8"},
		"flags":             {func(m image) { m.change(leaf(m), metadata.NodeSalt, 4, 3, 4) }, "block 5: btree node with flags 0x3"},
		"root out of range": {func(m image) { m.change(0, metadata.SuperblockSalt, mappings, 1<<60, 8) }, "block 1152921504606846976 of 24 is referred to"},
		"root beyond the end": {func(m image) {
			m.change(0, metadata.SuperblockSalt, 192, 1000, 8)
			m.change(0, metadata.SuperblockSalt, mappings, 999, 8)
		}, "the image ends before block 999"},
	} {
		t.Run(name, func(t *testing.T) {
			m := inMemory(t, small(), 24)
			c.change(m)
			r, err := metadata.Open(m)
			must(t, err)
			for _, e := range r.Mappings(0) {
				err = e
			}
			if !errors.Is(err, metadata.ErrDamaged) || err.Error() != "damaged metadata: "+c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
			use(t, m)
		})
	}
	for name, c := range map[string]struct {
		at   int
		v    uint64
		want string
	}{
		"magic":           {32, 5, "block 0: no superblock of a thin pool"},
		"version":         {40, 1, "block 0: superblock of version 1"},
		"features":        {360, 1, "block 0: superblock with unknown features 0x1"},
		"metadata blocks": {192, 255*16320 + 1, "block 0: 4161601 metadata blocks"},
		"data blocks":     {64, 1 << 40, "block 0: 1099511627776 data blocks, whose bitmaps do not fit into 24"},
		"data block size": {336, 100 | 8<<32, "block 0: data blocks of 100 sectors"},
		"metadata sector": {340, 9, "block 0: metadata blocks of 9 sectors"},
	} {
		m := inMemory(t, small(), 24)
		m.change(0, metadata.SuperblockSalt, c.at, c.v, 8)
		if _, err := metadata.Open(m); !errors.Is(err, metadata.ErrDamaged) || err.Error() != "damaged metadata: "+c.want {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
}
