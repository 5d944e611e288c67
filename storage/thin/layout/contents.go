// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"cmp"
	"errors"
	"io"
	"slices"
)

// Contents reads an offline volume straight from the data volume: where the
// mapping has no block there are zeros. data is read at offsets that are as
// aligned as those that are asked for.
func (m Mapping) Contents(data io.ReaderAt) io.ReaderAt { return contents{m, data} }

type contents struct {
	Mapping
	data io.ReaderAt
}

// ReadAt is io.ReaderAt of the volume.
func (c contents) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	n := 0
	for n < len(p) && uint64(off) < c.Size {
		length, at, mapped := c.at(uint64(off))
		part := p[n:][:min(uint64(len(p)-n), length, c.Size-uint64(off))]
		if !mapped {
			clear(part)
		} else if got, err := c.data.ReadAt(part, int64(at)); got < len(part) {
			return n + got, errors.Join(err, io.ErrUnexpectedEOF)
		}
		n, off = n+len(part), off+int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// at says how many bytes from off on lie together, and where if they are mapped.
func (c contents) at(off uint64) (length, at uint64, mapped bool) {
	virtual, within := off/c.BlockSize, off%c.BlockSize
	i, found := slices.BinarySearchFunc(c.Runs, virtual, func(r MappingRun, v uint64) int { return cmp.Compare(r.Virtual, v) })
	if !found {
		i--
	}
	if i >= 0 && virtual < c.Runs[i].Virtual+c.Runs[i].Length {
		r := c.Runs[i]
		skip := virtual - r.Virtual
		return (r.Length-skip)*c.BlockSize - within, (r.Physical+skip)*c.BlockSize + within, true
	}
	if i+1 < len(c.Runs) {
		return c.Runs[i+1].Virtual*c.BlockSize - off, 0, false
	}
	return c.Size - off, 0, false
}
