// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"encoding/binary"
	"errors"
	"iter"
	"math/bits"
)

// dataMap compares the data device's space map with the references counted.
func (c *checker) dataMap() error {
	m := c.comparison("data", &c.data, c.r.at.data)
	m.exact = true
	defer m.stop()
	_, err := c.walk(c.r.at.data.bitmaps, bitmapSize, func(block uint64, n node) error {
		for i := range n.entries() {
			if n.key(i) != m.next || m.next >= uint64(len(c.data.pages)) {
				return damaged("block %d: data space map: bitmap %d of %d follows %d others", block, n.key(i), len(c.data.pages), m.next)
			}
			entry := decodeIndexEntry(n.value(i, bitmapSize))
			if entry.block < c.r.src.blocks {
				c.nodes.add(entry.block, 1)
			}
			if err := m.bitmap(entry); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.end()
}

// metadataMap compares the metadata device's space map, whose own blocks are
// counted first, with the references counted.
func (c *checker) metadataMap() error {
	at := c.r.at.metadataMaps
	list := aligned(1)
	if err := c.r.src.block(list, at.bitmaps, bitmapList); err != nil {
		return c.forgive(err)
	}
	c.nodes.add(at.bitmaps, 1)
	for i := range c.nodes.pages {
		if entry := decodeIndexEntry(list[indexAt(i):]); entry.block < c.r.src.blocks {
			c.nodes.add(entry.block, 1)
		}
	}
	if _, err := c.walk(at.refcounts, refcountSize, func(uint64, node) error { return nil }); err != nil {
		return err
	}
	m := c.comparison("metadata", &c.nodes, at)
	m.counted = true
	defer m.stop()
	for i := range c.nodes.pages {
		if err := c.forgive(m.bitmap(decodeIndexEntry(list[indexAt(i):]))); err != nil {
			return err
		}
	}
	return m.end()
}

// comparison goes through a space map's bitmaps in order, and at the same pace
// through its tree of large counts.
type comparison struct {
	c    *checker
	what string
	want *counts
	said spaceMapRoot
	buf  []byte
	next uint64 // bitmap
	used uint64 // blocks in use so far, as the bitmaps say

	// Its sums have to be right as well. Those of the metadata are hints:
	// thin_restore 0.9.0 leaves out the last block that it takes.
	exact bool

	counted bool // the nodes of the tree of large counts have been
	large   func() (largeCount, error, bool)
	stop    func()
	ahead   *largeCount

	differ difference
	empty  countPage // of blocks that nobody refers to
}

type largeCount struct {
	block uint64
	count uint32
}

// difference is a row of blocks whose counts differ in the same way.
type difference struct {
	first, n   uint64
	want, said uint32
}

func (c *checker) comparison(what string, want *counts, said spaceMapRoot) *comparison {
	m := &comparison{c: c, what: what, want: want, said: said, buf: aligned(1)}
	m.large, m.stop = iter.Pull2(m.largeCounts)
	return m
}

// largeCounts lists the tree of large counts.
func (m *comparison) largeCounts(yield func(largeCount, error) bool) {
	leaf := func(_ uint64, n node) error {
		for i := range n.entries() {
			if !yield(largeCount{n.key(i), binary.LittleEndian.Uint32(n.value(i, refcountSize))}, nil) {
				return errStop
			}
		}
		return nil
	}
	var err error
	if m.counted {
		w := walker{src: &m.c.r.src, size: refcountSize, leaf: leaf, spoiled: func(error) error { return nil }} // said before
		_, err = w.walk(m.said.refcounts)
	} else {
		_, err = m.c.walk(m.said.refcounts, refcountSize, leaf)
	}
	if err != nil && !errors.Is(err, errStop) {
		yield(largeCount{}, err)
	}
}

// bitmap compares the next bitmap block.
func (m *comparison) bitmap(entry indexEntry) error {
	i := m.next
	m.next++
	b := m.buf
	if err := m.c.r.src.block(b, entry.block, bitmap); err != nil {
		return err
	}
	page := m.want.pages[i]
	if page == nil {
		page = &m.empty
	}
	first := i * entriesPerBitmap
	entries := int(min(entriesPerBitmap, m.want.blocks-first))
	used := 0
	for at := 0; at < entries; at += 32 {
		said := swapPairs(binary.LittleEndian.Uint64(b[bitmapHeader+at/4:]))
		if rest := entries - at; rest < 32 {
			said &= 1<<(2*rest) - 1
		}
		used += bits.OnesCount64((said | said>>1) & allOnes)
		if want := page.word(at / 32); said == want && said&(said>>1)&allOnes == 0 {
			continue
		}
		for j := range min(32, entries-at) {
			if err := m.block(first+uint64(at+j), page.get(at+j), uint32(said>>(2*j)&3)); err != nil {
				return err
			}
		}
	}
	m.used += uint64(used)
	if free := int(entry.free); m.exact && free != entries-used && free != entriesPerBitmap-used {
		m.c.report(Damage, "%s space map: bitmap %d: %d blocks are free, where the index says %d", m.what, i, entries-used, free)
	}
	return nil
}

// block compares one count.
func (m *comparison) block(block uint64, want, said uint32) error {
	if said == overflow {
		var err error
		if said, err = m.find(block); err != nil {
			return err
		}
	}
	if want == said {
		return nil
	}
	d := &m.differ
	if d.n > 0 && d.first+d.n == block && d.want == want && d.said == said {
		d.n++
		return nil
	}
	m.tell()
	*d = difference{block, 1, want, said}
	return nil
}

// find gives the large count of a block, and reports those of blocks before it,
// which no bitmap refers to.
func (m *comparison) find(block uint64) (uint32, error) {
	for {
		if err := m.look(); err != nil {
			return 0, err
		}
		if m.ahead == nil || m.ahead.block > block {
			if !m.c.torn {
				m.c.report(Damage, "%s space map: block %d: its count is missing", m.what, block)
			}
			return 0, nil
		}
		found := *m.ahead
		m.ahead = nil
		if found.block == block {
			return found.count, nil
		}
		m.stray(found)
	}
}

// look takes the next large count from the tree, unless one is at hand or none
// is left.
func (m *comparison) look() error {
	if m.ahead != nil {
		return nil
	}
	l, err, more := m.large()
	if more && err == nil {
		m.ahead = &l
	}
	return err
}

func (m *comparison) stray(l largeCount) {
	m.c.report(Damage, "%s space map: block %d: a count of %d that its bitmap does not refer to", m.what, l.block, l.count)
}

// tell reports the differences held back.
func (m *comparison) tell() {
	d := m.differ
	m.differ = difference{}
	kind := Undercount
	if d.said > d.want {
		kind = Leak
	}
	if d.n == 0 || kind == Leak && m.c.torn { // for want of references that were not found
		return
	}
	m.c.report(kind, "%s blocks %d to %d: in use %d times, where the space map says %d", m.what, d.first, d.first+d.n-1, d.want, d.said)
}

// end looks at what has to be the case after the last bitmap.
func (m *comparison) end() error {
	m.tell()
	for err := m.look(); err != nil || m.ahead != nil; err = m.look() {
		if err != nil {
			return err
		}
		m.stray(*m.ahead)
		m.ahead = nil
	}
	switch {
	case m.c.torn: // some bitmap may not have been looked at
	case m.next != uint64(len(m.want.pages)):
		m.c.report(Damage, "%s space map: %d bitmaps of %d", m.what, m.next, len(m.want.pages))
	case m.exact && m.used != m.said.allocated:
		m.c.report(Damage, "%s space map: %d blocks are in use, where the superblock says %d", m.what, m.used, m.said.allocated)
	}
	return nil
}
