// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/directio"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// repairTimeout bounds thin_repair, which takes minutes for large metadata.
const repairTimeout = time.Hour

// repaired has thin_repair restore what it can of damaged metadata, in files beside:
// nothing on the LUN changes. Metadata that it cannot restore are none.
func (s *session) repaired(ctx context.Context, from window, h layout.HostRecord) (wreck, error) {
	none := wreck{source: FromStored, close: func() {}}
	dir, err := os.MkdirTemp(filepath.Dir(s.reignPath()), "repair-")
	if err != nil {
		return none, err
	}
	cleanup := func() { _ = os.RemoveAll(dir) }
	damaged, restored := filepath.Join(dir, "damaged"), filepath.Join(dir, "restored")
	if err := errors.Join(copyWindow(ctx, damaged, from), os.WriteFile(restored, nil, 0o600), os.Truncate(restored, int64(from.Length))); err != nil {
		cleanup()
		return none, err
	}
	// thin_repair(8): it writes a whole new image; the output has to be there.
	_, err = s.Run.Run(ctx, command.Cmd{Name: "thin_repair", Args: []string{"-i", damaged, "-o", restored}, Timeout: repairTimeout})
	var f *os.File
	var reader *metadata.Reader
	if err == nil {
		if f, err = os.Open(restored); err == nil {
			reader, err = metadata.Open(f)
		}
	}
	if err != nil {
		cleanup()
		s.Log.Warn("thin_repair restored nothing", "host", h.Name, "error", err)
		return none, ctx.Err()
	}
	return wreck{reader, FromRepair, func() { _ = f.Close(); cleanup() }}, nil
}

// copyWindow copies metadata into a file.
func copyWindow(ctx context.Context, path string, from window) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := directio.Buffer(1 << 20)
	for at := uint64(0); at < from.Length; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(uint64(len(buf)), from.Length-at)]
		if n, err := from.ReadAt(part, int64(at)); n < len(part) {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if _, err := f.Write(part); err != nil {
			return err
		}
		at += uint64(len(part))
	}
	return nil
}
