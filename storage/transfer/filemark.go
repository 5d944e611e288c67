// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fileMark is what a cursor says of a target that is a file. Its ID comes from
// a name, or from what lies beside it; another file may have that name by now,
// and of this one somebody may have given blocks back, where it reads zero
// since. A volume's ID is its own, and a discard of one cannot be seen.
//
// That somebody wrote other data over what was copied is not seen either: the
// copy itself has written on after its last cursor, so times tell nothing, and
// only reading it all would.
type fileMark struct {
	Inode  uint64 `json:"inode"`
	Birth  int64  `json:"birth,omitempty"`  // nanoseconds since 1970; 0 where the file system keeps none
	Size   int64  `json:"size"`             // bytes
	Data   int64  `json:"data"`             // bytes below cursor.Done that are in no hole
	Shared int64  `json:"shared,omitempty"` // those of Source.Present, wherever the copy never writes
}

// markFile is the mark of a file of which nothing was copied.
func markFile(f *os.File) (*fileMark, error) {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_SIZE|unix.STATX_BTIME, &st)
	if err != nil {
		return nil, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	m := &fileMark{Inode: st.Ino, Size: int64(st.Size)}
	if st.Mask&unix.STATX_BTIME != 0 {
		m.Birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return m, nil
}

// markTarget says in the cursor what file the target is.
func (c *copying) markTarget() (err error) {
	if c.target.Block {
		return nil
	}
	if c.cursor.File, err = markFile(c.f); err == nil {
		c.cursor.File.Shared = c.shared
	}
	return err
}

// holds says whether the file at path still has what is below done.
func (m *fileMark) holds(path string, done int64) error {
	if m == nil {
		return errors.New("an older version wrote it, which did not note what file the target is")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := markFile(f)
	switch {
	case err != nil:
		return err
	case now.Inode != m.Inode || now.Birth != m.Birth:
		return errors.New("the target is another file")
	case now.Size != m.Size:
		return fmt.Errorf("the target has %d bytes, and had %d", now.Size, m.Size)
	}
	// More is fine: file systems fill small gaps with zeros.
	if has := dataIn(f, span{0, done}); has < m.Data {
		return fmt.Errorf("the target has lost data: %d bytes of what was copied, of %d", has, m.Data)
	}
	return nil
}

// dataIn counts the bytes of a file that are in no hole and no unwritten extent
// (lseek(2), SEEK_DATA). Where the file system cannot tell, that is all.
//
// Linux takes what the page cache has of an unwritten extent for data, and a large
// folio may outlive the zeroing of a part of it (truncate_inode_partial_folio). So
// the cache goes first: else the count would fall when memory is wanted. What is
// dirty stays, and is counted by its pages.
func dataIn(f *os.File, spans ...span) (n int64) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	for _, s := range spans {
		for at := s.from; at < s.end; {
			data, err := f.Seek(at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) || err == nil && data >= s.end {
				break // nothing but a hole
			}
			hole := s.end
			if err == nil {
				if end, err := f.Seek(data, unix.SEEK_HOLE); err == nil {
					hole = min(end, s.end)
				}
			} else {
				data = at
			}
			n, at = n+hole-data, max(hole, data+1)
		}
	}
	return n
}

// keep makes sure that what the target had from its beginning is there, where
// this copy does not write; untouched is where that is.
func (c *copying) keep(untouched []span) error {
	if c.target.Block || c.source.Present == 0 || c.o.Cursor == "" {
		return nil
	}
	has := dataIn(c.f, untouched...)
	if c.resumed && has < c.cursor.File.Shared {
		return cannot("the target has lost data: %d bytes of what it had from its beginning, of %d", has, c.cursor.File.Shared)
	}
	c.shared = has
	return nil
}

// untouched is where a native copy leaves alone what the target has.
func (c *chainMap) untouched() ([]span, error) {
	var spans []span
	for off := int64(0); off < c.base; {
		x, err := safely(func() (extent, error) { return c.next(off) })
		if err != nil {
			return nil, err
		}
		if x.kind == present {
			spans = append(spans, span{x.off, x.end()})
		}
		off = x.end()
	}
	return spans, nil
}

// between is what of a disk is in none of the spans, which are in order.
func between(spans []span, size int64) []span {
	var rest []span
	at := int64(0)
	for _, s := range append(spans[:len(spans):len(spans)], span{size, size}) {
		if s.from > at {
			rest = append(rest, span{at, s.from})
		}
		at = max(at, s.end)
	}
	return rest
}
