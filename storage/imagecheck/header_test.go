// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fields is a qcow2 header to be written by hand. The defaults of sound are a
// valid empty image of 1 GiB with 64 KiB clusters.
type fields struct {
	magic                       string
	version, clusterBits        uint32
	backingOffset               uint64
	backingSize                 uint32
	backing                     string
	size                        uint64
	crypt, l1Size               uint32
	l1Offset, refOffset         uint64
	refClusters, snapshots      uint32
	incompatible                uint64
	refcountOrder, headerLength uint32
	compression                 byte
	extensions                  []extension
	imageBytes                  int64
}

type extension struct {
	kind, size uint32
	data       string
}

func sound() fields {
	return fields{
		magic: magic, version: 3, clusterBits: 16, size: 1 << 30, l1Size: 2, l1Offset: 3 << 16,
		refOffset: 1 << 16, refClusters: 1, refcountOrder: 4, headerLength: 112, imageBytes: 4 << 16,
	}
}

// withBacking puts the name where qemu-img puts it, behind the extensions.
func withBacking(name, format string) fields {
	f := sound()
	if format != "" {
		f.extensions = append(f.extensions, extension{extBackingFormat, uint32(len(format)), format})
	}
	f.backing, f.backingOffset, f.backingSize = name, 512, uint32(len(name))
	return f
}

func (f fields) bytes() []byte {
	b := make([]byte, f.imageBytes)
	head := make([]byte, 1<<16)
	be := binary.BigEndian
	copy(head, f.magic)
	be.PutUint32(head[4:], f.version)
	be.PutUint64(head[8:], f.backingOffset)
	be.PutUint32(head[16:], f.backingSize)
	be.PutUint32(head[20:], f.clusterBits)
	be.PutUint64(head[24:], f.size)
	be.PutUint32(head[32:], f.crypt)
	be.PutUint32(head[36:], f.l1Size)
	be.PutUint64(head[40:], f.l1Offset)
	be.PutUint64(head[48:], f.refOffset)
	be.PutUint32(head[56:], f.refClusters)
	be.PutUint32(head[60:], f.snapshots)
	at := headerV2
	if f.version >= 3 {
		be.PutUint64(head[72:], f.incompatible)
		be.PutUint32(head[96:], f.refcountOrder)
		be.PutUint32(head[100:], f.headerLength)
		head[104] = f.compression
		at = int(min(f.headerLength, 4096))
	}
	for _, e := range f.extensions {
		be.PutUint32(head[at:], e.kind)
		be.PutUint32(head[at+4:], e.size)
		copy(head[at+8:], e.data)
		at += 8 + (len(e.data)+7)&^7
	}
	if f.backing != "" {
		copy(head[f.backingOffset:], f.backing)
	}
	copy(b, head)
	return b
}

func TestReadHeader(t *testing.T) {
	chained := withBacking("base.raw", "raw")
	chained.snapshots = 3
	chained.extensions = append(chained.extensions, extension{0x6803f857, 48, strings.Repeat("x", 48)})
	v2 := sound()
	v2.version = 2
	rich := sound()
	rich.incompatible, rich.compression, rich.l1Size = featureCompression|featureExtendedL2, 1, 4
	for name, c := range map[string]struct {
		in   fields
		want Header
	}{
		"v3":      {sound(), Header{Version: 3, VirtualSize: 1 << 30, ClusterSize: 1 << 16, Compression: "zlib"}},
		"v2":      {v2, Header{Version: 2, VirtualSize: 1 << 30, ClusterSize: 1 << 16, Compression: "zlib"}},
		"backing": {chained, Header{Version: 3, VirtualSize: 1 << 30, ClusterSize: 1 << 16, Compression: "zlib", BackingFile: "base.raw", BackingFormat: "raw", Snapshots: 3}},
		"zstd":    {rich, Header{Version: 3, VirtualSize: 1 << 30, ClusterSize: 1 << 16, Compression: "zstd", ExtendedL2: true}},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := ReadHeader(bytes.NewReader(c.in.bytes()), c.in.imageBytes, DefaultMaxVirtualSize)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, *h, cmpopts.IgnoreUnexported(Header{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if h.l1Offset != 3<<16 || h.l1Bytes != 8*int64(c.in.l1Size) {
				t.Errorf("L1 table at %d, %d bytes", h.l1Offset, h.l1Bytes)
			}
		})
	}
}

