// SPDX-License-Identifier: Apache-2.0

// Package vhd writes and reads dynamic VHD images: what a volume of a thin
// cluster becomes when it leaves for XenServer, Hyper-V or QEMU (format "vpc"),
// and what comes from there.
//
// The format is that of Microsoft's "Virtual Hard Disk Image Format
// Specification" of 2006: a copy of the footer, a header, the block allocation
// table (BAT), blocks of 2 MiB each after a bitmap of its sectors, the footer.
// Everything is big-endian. Writing is a stream, in one go and in order, so that
// it can go through a pipe; the ranges that have data have to be known before,
// as the table comes first.
//
// Reading trusts nothing: an image whose table leads outside of it or twice to
// one place is refused, as are differencing and fixed images, by ErrImage, before
// any of its data is read.
package vhd

import "errors"

// ErrImage says that an image is no dynamic VHD that can be read.
var ErrImage = errors.New("no dynamic VHD image that can be read")

// MaxSize is the largest virtual size of a VHD in bytes.
const MaxSize = 2040 << 30

const (
	sector     = 512
	headerAt   = sector     // after the copy of the footer
	headerSize = 1024       // bytes
	tableAt    = 3 * sector // after the header
	blockSize  = 2 << 20    // bytes, of the images that are written
	unused     = 0xffffffff // in the table: no block
	nowhere    = 0xffffffffffffffff
)

// Range is a part of the disk that has data, in bytes; multiples of 512.
type Range struct{ Offset, Length int64 }

// End is the byte after the last.
func (r Range) End() int64 { return r.Offset + r.Length }
