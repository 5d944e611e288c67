// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"diskhook/storage/failure"
)

// The qcow2 header as docs/interop/qcow2.rst of QEMU has it. All numbers are
// big-endian.
//
//	 0  4 magic "QFI\xfb"            48  8 refcount table offset
//	 4  4 version, 2 or 3            56  4 refcount table clusters
//	 8  8 backing name offset, 0=no  60  4 internal snapshots
//	16  4 backing name length        64  8 snapshot table offset
//	20  4 cluster bits               version 3 only:
//	24  8 virtual size               72  8 incompatible features
//	32  4 encryption method, 0=no    80  8 compatible features
//	36  4 L1 entries                 88  8 autoclear features
//	40  8 L1 table offset            96  4 refcount order
//	                                100  4 header length
//	                                104  1 compression type
//
// Extensions follow: type, length, data padded to 8 bytes; type 0 ends them.
// Backing name and extensions lie within the first cluster.
const (
	magic    = "QFI\xfb"
	headerV2 = 72
	headerV3 = 104

	minClusterBits, maxClusterBits = 9, 21
	maxBackingName                 = 1023
	maxL1Bytes                     = 32 << 20 // QEMU's own bounds
	maxRefcountTableBytes          = 8 << 20
	maxSnapshots                   = 65536
	maxRefcountOrder               = 6
)

// Incompatible feature bits.
const (
	featureDirty = 1 << iota
	featureCorrupt
	featureDataFile
	featureCompression
	featureExtendedL2

	featuresKnown = 1<<iota - 1
)

// Header extension types.
const (
	extEnd           = 0
	extBackingFormat = 0xE2792ACA
	extDataFile      = 0x44415441
	extEncryption    = 0x0537BE77
)

// Header is a qcow2 header that passed every check which needs no other file.
type Header struct {
	Version       int
	VirtualSize   int64  // bytes
	ClusterSize   int64  // bytes
	BackingFile   string // as written, "" if none
	BackingFormat string // "" if the header does not say
	Compression   string // "zlib" or "zstd", for clusters that are compressed
	ExtendedL2    bool
	Snapshots     int // internal ones; their content is not looked at

	l1Offset, l1Bytes int64
	area              []byte // header, extensions and backing name, for the fingerprint
}

// errNotQCOW2 is what ReadHeader finds no qcow2 magic with.
var errNotQCOW2 = errors.New("not a qcow2 image")