func TestReadHeaderRefuses(t *testing.T) {
	const maxVirtual = 1 << 40
	edit := func(change func(*fields)) fields {
		f := sound()
		change(&f)
		return f
	}
	editBacking := func(change func(*fields)) fields {
		f := withBacking("base.qcow2", "qcow2")
		change(&f)
		return f
	}
	for name, c := range map[string]struct {
		in   fields
		kind error
		text string
	}{
		"not qcow2":          {edit(func(f *fields) { f.magic = "QFI\xfa" }), ErrFormat, "not a qcow2 image"},
		"qcow1":              {edit(func(f *fields) { f.version = 1 }), ErrFormat, "qcow2 version 1"},
		"version 4":          {edit(func(f *fields) { f.version = 4 }), ErrFormat, "qcow2 version 4"},
		"empty":              {edit(func(f *fields) { f.imageBytes = 0 }), ErrFormat, "not a qcow2 image"},
		"short v2":           {edit(func(f *fields) { f.version, f.imageBytes = 2, 71 }), ErrFormat, "header of 71 bytes"},
		"short v3":           {edit(func(f *fields) { f.imageBytes = 103 }), ErrFormat, "header of 103 bytes"},
		"header too long":    {edit(func(f *fields) { f.headerLength = 1<<16 + 8 }), ErrFormat, "header length 65544"},
		"header too short":   {edit(func(f *fields) { f.headerLength = 72 }), ErrFormat, "header length 72"},
		"small clusters":     {edit(func(f *fields) { f.clusterBits = 8 }), ErrFormat, "cluster size 2^8"},
		"large clusters":     {edit(func(f *fields) { f.clusterBits = 22 }), ErrFormat, "cluster size 2^22"},
		"cluster bits wrap":  {edit(func(f *fields) { f.clusterBits = 64 + 16 }), ErrFormat, "cluster size 2^80"},
		"extended, small":    {edit(func(f *fields) { f.clusterBits, f.incompatible = 13, featureExtendedL2 }), ErrFormat, "cluster size 2^13"},
		"data file bit":      {edit(func(f *fields) { f.incompatible = featureDataFile }), ErrTrap, "data-file bit"},
		"data file name":     {edit(func(f *fields) { f.extensions = []extension{{extDataFile, 11, "/etc/shadow"}} }), ErrTrap, `external data file "/etc/shadow"`},
		"unknown bit":        {edit(func(f *fields) { f.incompatible = 1 << 5 }), ErrFormat, "feature bits 0x20"},
		"highest bit":        {edit(func(f *fields) { f.incompatible = 1 << 63 }), ErrFormat, "feature bits 0x8000000000000000"},
		"corrupt":            {edit(func(f *fields) { f.incompatible = featureCorrupt }), ErrFormat, "marked corrupt"},
		"dirty":              {edit(func(f *fields) { f.incompatible = featureDirty }), ErrFormat, "marked dirty"},
		"aes":                {edit(func(f *fields) { f.crypt = 1 }), ErrFormat, "encrypted (method 1)"},
		"luks":               {edit(func(f *fields) { f.crypt = 2 }), ErrFormat, "encrypted (method 2)"},
		"luks header":        {edit(func(f *fields) { f.extensions = []extension{{extEncryption, 16, strings.Repeat("x", 16)}} }), ErrFormat, "encrypted"},
		"compression type 2": {edit(func(f *fields) { f.incompatible, f.compression = featureCompression, 2 }), ErrFormat, "compression type 2"},
		"compression no bit": {edit(func(f *fields) { f.compression = 1 }), ErrFormat, "compression type 1"},
		"size 2^63":          {edit(func(f *fields) { f.size = 1 << 63 }), ErrTrap, "virtual size of 9223372036854775808"},
		"size 2^64-512":      {edit(func(f *fields) { f.size = math.MaxUint64 - 511 }), ErrTrap, "virtual size of 18446744073709551104"},
		"size over cap":      {edit(func(f *fields) { f.size = maxVirtual + 512 }), ErrTrap, "at most 1099511627776"},
		"size 0":             {edit(func(f *fields) { f.size = 0 }), ErrFormat, "virtual size 0"},
		"half a sector":      {edit(func(f *fields) { f.size = 1<<30 + 1 }), ErrFormat, "virtual size 1073741825"},
		"L1 too small":       {edit(func(f *fields) { f.l1Size = 1 }), ErrTrap, "L1 table of 1 entries"},
		"L1 of 4 Gi":         {edit(func(f *fields) { f.l1Size = math.MaxUint32 }), ErrTrap, "L1 table of 4294967295 entries"},
		"L1 in the header":   {edit(func(f *fields) { f.l1Offset = 0 }), ErrFormat, "L1 table at offset 0"},
		"L1 unaligned":       {edit(func(f *fields) { f.l1Offset = 3<<16 + 8 }), ErrFormat, "L1 table at offset 196616"},
		"L1 beyond the end":  {edit(func(f *fields) { f.l1Offset = 4 << 16 }), ErrFormat, "L1 table at offset 262144"},
		"L1 offset wraps":    {edit(func(f *fields) { f.l1Offset = math.MaxUint64 &^ 0xffff }), ErrFormat, "L1 table at offset 18446744073709486080"},
		"no refcounts":       {edit(func(f *fields) { f.refClusters = 0 }), ErrTrap, "refcount table of 0 clusters"},
		"huge refcounts":     {edit(func(f *fields) { f.refClusters = math.MaxUint32 }), ErrTrap, "refcount table of 4294967295 clusters"},
		"refcounts beyond":   {edit(func(f *fields) { f.refOffset = 1 << 40 }), ErrFormat, "refcount table at offset 1099511627776"},
		"refcount order 7":   {edit(func(f *fields) { f.refcountOrder = 7 }), ErrFormat, "refcount order 7"},
		"many snapshots":     {edit(func(f *fields) { f.snapshots = maxSnapshots + 1 }), ErrFormat, "65537 internal snapshots"},
		"long extension":     {edit(func(f *fields) { f.extensions = []extension{{0x1234, math.MaxUint32, ""}} }), ErrFormat, "extension 0x1234"},
		"backing no length":  {editBacking(func(f *fields) { f.backingSize = 0 }), ErrTrap, "backing file name of 0 bytes"},
		"backing too long":   {editBacking(func(f *fields) { f.backingSize = 1024 }), ErrTrap, "backing file name of 1024 bytes"},
		"backing in header":  {editBacking(func(f *fields) { f.backingOffset, f.backing = 8, "" }), ErrTrap, "at offset 8"},
		"backing outside":    {editBacking(func(f *fields) { f.backingOffset = 1<<16 - 4; f.backing = "" }), ErrTrap, "at offset 65532"},
		"backing far away":   {editBacking(func(f *fields) { f.backingOffset = math.MaxUint64; f.backing = "" }), ErrTrap, "at offset 18446744073709551615"},
		"ends in its name":   {editBacking(func(f *fields) { f.imageBytes = 515; f.l1Offset = 1 << 16 }), ErrFormat, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := ReadHeader(bytes.NewReader(c.in.bytes()), c.in.imageBytes, maxVirtual)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("header %+v, error %v; want %q", h, err, c.text)
			}
		})
	}
}

