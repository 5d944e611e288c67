// SPDX-License-Identifier: Apache-2.0

package metadata

import "encoding/binary"

// indexEntry says where a bitmap block is and what is free in it. In the last
// bitmap the kernel counts the entries beyond the end of the map as free too,
// and has them at hand when the map grows.
type indexEntry struct {
	block       uint64
	free, first uint32
}

func (e indexEntry) encode(b []byte) {
	binary.LittleEndian.PutUint64(b, e.block)
	binary.LittleEndian.PutUint32(b[8:], e.free)
	binary.LittleEndian.PutUint32(b[12:], e.first)
}

func decodeIndexEntry(b []byte) indexEntry {
	return indexEntry{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])}
}

// bitmap writes one bitmap block.
func (o *output) bitmap(page *countPage) (indexEntry, error) {
	b, number, err := o.allocate()
	if err != nil {
		return indexEntry{}, err
	}
	free, first := page.encode(b)
	seal(b, number, bitmap)
	return indexEntry{number, uint32(free), uint32(first)}, nil
}

// dataMap writes the space map of the data device: bitmaps, the tree of their
// index, and the tree of counts beyond two.
func (o *output) dataMap(data *counts) (spaceMapRoot, error) {
	index, large := newTreeWriter(o, bitmapSize), newTreeWriter(o, refcountSize)
	root := spaceMapRoot{blocks: data.blocks}
	for i, page := range data.pages {
		entry, err := o.bitmap(page)
		if err != nil {
			return root, err
		}
		v, err := index.add(uint64(i))
		if err != nil {
			return root, err
		}
		entry.encode(v)
		root.allocated += entriesPerBitmap - uint64(entry.free)
		if page == nil {
			continue
		}
		for at, count := range page.large() {
			v, err := large.add(uint64(i)*entriesPerBitmap + uint64(at))
			if err != nil {
				return root, err
			}
			binary.LittleEndian.PutUint32(v, count)
		}
	}
	var err error
	if root.bitmaps, err = index.finish(); err != nil {
		return root, err
	}
	root.refcounts, err = large.finish()
	return root, err
}

// metadataMap writes the space map of the metadata device, which counts its own
// blocks as well. Each block is referred to once, so it has no large counts.
func (o *output) metadataMap() (spaceMapRoot, error) {
	root := spaceMapRoot{blocks: o.limit}
	var err error
	if root.refcounts, err = newTreeWriter(o, refcountSize).finish(); err != nil {
		return root, err
	}
	bitmaps := bitmapsFor(o.limit)
	end := o.next + bitmaps + 1
	if end > o.limit {
		o.next = o.limit
		_, _, err := o.allocate()
		return root, err
	}
	used := newCounts(o.limit)
	used.add(0, end)
	root.allocated = end
	for _, s := range o.given {
		used.remove(s.first, s.end-s.first)
		root.allocated -= s.end - s.first
	}
	list := make([]byte, BlockSize)
	for i, page := range used.pages {
		entry, err := o.bitmap(page)
		if err != nil {
			return root, err
		}
		entry.encode(list[indexAt(i):])
	}
	root.bitmaps, err = o.append(list, bitmapList)
	return root, err
}

// indexAt is where the metadata space map's index block has its i-th entry.
func indexAt(i int) int { return bitmapHeader + bitmapSize*i }
