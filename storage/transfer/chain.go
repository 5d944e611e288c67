// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/directio"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qcow2map"
)

// kind is how the target comes to what the source shows in an extent.
type kind int

const (
	zero    kind = iota // reads as zeros
	data                // lies in a layer's file
	present             // shows from the layers that the target has already
)

// extent is a piece of the virtual disk.
type extent struct {
	off, length int64
	kind        kind
	from        io.ReaderAt // of data: the layer's file
	at          int64       // of data: where in it
}

func (x extent) end() int64 { return x.off + x.length }

// clip is the part of x within [from, to).
func (x extent) clip(from, to int64) extent {
	cut := max(0, from-x.off)
	return extent{x.off + cut, min(x.end(), to) - x.off - cut, x.kind, x.from, x.at + cut}
}

// layerMap says what one layer has at an offset within its size, and up to
// where at least it goes on like that.
type layerMap interface {
	Next(off int64) (qcow2map.Extent, error)
	Size() int64
}

// chainMap is what a chain shows, top first. The layers whose content the
// target has already are not in it; base is the size of the disk they show, 0
// if there are none.
type chainMap struct {
	layers []layerMap
	from   []io.ReaderAt
	paths  []string
	ends   []int64 // of the files
	size   int64
	base   int64
}

// next returns the extent at off. As in QEMU a layer hides what is below from
// its own end on: there it reads as zeros.
func (c *chainMap) next(off int64) (extent, error) {
	x := extent{off: off, length: c.size - off}
	for i, layer := range c.layers {
		if off >= layer.Size() {
			return x, nil
		}
		found, err := layer.Next(off)
		if err != nil {
			return extent{}, err
		}
		x.length = min(x.length, found.Len)
		switch found.Kind {
		case qcow2map.Zero:
			return x, nil
		case qcow2map.Data:
			x.kind, x.from, x.at = data, c.from[i], found.At
			return x, nil
		}
	}
	if off < c.base {
		x.kind, x.length = present, min(x.length, c.base-off)
	}
	return x, nil
}

// scan walks all tables, so that what has to be read by qemu-img is known
// before the first byte is copied: the error is qcow2map.ErrUnsupported. They
// are a few bytes for each cluster. A file that ends before its tables do is
// refused; warn hears of one that ends before its data, which QEMU takes for
// zeros, and which reserved clusters look like as well.
func (c *chainMap) scan(stopped func() error, warn func(text string, err error)) error {
	for i, layer := range c.layers {
		image, is := layer.(*qcow2map.Map)
		if !is {
			continue
		}
		if err := cutOff(c.paths[i], c.ends[i], image); err != nil {
			return err
		}
		beyond := int64(0)
		for off := int64(0); off < layer.Size(); {
			if err := stopped(); err != nil {
				return err
			}
			found, err := layer.Next(off)
			if err != nil {
				return fmt.Errorf("%s: %w", c.paths[i], err)
			}
			if found.Kind == qcow2map.Data {
				beyond += max(0, found.At+found.Len-max(found.At, roundUp(c.ends[i], image.ClusterSize())))
			}
			off += found.Len
		}
		if beyond > 0 {
			warn("part of the source reads zero", fmt.Errorf("%s: was cut off, or has reserved clusters: %d bytes of its data lie beyond its end", c.paths[i], beyond))
		}
	}
	return nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// mapChain opens the maps of the layers that have to be read. Nothing else is
// done with files of those that the target has.
func mapChain(source Source, files []*directio.File, raw []*os.File) (*chainMap, error) {
	c := &chainMap{size: source.Size}
	own := len(source.Layers) - source.Present
	for i, l := range source.Layers[:min(own+1, len(source.Layers))] {
		m, err := mapLayer(l, files[i], raw[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.Path, err)
		}
		if i == own {
			c.base = min(m.Size(), c.size)
			break
		}
		end, err := blockdev.Size(raw[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.Path, err)
		}
		c.layers, c.from, c.paths, c.ends = append(c.layers, m), append(c.from, files[i]), append(c.paths, l.Path), append(c.ends, end)
	}
	return c, nil
}

func mapLayer(l imagecheck.Layer, file *directio.File, f *os.File) (layerMap, error) {
	if l.Format == imagecheck.QCOW2 {
		return qcow2map.Open(file)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &rawMap{f: f, size: (size + 511) &^ 511, holes: st.Mode().IsRegular()}, nil
}

// rawMap is the map of a raw layer: the holes of its file, where the file
// system can tell (lseek(2), SEEK_DATA); a device has none.
type rawMap struct {
	f     *os.File
	size  int64 // in whole sectors
	holes bool
}

func (m *rawMap) Size() int64 { return m.size }

func (m *rawMap) Next(off int64) (qcow2map.Extent, error) {
	x := qcow2map.Extent{Off: off, Len: m.size - off, Kind: qcow2map.Data, At: off}
	if !m.holes {
		return x, nil
	}
	at, err := m.f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole
		x.Kind, x.At = qcow2map.Zero, 0
		return x, nil
	case err != nil:
		m.holes = false
		return x, nil
	case at > off:
		x.Kind, x.Len, x.At = qcow2map.Zero, min(at, m.size)-off, 0
		return x, nil
	}
	if end, err := m.f.Seek(off, unix.SEEK_HOLE); err == nil && end > off {
		// The file may end within the last sector, which is a hole to lseek.
		if end += 511; end&^511 < m.size {
			x.Len = end&^511 - off
		}
	}
	return x, nil
}

// virtualSize is the size of the disk that a layer shows.
func virtualSize(l imagecheck.Layer, f *os.File) (int64, error) {
	m, err := mapLayer(l, directio.New(f), f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", l.Path, err)
	}
	return m.Size(), nil
}
