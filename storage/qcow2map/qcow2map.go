// SPDX-License-Identifier: Apache-2.0

// Package qcow2map says where in a qcow2 image the clusters of its virtual
// disk lie, so that a copy can read them straight from the file.
//
// It reads the two levels of tables and nothing else: no data, no refcounts,
// no backing file. Whoever asks in ascending order costs one read per L2
// table. What cannot be read as plain clusters (compressed or encrypted ones,
// subclusters, an external data file, unknown features) is ErrUnsupported,
// and qemu-img has to do the reading. A table that contradicts itself is
// ErrCorrupt; QEMU fails with an I/O error there.
//
// Images are hostile. Tables are bounded before they are allocated, and an
// offset that leads beyond the end of the file reads as zeros, as in QEMU.
// Look at the header with package imagecheck before, which also knows what
// the image claims about other files.
package qcow2map

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"diskhook/storage/failure"
)

var (
	// ErrUnsupported says that the image needs QEMU to be read.
	ErrUnsupported = errors.New("not in plain clusters")

	// ErrCorrupt says that its tables contradict themselves. It is a
	// failure.Precondition.
	ErrCorrupt = failure.Wrap(failure.Precondition, errors.New("corrupt qcow2 tables"))
)

// Kind is what an extent consists of.
type Kind int

// The kinds of extents.
const (
	Unallocated Kind = iota // the backing file shows through, or zeros
	Zero                    // reads as zeros and hides the backing file
	Data                    // lies in the file
)

// Extent is a piece of the virtual disk of one kind. All sizes are bytes.
type Extent struct {
	Off, Len int64
	Kind     Kind
	At       int64 // of Data: offset in the file
}

// Map is the cluster map of one image. It is not safe for concurrent use.
type Map struct {
	r           io.ReaderAt
	clusterBits uint
	size        int64
	v2          bool
	l1          []uint64
	l1At        int64

	table   int64 // index into l1 of the table in l2; -1 is none
	l2      []uint64
	scratch []byte
}

// QEMU's bounds, and the parts of a table entry (docs/interop/qcow2.rst):
// bits 9 to 55 are an offset, bit 62 means compressed, bit 63 that the
// refcount is one, bit 0 of an L2 entry that the cluster reads as zeros.
const (
	maxL1Bytes     = 32 << 20
	offsetMask     = 1<<56 - 1<<9
	flagCompressed = 1 << 62
	flagZero       = 1

	featureDirty       = 1 << 0 // refcounts are stale, which no reader minds
	featureCompression = 1 << 3 // of clusters that are compressed
)

// headerSize is more than any header's fixed part.
const headerSize = 512