// ReadHeader reads and checks the qcow2 header of an image that takes up size
// bytes of storage and may claim at most maxVirtual. It reads no more than
// the first cluster. The error is ErrTrap or ErrFormat, or a read error;
// it does not name the image.
func ReadHeader(r io.ReaderAt, size, maxVirtual int64) (*Header, error) {
	fixed := make([]byte, headerV3+8)
	n, err := r.ReadAt(fixed, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if string(fixed[:min(n, len(magic))]) != magic {
		return nil, fmt.Errorf("%w: %w", ErrFormat, errNotQCOW2)
	}
	if n < headerV2 {
		return nil, fmt.Errorf("%w: header of %d bytes", ErrFormat, n)
	}
	h, at, err := parseFixed(fixed[:n], size, maxVirtual)
	if err != nil {
		return nil, err
	}
	cluster := make([]byte, min(h.ClusterSize, size))
	n, err = r.ReadAt(cluster, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return h, h.parseArea(cluster[:n], at)
}

// area says where the variable parts of a header are in the first cluster.
type area struct {
	extensions        int64
	backing, backingN int64 // 0: no backing file
}

// parseFixed checks the numbers.
func parseFixed(b []byte, size, maxVirtual int64) (*Header, area, error) {
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(b[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
	bad := func(cause string, args ...any) (*Header, area, error) {
		return nil, area{}, fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(cause, args...))
	}
	h := &Header{Version: int(u32(4)), Compression: "zlib"}
	length, refcountOrder := int64(headerV2), uint32(4)
	switch {
	case h.Version == 3 && len(b) < headerV3:
		return bad("header of %d bytes", len(b))
	case h.Version == 3:
		length, refcountOrder = int64(u32(100)), u32(96)
		if err := h.features(u64(72), length, b); err != nil {
			return nil, area{}, err
		}
	case h.Version != 2:
		return bad("qcow2 version %d", u32(4))
	}
	clusterBits := u32(20)
	if clusterBits < minClusterBits || clusterBits > maxClusterBits || h.ExtendedL2 && clusterBits < 14 {
		return bad("cluster size 2^%d", clusterBits)
	}
	h.ClusterSize = 1 << clusterBits
	if h.Version == 3 && (length < headerV3 || length > h.ClusterSize || length%8 != 0) {
		return bad("header length %d", length)
	}
	if method := u32(32); method != 0 {
		err := fmt.Errorf("%w: it is encrypted (method %d)", ErrFormat, method)
		return nil, area{}, failure.Hint(err, hintEncrypted)
	}
	if virtual := u64(24); virtual > uint64(maxVirtual) {
		err := fmt.Errorf("%w: it claims a virtual size of %d bytes, at most %d are accepted", ErrTrap, virtual, maxVirtual)
		return nil, area{}, failure.Hint(err, "if its owner did not make it so, remove it")
	}
	h.VirtualSize = int64(u64(24))
	if h.VirtualSize == 0 || h.VirtualSize%512 != 0 {
		return bad("virtual size %d", h.VirtualSize)
	}
	if refcountOrder > maxRefcountOrder {
		return bad("refcount order %d", refcountOrder)
	}
	if u32(60) > maxSnapshots {
		return bad("%d internal snapshots", u32(60))
	}
	h.Snapshots = int(u32(60))
	if err := h.tables(u32(36), u64(40), u32(56), u64(48), size); err != nil {
		return nil, area{}, err
	}
	at := area{extensions: length}
	if offset, name := u64(8), uint64(u32(16)); offset != 0 {
		end := uint64(h.ClusterSize)
		if name == 0 || name > maxBackingName || offset < uint64(length) || offset > end || name > end-offset {
			return nil, area{}, fmt.Errorf("%w: backing file name of %d bytes at offset %d", ErrTrap, name, offset)
		}
		at.backing, at.backingN = int64(offset), int64(name)
	}
	return h, at, nil
}

// features refuses what changes how the image is read in a way we do not know
// or do not want.
func (h *Header) features(set uint64, length int64, b []byte) error {
	switch {
	case set&featureDataFile != 0:
		err := fmt.Errorf("%w: it keeps its data in another file (data-file bit)", ErrTrap)
		return failure.Hint(err, "if its owner made it so, convert it with `qemu-img convert -O qcow2` into a new image")
	case set&^featuresKnown != 0:
		return fmt.Errorf("%w: unknown incompatible feature bits %#x", ErrFormat, set&^featuresKnown)
	case set&featureCorrupt != 0:
		return failure.Hint(fmt.Errorf("%w: it is marked corrupt", ErrFormat), hintRepair)
	case set&featureDirty != 0:
		return failure.Hint(fmt.Errorf("%w: it is marked dirty: in use, or not closed after a crash", ErrFormat), hintRepair)
	}
	h.ExtendedL2 = set&featureExtendedL2 != 0
	kind := byte(0)
	if length > headerV3 && len(b) > headerV3 {
		kind = b[headerV3]
	}
	if (set&featureCompression != 0) != (kind != 0) || kind > 1 {
		return fmt.Errorf("%w: compression type %d", ErrFormat, kind)
	}
	if kind == 1 {
		h.Compression = "zstd"
	}
	return nil
}

// tables checks L1 and refcount table against the virtual size and against
// the storage: they are allocated as the header says by whoever opens it.
func (h *Header) tables(l1 uint32, l1Offset uint64, refClusters uint32, refOffset uint64, size int64) error {
	clusterBits := bits.TrailingZeros64(uint64(h.ClusterSize))
	entryBits := 3 // an L2 entry is 8 bytes, an extended one 16
	if h.ExtendedL2 {
		entryBits = 4
	}
	perEntry := uint64(1) << (2*clusterBits - entryBits) // bytes that one L1 entry covers
	needed := (uint64(h.VirtualSize) + perEntry - 1) / perEntry
	end := (uint64(size) + uint64(h.ClusterSize) - 1) &^ uint64(h.ClusterSize-1) // a file may end within its last cluster
	within := func(offset, length uint64) bool {
		return offset >= uint64(h.ClusterSize) && offset%uint64(h.ClusterSize) == 0 && offset < end && length <= end-offset
	}
	l1Bytes := uint64(l1) * 8
	switch {
	case l1Bytes > maxL1Bytes || uint64(l1) < needed:
		return fmt.Errorf("%w: L1 table of %d entries for a virtual size of %d bytes", ErrTrap, l1, h.VirtualSize)
	case !within(l1Offset, l1Bytes):
		return fmt.Errorf("%w: L1 table at offset %d, beyond the %d bytes of the image", ErrFormat, l1Offset, size)
	}
	refBytes := uint64(refClusters) * uint64(h.ClusterSize)
	switch {
	case refClusters == 0 || refBytes > maxRefcountTableBytes:
		return fmt.Errorf("%w: refcount table of %d clusters", ErrTrap, refClusters)
	case !within(refOffset, refBytes):
		return fmt.Errorf("%w: refcount table at offset %d, beyond the %d bytes of the image", ErrFormat, refOffset, size)
	}
	h.l1Offset, h.l1Bytes = int64(l1Offset), int64(l1Bytes)
	return nil
}

// parseArea reads the extensions and the backing file's name, which ends them.
func (h *Header) parseArea(cluster []byte, in area) error {
	end := int64(len(cluster))
	if in.backing != 0 {
		if in.backing+in.backingN > end {
			return fmt.Errorf("%w: it ends within its backing file's name", ErrFormat)
		}
		end = in.backing
		h.BackingFile = string(cluster[end : end+in.backingN])
	}
	at := in.extensions
	for end-at >= 8 {
		kind, size := binary.BigEndian.Uint32(cluster[at:]), int64(binary.BigEndian.Uint32(cluster[at+4:]))
		at += 8
		if kind == extEnd {
			break
		}
		if size > end-at {
			return fmt.Errorf("%w: header extension %#x of %d bytes", ErrFormat, kind, size)
		}
		if err := h.extension(kind, cluster[at:at+size]); err != nil {
			return err
		}
		at += min((size+7)&^7, end-at)
	}
	h.area = bytes.Clone(cluster[:max(at, in.backing+in.backingN)])
	return nil
}

func (h *Header) extension(kind uint32, data []byte) error {
	switch kind {
	case extBackingFormat:
		h.BackingFormat = string(data)
	case extDataFile:
		// Without the feature bit QEMU ignores the name. Nobody writes it so.
		return fmt.Errorf("%w: it names an external data file %q", ErrTrap, clip(data))
	case extEncryption:
		return failure.Hint(fmt.Errorf("%w: it is encrypted", ErrFormat), hintEncrypted)
	}
	return nil
}

// clip shortens what a hostile header puts into an error message.
func clip[T string | []byte](s T) string {
	const most = 80
	if len(s) > most {
		return string(s[:most]) + "…"
	}
	return string(s)
}

// hardMaxVirtual is what fits into a file offset.
const hardMaxVirtual = math.MaxInt64 &^ 511
