// SPDX-License-Identifier: Apache-2.0

package metadata

import "encoding/binary"

// treeWriter writes a tree from ascending keys, from the leaves up and as full
// as can be. It keeps two nodes of each level back: thin_check takes a node
// other than the root that is less than a third full for damage, so the last
// two share what is left.
type treeWriter struct {
	out        *output
	size       int // of a value
	room       int // entries of a node
	flags      uint32
	full, last filling
	parent     *treeWriter
}

// filling is a node that is not written yet.
type filling struct {
	b []byte
	n int
}

func newTreeWriter(out *output, valueSize int) *treeWriter {
	return newLevel(out, valueSize, flagLeaf)
}

func newLevel(out *output, valueSize int, flags uint32) *treeWriter {
	return &treeWriter{
		out: out, size: valueSize, room: maxEntries(valueSize), flags: flags,
		full: filling{b: make([]byte, BlockSize)}, last: filling{b: make([]byte, BlockSize)},
	}
}

// add gives the place of the value of a new key, greater than those before.
func (t *treeWriter) add(key uint64) ([]byte, error) {
	if err := t.turn(); err != nil {
		return nil, err
	}
	f := &t.last
	binary.LittleEndian.PutUint64(f.b[nodeHeader+8*f.n:], key)
	f.n++
	at := t.valueAt(f.n - 1)
	return f.b[at : at+t.size], nil
}

// addRun adds n keys from key on, whose values are numbers that grow by step.
func (t *treeWriter) addRun(key, value, n, step uint64) error {
	for n > 0 {
		if err := t.turn(); err != nil {
			return err
		}
		f := &t.last
		here := int(min(n, uint64(t.room-f.n)))
		keys, values := f.b[nodeHeader+8*f.n:][:8*here], f.b[t.valueAt(f.n):][:8*here]
		for i := 0; i < len(keys) && i < len(values); i += 8 {
			binary.LittleEndian.PutUint64(keys[i:], key)
			binary.LittleEndian.PutUint64(values[i:], value)
			key, value = key+1, value+step
		}
		f.n, n = f.n+here, n-uint64(here)
	}
	return nil
}

func (t *treeWriter) valueAt(i int) int { return nodeHeader + 8*t.room + t.size*i }

// turn makes room for one more entry.
func (t *treeWriter) turn() error {
	if t.last.n < t.room {
		return nil
	}
	if t.full.n > 0 {
		if err := t.pass(&t.full); err != nil {
			return err
		}
	}
	t.full, t.last = t.last, t.full
	return nil
}

// pass writes a node and tells the level above.
func (t *treeWriter) pass(f *filling) error {
	key := binary.LittleEndian.Uint64(f.b[nodeHeader:])
	block, err := t.write(f)
	if err != nil {
		return err
	}
	if t.parent == nil {
		t.parent = newLevel(t.out, childSize, flagInternal)
	}
	return t.parent.addRun(key, block, 1, 0)
}

func (t *treeWriter) write(f *filling) (uint64, error) {
	le := binary.LittleEndian
	le.PutUint32(f.b[atNodeFlags:], t.flags)
	le.PutUint32(f.b[atEntries:], uint32(f.n))
	le.PutUint32(f.b[atMaxEntries:], uint32(t.room))
	le.PutUint32(f.b[atValueSize:], uint32(t.size))
	clear(f.b[nodeHeader+8*f.n : t.valueAt(0)]) // of an earlier node
	clear(f.b[t.valueAt(f.n):])
	f.n = 0
	return t.out.append(f.b, btreeNode)
}

// finish writes what is left, and is ready for another tree. A tree without
// entries is an empty leaf.
func (t *treeWriter) finish() (root uint64, err error) {
	if t.full.n == 0 {
		return t.write(&t.last)
	}
	if t.last.n < t.room/2 {
		t.share()
	}
	if err := t.pass(&t.full); err != nil {
		return 0, err
	}
	if err := t.pass(&t.last); err != nil {
		return 0, err
	}
	return t.parent.finish()
}

// share moves entries from the end of full to the beginning of last, until both
// have as many.
func (t *treeWriter) share() {
	from, to := &t.full, &t.last
	n := (from.n - to.n) / 2
	copy(to.b[nodeHeader+8*n:], to.b[nodeHeader:nodeHeader+8*to.n])
	copy(to.b[nodeHeader:], from.b[nodeHeader+8*(from.n-n):nodeHeader+8*from.n])
	copy(to.b[t.valueAt(n):], to.b[t.valueAt(0):t.valueAt(to.n)])
	copy(to.b[t.valueAt(0):], from.b[t.valueAt(from.n-n):t.valueAt(from.n)])
	from.n, to.n = from.n-n, to.n+n
}
