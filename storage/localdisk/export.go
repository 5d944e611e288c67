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
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
)

// Export writes the disk as its guest left it to the new file to, as raw or
// qcow2, sparse, and compares it with the copy before it gets its name. The
// domain must not run. A file that is there already is a failure.Conflict.
func (s *Service) Export(ctx context.Context, domain, key, to, format string, notify progress.Func) error {
	l, err := s.lockOne(ctx, domain, key)
	if err != nil {
		return err
	}
	defer l.Release()
	r, err := readReceipt(s.Layout, domain, key)
	if err != nil {
		return err
	}
	if r == nil {
		return failure.New(failure.NotFound, "domain %s: disk %s: no local copy", domain, key)
	}
	return s.export(ctx, *r, to, format, notify)
}

// exportFormat is the format that a file name asks for; the CLI refuses names
// that ask for another.
func exportFormat(to string) string {
	if strings.HasSuffix(to, ".qcow2") {
		return "qcow2"
	}
	return "raw"
}

func (s *Service) export(ctx context.Context, r Receipt, to, format string, notify progress.Func) (err error) {
	d := r.Disk()
	c, err := s.readyToRead(ctx, r)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(to); err == nil {
		return failure.Hint(failure.New(failure.Conflict, "%s: exists", to), "name a file that does not exist")
	}
	// A folder that only we may enter: qemu-img makes files readable by all,
	// and the copy is nobody else's.
	private, err := os.MkdirTemp(filepath.Dir(to), ".diskhook-export-*")
	if err != nil {
		err = failure.Wrap(failure.Precondition, fmt.Errorf("%s: export: %w", d, err))
		return failure.Hint(err, "name a file in a directory that exists and can be written to")
	}
	defer func() {
		_ = os.RemoveAll(private)
		if err != nil {
			err = fmt.Errorf("%s: export: %w", d, err)
		}
	}()
	partial := filepath.Join(private, "disk")
	layers, size := r.layers(c), c.Size
	if r.Overlay != nil {
		size = r.Size
		observed := []Observed{{Disk: d, Receipt: &r, Copy: c}}
		if s.lookBelow(ctx, observed); observed[0].Below != nil {
			return observed[0].Below
		}
	}
	img := qemuimg.QemuImg{Run: s.Run}
	if err := img.Convert(ctx, qemuimg.ConvertOptions{Source: layers, Target: partial, TargetFormat: format, Progress: notify, Total: size}); err != nil {
		return err
	}
	equal, err := img.Compare(ctx, layers, []imagecheck.Layer{{Path: partial, Format: format}})
	if err != nil {
		return err
	}
	if !equal {
		return failure.New(failure.Problems, "%s differs from %s after it was written", partial, c)
	}
	if err := flushFile(partial); err != nil {
		return err
	}
	// Link, unlike rename, fails when somebody made the file meanwhile.
	if err := os.Link(partial, to); err != nil {
		return err
	}
	return atomicfile.Sync(filepath.Dir(to))
}

// readyToRead finds the copy ready, active and not open by anybody.
func (s *Service) readyToRead(ctx context.Context, r Receipt) (Copy, error) {
	d := r.Disk()
	c, err := s.copyOf(ctx, r)
	switch {
	case err != nil:
		return c, err
	case c.State == Absent:
		return c, lost(Observed{Disk: d, Receipt: &r})
	case c.State == Ready && c.UUID != r.Copy:
		return c, foreign(Observed{Disk: d, Copy: c, Receipt: &r})
	case c.State != Ready:
		err := failure.New(failure.Conflict, "%s: %s is %s", d, c, c.State)
		return c, failure.Hint(err, "see `diskhook local status %s`", d.nameArg())
	case c.Active && !s.asFileOpen(c).closed():
		err := failure.New(failure.Conflict, "%s: %s is open: the domain runs", d, c)
		return c, failure.Hint(err, "shut the domain down, then try again")
	}
	if err := s.backend(d).activate(ctx, []Copy{c}); err != nil {
		return c, fmt.Errorf("%s: %w", d, err)
	}
	return c, nil
}

func flushFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Sync(), f.Close())
}