// What a header names is kept exactly up to the longest name there may be.
func TestLongestBackingName(t *testing.T) {
	name := "/" + strings.Repeat("b", maxBackingName-1)
	f := withBacking(name, "qcow2")
	h, err := ReadHeader(bytes.NewReader(f.bytes()), f.imageBytes, DefaultMaxVirtualSize)
	if err != nil || h.BackingFile != name || h.BackingFormat != "qcow2" {
		t.Errorf("got %+v, %v", h, err)
	}
}

func FuzzHeader(f *testing.F) {
	for _, seed := range []fields{sound(), withBacking("/base", "raw"), withBacking("json:{}", "")} {
		f.Add(seed.bytes()[:1024], int64(4<<16))
	}
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		size &= 1<<62 - 1
		h, err := ReadHeader(bytes.NewReader(data), size, DefaultMaxVirtualSize)
		if err != nil {
			if !errors.Is(err, ErrTrap) && !errors.Is(err, ErrFormat) {
				t.Errorf("unclassified: %v", err)
			}
			return
		}
		switch {
		case h.VirtualSize <= 0 || h.VirtualSize > DefaultMaxVirtualSize:
			t.Errorf("virtual size %d", h.VirtualSize)
		case len(h.BackingFile) > maxBackingName, len(h.area) > int(h.ClusterSize):
			t.Errorf("backing name of %d bytes, header of %d", len(h.BackingFile), len(h.area))
		case h.l1Bytes > maxL1Bytes || h.l1Offset+h.l1Bytes > size+h.ClusterSize:
			t.Errorf("L1 table at %d, %d bytes, of %d", h.l1Offset, h.l1Bytes, size)
		}
	})
}
