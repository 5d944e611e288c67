// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"encoding/binary"
	"iter"
	"math"
)

// A bitmap block has, after 16 bytes of header, two bits for each block: how
// often it is referred to, or 3 for "look into the tree of counts".
const (
	bitmapHeader     = 16
	entriesPerBitmap = (BlockSize - bitmapHeader) * 4
	wordsPerBitmap   = entriesPerBitmap / 32
	overflow         = 3
)

// counts says how often each of a number of blocks is referred to. It is held
// in pieces of one bitmap block each, and only where there are references.
type counts struct {
	blocks uint64
	pages  []*countPage
}

// countPage has two bits for each block, the lower one first, until a block is
// referred to a third time; from then on it has 32.
type countPage struct {
	small [wordsPerBitmap]uint64
	wide  []uint32
}

func newCounts(blocks uint64) counts {
	return counts{blocks, make([]*countPage, bitmapsFor(blocks))}
}

// bitmapsFor is how many bitmap blocks a space map of this size has.
func bitmapsFor(blocks uint64) uint64 {
	n := blocks / entriesPerBitmap
	if blocks%entriesPerBitmap > 0 {
		n++
	}
	return n
}

// add counts one more reference to each of n blocks, which must exist.
func (c *counts) add(first, n uint64) {
	for n > 0 {
		page, at := first/entriesPerBitmap, first%entriesPerBitmap
		here := min(n, entriesPerBitmap-at)
		if c.pages[page] == nil {
			c.pages[page] = new(countPage)
		}
		c.pages[page].add(int(at), int(here))
		first, n = first+here, n-here
	}
}

const (
	allOnes = 0x5555555555555555 // each of 32 blocks counts 1
	allTwos = 0xAAAAAAAAAAAAAAAA
)

func (p *countPage) add(at, n int) {
	for n > 0 && p.wide == nil {
		if word := &p.small[at/32]; at%32 == 0 && n >= 32 && (*word == 0 || *word == allOnes) {
			*word += allOnes
			at, n = at+32, n-32
			continue
		}
		shift := at % 32 * 2
		if p.small[at/32]>>shift&3 == overflow-1 {
			p.widen()
			break
		}
		p.small[at/32] += 1 << shift
		at, n = at+1, n-1
	}
	for ; n > 0; at, n = at+1, n-1 {
		if p.wide[at] < math.MaxUint32 {
			p.wide[at]++
		}
	}
}

// remove counts one reference less to each of n blocks, which must exist. It is false
// if one of them had none.
func (c *counts) remove(first, n uint64) bool {
	for ; n > 0; first, n = first+1, n-1 {
		p, at := c.pages[first/entriesPerBitmap], int(first%entriesPerBitmap)
		switch {
		case p == nil || p.get(at) == 0:
			return false
		case p.wide != nil:
			p.wide[at]--
		default:
			p.small[at/32] -= 1 << (at % 32 * 2)
		}
	}
	return true
}

func (p *countPage) widen() {
	p.wide = make([]uint32, entriesPerBitmap)
	for i := range p.wide {
		p.wide[i] = uint32(p.small[i/32] >> (i % 32 * 2) & 3)
	}
}

// get is the count of one block, which must exist.
func (c *counts) get(block uint64) uint32 {
	p := c.pages[block/entriesPerBitmap]
	if p == nil {
		return 0
	}
	return p.get(int(block % entriesPerBitmap))
}

func (p *countPage) get(at int) uint32 {
	if p.wide != nil {
		return p.wide[at]
	}
	return uint32(p.small[at/32] >> (at % 32 * 2) & 3)
}

// word is 32 counts from a multiple of 32 on, as two bits each.
func (p *countPage) word(i int) uint64 {
	if p.wide == nil {
		return p.small[i]
	}
	var w uint64
	for j, count := range p.wide[32*i : 32*i+32] {
		w |= uint64(min(count, overflow)) << (2 * j)
	}
	return w
}

// large lists the blocks of the page whose count two bits do not hold.
func (p *countPage) large() iter.Seq2[int, uint32] {
	return func(yield func(int, uint32) bool) {
		for i, count := range p.wide {
			if count >= overflow && !yield(i, count) {
				return
			}
		}
	}
}

// encode makes b a bitmap block, but for its seal, and says how many blocks are
// free and which is the first of them. A page that is nil is all free.
func (p *countPage) encode(b []byte) (free, first int) {
	clear(b)
	if p == nil {
		return entriesPerBitmap, 0
	}
	first = entriesPerBitmap
	for i := range wordsPerBitmap {
		w := p.word(i)
		binary.LittleEndian.PutUint64(b[bitmapHeader+8*i:], swapPairs(w))
		if w == allOnes || w == allTwos {
			continue
		}
		for j := range 32 {
			if w>>(2*j)&3 == 0 {
				free, first = free+1, min(first, 32*i+j)
			}
		}
	}
	return free, first
}

// swapPairs turns two-bit numbers, lower bit first, into the kernel's, higher
// bit first, and back.
func swapPairs(w uint64) uint64 { return w&allOnes<<1 | w>>1&allOnes }
