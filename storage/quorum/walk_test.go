// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/nbd"
)

// memory is an image in memory, of which some blocks cannot be read.
type memory struct {
	data   []byte
	broken map[int64]bool // by offset of the block
	full   bool           // it takes no writes
	reads  int64
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	for at := range m.broken {
		if at < off+int64(len(p)) && at+blockBytes > off {
			return 0, &nbd.Error{Errno: syscall.EIO}
		}
	}
	m.reads += int64(len(p))
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.full {
		return 0, &nbd.Error{Errno: syscall.ENOSPC, Text: "writing to file failed"}
	}
	for at := off; at < off+int64(len(p)); at += blockBytes {
		delete(m.broken, at) // as a disk puts another sector in its place
	}
	return copy(m.data[off:], p), nil
}

func (m *memory) WriteZeroes(off, n int64) error {
	_, err := m.WriteAt(make([]byte, n), off)
	return err
}

// Next knows holes of 64 KiB.
func (m *memory) Next(off, n int64) (nbd.Extent, error) {
	end := min(off-off%65536+65536, off+n)
	return nbd.Extent{Len: end - off, Zero: isZero(m.data[off:end])}, nil
}

// images are n equal ones of size bytes with some data.
func images(n int, size int64) []*memory {
	var all []*memory
	for range n {
		m := &memory{data: make([]byte, size), broken: map[int64]bool{}}
		copy(m.data[size/2:], bytes.Repeat([]byte("content "), 1000))
		all = append(all, m)
	}
	return all
}

// A replica whose file system is full says so, and the way out.
func TestWalkOntoAFullFileSystem(t *testing.T) {
	all := images(3, 1<<20)
	all[2].full, all[2].data = true, make([]byte, 1<<20)
	w := newWalk(1<<20, 2)
	w.repair = true
	for i, m := range all {
		w.add(fmt.Sprintf("r%d", i+1), m, i < 2)
	}
	err := w.over(t.Context(), nil)
	const want = "replica r3: writing to file failed: no space left on device; free space there, then run the same command again"
	if failure.KindOf(err) != failure.NoSpace || failure.Line(err) != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func walkOver(t *testing.T, need int, repair bool, voters, others []*memory) *walk {
	t.Helper()
	w := newWalk(int64(len(voters[0].data)), need)
	w.repair = repair
	for i, m := range slices.Concat(voters, others) {
		w.add(fmt.Sprintf("r%d", i+1), m, i < len(voters))
	}
	if err := w.over(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return w
}

func differences(w *walk) map[string][]Range {
	found := map[string][]Range{}
	for _, s := range w.sides {
		if len(s.differs.list) > 0 {
			found[s.id] = s.differs.list
		}
	}
	return found
}

// A block that a disk cannot read is one that differs; a repair writes it, and
// only it.
func TestUnreadableBlocks(t *testing.T) {
	const size = 4 << 20
	all := images(3, size)
	good := bytes.Clone(all[0].data)
	all[1].broken[size/2+blockBytes] = true
	all[2].broken[size/2+8*blockBytes] = true
	want := map[string][]Range{"r2": {{size/2 + blockBytes, blockBytes}}, "r3": {{size/2 + 8*blockBytes, blockBytes}}}
	w := walkOver(t, 2, false, all, nil)
	if diff := cmp.Diff(want, differences(w)); diff != "" || len(w.none.list) > 0 {
		t.Errorf("%s%v", diff, w.none.list)
	}
	if w.read > 2<<20 {
		t.Errorf("%d bytes were read of each, though most of it is a hole", w.read)
	}
	walkOver(t, 2, true, all, nil)
	for i, m := range all {
		if !bytes.Equal(m.data, good) || len(m.broken) > 0 {
			t.Errorf("image %d: not repaired, %v", i, m.broken)
		}
	}
	// Where two cannot be read, one is no majority.
	all[0].broken[size/2], all[1].broken[size/2] = true, true
	w = walkOver(t, 2, true, all, nil)
	if diff := cmp.Diff([]Range{{size / 2, blockBytes}}, w.none.list); diff != "" || !all[0].broken[size/2] {
		t.Errorf("%s, %v", diff, all[0].broken)
	}
}

// Whatever is spoiled where: blocks with a majority are as the majority has
// them, others are as they were, and the ranges say which.
func TestWalkAgainstAModel(t *testing.T) {
	const blocks = 300 // more than one chunk
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(2, 4).Draw(rt, "voters")
		need := n/2 + 1
		all := images(n+1, blocks*blockBytes-512)
		for range rapid.IntRange(0, 12).Draw(rt, "spoiled") {
			m := all[rapid.IntRange(0, n).Draw(rt, "image")]
			at := rapid.IntRange(0, blocks-1).Draw(rt, "block") * blockBytes
			m.data[at] = byte(rapid.IntRange(0, 2).Draw(rt, "byte"))
		}
		before := make([][]byte, len(all))
		for i, m := range all {
			before[i] = bytes.Clone(m.data)
		}
		w := walkOver(t, need, true, all[:n], all[n:])
		none, differs := map[int64]bool{}, map[string]map[int64]bool{}
		mark := func(into map[int64]bool, list []Range) {
			for _, r := range list {
				for at := r.Offset; at < r.end(); at += blockBytes {
					into[at] = true
				}
			}
		}
		mark(none, w.none.list)
		for id, list := range differences(w) {
			differs[id] = map[int64]bool{}
			mark(differs[id], list)
		}
		for at := int64(0); at < int64(len(before[0])); at += blockBytes {
			end := min(at+blockBytes, int64(len(before[0])))
			var truth []byte
			for _, b := range before[:n] {
				agree := 0
				for _, other := range before[:n] {
					if bytes.Equal(b[at:end], other[at:end]) {
						agree++
					}
				}
				if agree >= need {
					truth = b[at:end]
				}
			}
			if none[at] != (truth == nil) {
				rt.Fatalf("block %d: no majority %v", at, none[at])
			}
			for i, m := range all {
				want, id := truth, fmt.Sprintf("r%d", i+1)
				if truth == nil {
					want = before[i][at:end]
				}
				if !bytes.Equal(m.data[at:end], want) {
					rt.Fatalf("block %d of %s is wrong", at, id)
				}
				if differs[id][at] != !bytes.Equal(before[i][at:end], want) {
					rt.Fatalf("block %d of %s: differs %v", at, id, differs[id][at])
				}
			}
		}
	})
}

// A list of ranges stays short, and never leaves anything out.
func TestRangesAreBounded(t *testing.T) {
	var r ranges
	const step = 3 * blockBytes
	for i := range int64(5 * maxRanges) {
		r.add(i*step, blockBytes)
	}
	if len(r.list) > maxRanges {
		t.Errorf("%d ranges", len(r.list))
	}
	covered, last := int64(0), int64(-1)
	for _, x := range r.list {
		if x.Offset <= last {
			t.Fatalf("%v is not after %d", x, last)
		}
		for ; covered*step+blockBytes <= x.end(); covered++ {
			if covered*step < x.Offset {
				t.Fatalf("%d is left out", covered*step)
			}
		}
		last = x.end()
	}
	if covered != 5*maxRanges {
		t.Errorf("%d are covered", covered)
	}
}
