// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"errors"
	"fmt"

	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qcow2map"
)

// CheckTables refuses a source of which a file ends before its tables do, or whose tables
// make no sense, as Copy does: a failure.Precondition. It reads a few bytes for each
// GiB, and may hang with the storage.
func CheckTables(opened *imagecheck.Opened) error {
	for i, f := range opened.Files {
		l := opened.Layers[i]
		if l.Format != imagecheck.QCOW2 {
			continue
		}
		image, err := qcow2map.Open(f)
		if errors.Is(err, qcow2map.ErrUnsupported) {
			continue // qemu-img reads it
		}
		if errors.Is(err, qcow2map.ErrCorrupt) {
			err = failure.Wrap(failure.Precondition, err)
		}
		var bytes int64
		if err == nil {
			bytes, err = blockdev.Size(f)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", l.Path, err)
		}
		if err := cutOff(l.Path, bytes, image); err != nil {
			return err
		}
	}
	return nil
}

// cutOff refuses a file of so many bytes that ends before its tables do.
func cutOff(path string, bytes int64, image *qcow2map.Map) error {
	end := image.TablesEnd()
	if bytes >= end {
		return nil
	}
	err := failure.New(failure.Precondition, "%s: was cut off: it has %d bytes, its tables lead to %d", path, bytes, end)
	return failure.Hint(err, "restore it from a backup; `qemu-img check %s` says what else is missing", command.Quote([]string{path}))
}