// Open reads header and L1 table of r.
func Open(r io.ReaderAt) (*Map, error) {
	header := make([]byte, headerSize)
	if err := readFull(r, header, 0); err != nil {
		return nil, err
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(header[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(header[at:]) }
	m := &Map{r: r, clusterBits: uint(u32(20)), v2: u32(4) == 2, table: -1}
	switch version := u32(4); {
	case u32(0) != 0x514649fb:
		return nil, fmt.Errorf("%w: not qcow2", ErrCorrupt)
	case version != 2 && version != 3:
		return nil, fmt.Errorf("%w: version %d", ErrUnsupported, version)
	case version == 3 && u64(72)&^(featureDirty|featureCompression) != 0:
		return nil, fmt.Errorf("%w: incompatible features %#x", ErrUnsupported, u64(72))
	case u32(32) != 0:
		return nil, fmt.Errorf("%w: encrypted", ErrUnsupported)
	case m.clusterBits < 9 || m.clusterBits > 21:
		return nil, fmt.Errorf("%w: clusters of 2^%d bytes", ErrCorrupt, m.clusterBits)
	case u64(24) > 1<<62:
		return nil, fmt.Errorf("%w: virtual size %d", ErrCorrupt, u64(24))
	}
	m.size = int64(u64(24))
	entries, offset := int64(u32(36)), u64(40)
	needed := (m.size + m.covers() - 1) / m.covers()
	switch {
	case entries*8 > maxL1Bytes || entries < needed:
		return nil, fmt.Errorf("%w: L1 table of %d entries", ErrCorrupt, entries)
	case offset&uint64(m.cluster()-1) != 0 || offset > 1<<62:
		return nil, fmt.Errorf("%w: L1 table at offset %d", ErrCorrupt, offset)
	}
	var err error
	m.l1At = int64(offset)
	m.l1, err = m.entries(m.l1At, needed)
	return m, err
}

// TablesEnd is where in the file the last of its tables ends, in bytes. A file
// that ends before was cut off: what is missing of a table reads as zeros, and
// so as if nothing had ever been written there.
func (m *Map) TablesEnd() int64 {
	end := m.l1At + int64(len(m.l1))*8
	for _, entry := range m.l1 {
		if at := int64(entry & offsetMask); at != 0 {
			end = max(end, at+m.cluster())
		}
	}
	return end
}

// Size is the virtual size in bytes.
func (m *Map) Size() int64 { return m.size }

// ClusterSize is the unit of allocation in bytes.
func (m *Map) ClusterSize() int64 { return m.cluster() }

func (m *Map) cluster() int64 { return 1 << m.clusterBits }

// covers is how many bytes of the disk one L2 table maps.
func (m *Map) covers() int64 { return 1 << (2*m.clusterBits - 3) }

// Next returns the extent at off, which must be within [0, Size): as long as
// it goes on within one L2 table, is of one kind, and Data lies in one piece.
func (m *Map) Next(off int64) (Extent, error) {
	if off < 0 || off >= m.size {
		return Extent{}, fmt.Errorf("offset %d is outside a disk of %d bytes", off, m.size)
	}
	index := off >> (2*m.clusterBits - 3)
	end := min(m.size, (index+1)<<(2*m.clusterBits-3))
	entry := m.l1[index] & offsetMask
	if entry == 0 {
		return Extent{Off: off, Len: end - off}, nil
	}
	if entry&uint64(m.cluster()-1) != 0 {
		return Extent{}, fmt.Errorf("%w: L2 table at offset %d", ErrCorrupt, entry)
	}
	if m.table != index {
		m.table = -1
		table, err := m.entries(int64(entry), m.cluster()/8)
		if err != nil {
			return Extent{}, err
		}
		m.table, m.l2 = index, table
	}
	return m.run(off, end)
}

// run follows the entries of the L2 table that is loaded.
func (m *Map) run(off, end int64) (Extent, error) {
	at := (off >> m.clusterBits) & (m.cluster()/8 - 1)
	kind, host, err := m.entry(m.l2[at])
	if err != nil {
		return Extent{}, err
	}
	within := off & (m.cluster() - 1)
	length := m.cluster() - within
	for off+length < end {
		at++
		nextKind, next, err := m.entry(m.l2[at])
		// What is wrong with the next one is said when it is asked for.
		if err != nil || nextKind != kind || kind == Data && next != host+within+length {
			break
		}
		length += m.cluster()
	}
	extent := Extent{Off: off, Len: min(length, end-off), Kind: kind}
	if kind == Data {
		extent.At = host + within
	}
	return extent, nil
}

// entry decodes one L2 entry.
func (m *Map) entry(entry uint64) (Kind, int64, error) {
	host := entry & offsetMask
	switch {
	case entry&flagCompressed != 0:
		return 0, 0, fmt.Errorf("%w: a cluster is compressed", ErrUnsupported)
	case entry&flagZero != 0 && m.v2:
		return 0, 0, fmt.Errorf("%w: a cluster of zeros in version 2", ErrCorrupt)
	case host&uint64(m.cluster()-1) != 0:
		return 0, 0, fmt.Errorf("%w: a cluster at offset %d", ErrCorrupt, host)
	case entry&flagZero != 0:
		return Zero, 0, nil
	case host == 0:
		return Unallocated, 0, nil
	}
	return Data, int64(host), nil
}

// entries reads n table entries at off.
func (m *Map) entries(off, n int64) ([]uint64, error) {
	if int64(len(m.scratch)) < n*8 {
		m.scratch = make([]byte, n*8)
	}
	if err := readFull(m.r, m.scratch[:n*8], off); err != nil {
		return nil, err
	}
	table := m.l2
	if m.l1 == nil || int64(cap(table)) < n {
		table = make([]uint64, n)
	}
	table = table[:n]
	for i := range table {
		table[i] = binary.BigEndian.Uint64(m.scratch[i*8:])
	}
	return table, nil
}

// readFull fills b; what lies beyond the end of the file is zeros.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(b[n:])
	return nil
}
