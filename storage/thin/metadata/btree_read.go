// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"errors"
	"math"
	"sort"
)

// maxDepth bounds the levels of a tree. Full nodes reach all of 2^40 blocks in
// six, nodes that are a third full in seven.
const maxDepth = 16

// readAhead is how many neighbouring nodes are read in one request. Leaves that
// were written in bulk lie side by side.
const readAhead = 256

// errStop ends a walk that nobody wants to go on.
var errStop = errors.New("stop")

// walker goes through a tree in the order of keys. Each node is read, checked
// against the range of keys that its parent gives it, and handed out. As the
// ranges of siblings do not overlap, a node fits in one place of each level
// only: a loop, or a node that is used twice, ends as damage at maxDepth at the
// latest.
type walker struct {
	src  *source
	size int // of a leaf's value
	leaf func(block uint64, n node) error

	// For Check, each may be nil. skip is asked before a node is entered, and
	// knows it already or not; left says what was found below a node that is
	// not a leaf; spoiled takes damage and may let the walk go on beside it.
	// thirds demands nodes as full as thin_check does.
	thirds  bool
	skip    func(block uint64, n node) (found below, known bool, err error)
	left    func(block uint64, found below)
	spoiled func(error) error

	levels []*window
}

// below is what a walk found below a node.
type below struct {
	entries uint64
	last    uint64 // greatest key, if there are entries
}

// window is a row of blocks that were read together.
type window struct {
	first uint64
	buf   []byte
	ahead []byte
}

// walk goes through the tree with this root.
func (w *walker) walk(root uint64) (below, error) {
	found, err := w.enter(w.window(0), root, 1, 0, math.MaxUint64, 0)
	return found, w.forgive(err)
}

func (w *walker) forgive(err error) error {
	if err != nil && w.spoiled != nil && errors.Is(err, ErrDamaged) {
		return w.spoiled(err)
	}
	return err
}

func (w *walker) window(depth int) *window {
	if depth == len(w.levels) {
		w.levels = append(w.levels, &window{ahead: aligned(1)})
	}
	return w.levels[depth]
}

// enter reads the node at block, and together with it the blocks after it that
// will be asked for next, then goes through what is below.
func (w *walker) enter(win *window, block uint64, together int, low, high uint64, depth int) (below, error) {
	n, err := win.node(w.src, block, together)
	if err != nil {
		return below{}, err
	}
	if err := n.validate(block, w.size, low, high); err != nil {
		return below{}, err
	}
	if w.thirds && depth > 0 && n.entries() < n.room()/3 {
		return below{}, damaged("block %d: btree node with %d entries, room for %d: not even a third", block, n.entries(), n.room())
	}
	if w.skip != nil {
		found, known, err := w.skip(block, n)
		if err != nil {
			return below{}, err
		}
		if known {
			if found.entries > 0 && found.last > high {
				return below{}, damaged("block %d: keys up to %d, where the node above has %d to %d", block, found.last, low, high)
			}
			return found, nil
		}
	}
	if !n.internal() {
		found := below{entries: uint64(n.entries())}
		if found.entries > 0 {
			found.last = n.last()
		}
		return found, w.leaf(block, n)
	}
	if depth == maxDepth {
		return below{}, damaged("block %d: more than %d levels", block, maxDepth)
	}
	return w.children(block, n, high, depth+1)
}

func (w *walker) children(block uint64, n node, high uint64, depth int) (below, error) {
	var all below
	win := w.window(depth)
	for i, entries := 0, n.entries(); i < entries; i++ {
		child, upTo := n.child(i), high
		if i+1 < entries {
			upTo = n.key(i+1) - 1
		}
		together := 1
		for i+together < entries && together < readAhead && n.child(i+together) == child+uint64(together) {
			together++
		}
		found, err := w.enter(win, child, together, n.key(i), upTo, depth)
		if err == nil && found.entries == 0 {
			err = damaged("block %d: empty btree node below block %d", child, block)
		}
		if err := w.forgive(err); err != nil {
			return all, err
		}
		if found.entries > 0 {
			all.entries, all.last = all.entries+found.entries, found.last
		}
	}
	if w.left != nil {
		w.left(block, all)
	}
	return all, nil
}

// node gives the node at block, which stays valid until the next call.
func (win *window) node(src *source, block uint64, together int) (node, error) {
	if held := uint64(len(win.buf) / BlockSize); block < win.first || block >= win.first+held {
		if err := win.fill(src, block, together); err != nil {
			return nil, err
		}
	}
	at := (block - win.first) * BlockSize
	n := node(win.buf[at : at+BlockSize])
	return n, verify(n, block, btreeNode)
}

func (win *window) fill(src *source, block uint64, together int) error {
	if len(win.ahead) < together*BlockSize {
		win.ahead = aligned(readAhead)
	}
	win.first, win.buf = block, win.ahead[:together*BlockSize]
	err := src.read(win.buf, block)
	if err != nil && together > 1 { // a neighbour may lie beyond the end
		win.buf = win.buf[:BlockSize]
		err = src.read(win.buf, block)
	}
	if err != nil {
		win.buf = nil
	}
	return err
}

// lookup finds the value of a key, or nil.
func (s *source) lookup(root, key uint64, size int) ([]byte, error) {
	low, high := uint64(0), uint64(math.MaxUint64)
	b := aligned(1)
	for block, depth := root, 0; depth <= maxDepth; depth++ {
		if err := s.block(b, block, btreeNode); err != nil {
			return nil, err
		}
		n := node(b)
		if err := n.validate(block, size, low, high); err != nil {
			return nil, err
		}
		i := sort.Search(n.entries(), func(i int) bool { return n.key(i) > key }) - 1
		switch {
		case i < 0:
			return nil, nil
		case n.internal():
			low, block = n.key(i), n.child(i)
			if i+1 < n.entries() {
				high = n.key(i+1) - 1
			}
		case n.key(i) == key:
			return n.value(i, size), nil
		default:
			return nil, nil
		}
	}
	return nil, damaged("block %d: more than %d levels", root, maxDepth)
}
