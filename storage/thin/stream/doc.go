// SPDX-License-Identifier: Apache-2.0

// Package stream is what a volume of a thin cluster is exported as: the stream of
// its physical block addresses, and what is made from them.
//
// A stream says which data blocks back which blocks of one volume. It holds no
// data, so it is small and written at once; whoever has it and the data volume of
// the cluster reads the volume's contents without the cluster's help. As text:
//
//	diskhook-thin-stream 1
//	cluster 6f1f1c1e-…
//	volume 2b0c9a52-…
//	name vm1
//	number 5
//	generation 4
//	state offline
//	size 1073741824
//	block-size 65536
//	data-blocks 16384
//	runs
//	0 100 16 private
//	32 4000 8 base=3
//	end 2 24 0f3a5b77
//
// After "runs" each line is a virtual block, a physical block, how many of them,
// and whether they are the volume's own or of which base; ascending by virtual
// block. The last line counts runs and blocks and has the CRC-32C of everything
// before it. The JSON form has the same members, and the CRC of the text. The XML
// form is for thin_restore(8) and is not read back.
//
// A stream is as good as its generation: the addresses of a volume that is
// attached, cloned or deleted later may be somebody else's then. So a reader
// checks with Fits before and after it reads data. It fails with ErrStream where
// what it was given is cut off, damaged or no stream, with ErrFit where it is of
// another cluster or of a state that has passed.
package stream
