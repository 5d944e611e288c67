// SPDX-License-Identifier: Apache-2.0

package master

import (
	"io"

	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// window is one of the two places for metadata in a UUID.host, as a device of its
// own.
type window struct {
	dev layout.Device
	layout.Window
}

func (w window) blocks() uint64 { return w.Length / metadata.BlockSize }

// ReadAt is io.ReaderAt.
func (w window) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || uint64(off)+uint64(len(p)) > w.Length {
		return 0, io.ErrUnexpectedEOF
	}
	return w.dev.ReadAt(p, int64(w.Offset)+off)
}

// WriteAt is io.WriterAt.
func (w window) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || uint64(off)+uint64(len(p)) > w.Length {
		return 0, io.ErrShortWrite
	}
	return w.dev.WriteAt(p, int64(w.Offset)+off)
}

// Flush is metadata.Target's.
func (w window) Flush() error { return w.dev.Flush() }

// compose writes metadata.
func compose(plan handover.Plan, to window) error {
	b, err := metadata.NewBuilder(to, to.blocks(), plan.Superblock())
	if err != nil {
		return err
	}
	return plan.Write(b)
}
