// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
	"diskhook/storage/transfer"
)

// A copy that was interrupted is continued. What tells how far it is, the
// cursor, lies beside the state of the host and bears the UUID of the copy, so
// that no other copy is ever taken for it. Of a file the engine notes more, as its
// UUID lies beside it and does not notice when another one takes its place. The copy engine writes it after the
// data, and trusts it only for the same source, target and way of copying. A
// copy from a block device has none and is made again: nothing tells whether the
// device was written to meanwhile, as by a guest that ran on it.

// cursorPath is cursors/UUID of the copy, below what survives a reboot.
func (s *Service) cursorPath(c Copy) string { return filepath.Join(s.Layout.Cursors(), c.UUID) }

// cursorFor is the cursor of a copy from that source; "" is that it can have
// none.
func (s *Service) cursorFor(source *imagecheck.Opened, c Copy) string {
	if source.Block {
		return ""
	}
	return s.cursorPath(c)
}

// begun says that there is a cursor for the copy, which may be gone on with.
func (s *Service) begun(c Copy) bool {
	if c.State != Updating || c.UUID == "" || strings.ContainsRune(c.UUID, filepath.Separator) {
		return false
	}
	if !c.file() && c.Size == 0 {
		return false // there is only the word of it
	}
	if !c.file() { // its node may not be there
		_, err := os.Stat(s.cursorPath(c))
		return err == nil
	}
	_, ok := transfer.Begun(s.cursorPath(c), c.target())
	return ok
}

// forget removes the cursor of a copy that is complete, or on its way out.
func (s *Service) forget(c Copy) error {
	if c.UUID == "" || strings.ContainsRune(c.UUID, filepath.Separator) {
		return nil
	}
	// One that was being written when its process was killed.
	if left, err := filepath.Glob(filepath.Join(s.Layout.Cursors(), "."+c.UUID+"*")); err == nil {
		for _, path := range left {
			_ = os.Remove(path)
		}
	}
	return atomicfile.Remove(s.cursorPath(c))
}

// remove deletes a copy, and then what tells how far it got.
func (s *Service) remove(ctx context.Context, d Disk, c Copy) error {
	if err := s.backend(d).remove(ctx, c); err != nil {
		return err
	}
	return s.forget(c)
}

// goOn continues a copy that was interrupted. One of which that cannot be said
// for sure is in the way, and made again.
func (s *Service) goOn(ctx context.Context, o Observed, held *lock.Lock, status *progress.Writer) error {
	source, err := s.open(ctx, o.Disk)
	if err != nil {
		return unreadable(o.Disk, err)
	}
	defer source.Close()
	done, ok := transfer.Resumable(s.cursorFor(source, o.Copy), from(source, o.Copy), o.Copy.target())
	if !ok {
		s.Log.Info("start over: the unfinished copy may be of what the source was, or was made in another way", "disk", o.Disk.String())
		if err := s.clear(ctx, o); err != nil {
			return err
		}
		return s.copy(ctx, o, held, status)
	}
	if !s.asFileOpen(o.Copy).closed() {
		return fmt.Errorf("%s: %w", o.Disk, inUse(o.Copy))
	}
	if o.Receipt != nil { // of a crash just before the mark went
		if err := removeReceipt(s.Layout, o.Disk.Domain, o.Disk.Key()); err != nil {
			return fmt.Errorf("%s: %w", o.Disk, err)
		}
	}
	if err := s.backend(o.Disk).activate(ctx, []Copy{o.Copy}); err != nil {
		return fmt.Errorf("%s: %w", o.Disk, err)
	}
	s.Log.Info("go on with the copy", "disk", o.Disk.String(), "done", done, "of", source.VirtualSize)
	if err := failpoint.Hit("fill.resumed"); err != nil {
		return err
	}
	return s.fillUp(ctx, o, source, held, status)
}

// worthKeeping says that the next start should go on with a copy that failed
// with err. It is not where the source is not any more what was copied, nor
// where the copy is not what was read.
func (s *Service) worthKeeping(o Observed, source *imagecheck.Opened, err error) bool {
	if errors.Is(err, failure.Conflict) || errors.Is(err, failure.Problems) {
		return false
	}
	done, ok := transfer.Resumable(s.cursorFor(source, o.Copy), from(source, o.Copy), o.Copy.target())
	return ok && done > 0
}

// from is the source of c as the engine has to know it.
func from(source *imagecheck.Opened, c Copy) transfer.Source {
	return transfer.Source{
		Layers: source.Layers, Size: source.VirtualSize, Files: source.Files, Fingerprint: source.Fingerprint, Present: present(c),
	}
}

func (c Copy) targetID() string { return c.HomeID + "/" + c.UUID }

// target is a copy or template as the engine has to know it. Whether it read
// zeros when it was made does not change while it is filled.
func (c Copy) target() transfer.Target {
	return transfer.Target{
		Path: c.Path, Block: !c.file(), Zeroed: c.Zeroes, Size: c.Size, ID: c.targetID(),
	}
}
