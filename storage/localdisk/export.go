// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
)

// ExportOptions say what Export makes.
type ExportOptions struct {
	To     string // absolute path of the new file
	Format string // raw or qcow2
	Rate   int64  // bytes per second that are read at most; 0 is unlimited

	Progress progress.Func // may be nil
}

// Export writes the disk as its guest left it to a new file, as raw or qcow2,
// sparse, and compares it with the copy before it gets its name. The domain
// must not run. A file that is there already is a failure.Conflict. Whatever
// goes wrong, nothing is left of it; what a kill leaves is taken by gc.
func (s *Service) Export(ctx context.Context, domain, key string, o ExportOptions) error {
	l, err := s.lockOne(ctx, domain, key)
	if err != nil {
		return err
	}
	defer l.Release()
	r, err := s.exported(domain, key)
	if err != nil {
		return err
	}
	return s.export(ctx, l, *r, o)
}

// exported is the receipt of a copy that can be exported.
func (s *Service) exported(domain, key string) (*Receipt, error) {
	r, err := ReadReceipt(s.Layout, domain, key)
	if err == nil && r == nil {
		err = failure.New(failure.NotFound, "%s: no local copy", s.known(domain, key))
	}
	return r, err
}

// ExportCommands lists what Export would run and write, for a dry run. It
// changes nothing, and refuses what Export would refuse.
func (s *Service) ExportCommands(ctx context.Context, domain, key string, o ExportOptions) ([]string, error) {
	if err := validKey(domain, key); err != nil {
		return nil, err
	}
	r, err := s.exported(domain, key)
	if err != nil {
		return nil, err
	}
	if err := s.Idle(ctx, domain, key); err != nil {
		return nil, err
	}
	found, err := s.readable(ctx, *r)
	if err != nil {
		return nil, err
	}
	if err := isNew(o.To); err != nil {
		return nil, err
	}
	c := found.Copy
	var lines []string
	if !c.Active {
		lines = s.backend(r.Disk()).explain(ctx, Use, r.Disk(), c, 0, nil)
	}
	partial := filepath.Join(filepath.Dir(o.To), exportFolder+"ID", "disk")
	convert, err := qemuimg.Explain(ctx, qemuimg.ConvertOptions{Source: r.layers(c), Target: partial, TargetFormat: o.Format, Rate: o.Rate}, false)
	if err != nil { // the node of a volume that is not active
		convert = fmt.Sprintf("# qemu-img convert of %s to %s as %s", c.Path, partial, o.Format)
	}
	return append(lines, convert, "# flush it, read it back and compare it with "+c.Path, command.Quote([]string{"mv", "-n", "--", partial, o.To})), nil
}

func isNew(file string) error {
	if _, err := os.Lstat(file); err == nil {
		return failure.Hint(failure.New(failure.Conflict, "%s: exists", file), "name a file that does not exist")
	}
	return nil
}

// exportFormat is the format that a file name asks for; the CLI refuses names
// that ask for another.
func exportFormat(to string) string {
	if strings.HasSuffix(to, ".qcow2") {
		return "qcow2"
	}
	return "raw"
}

// writeExport makes the file. The locks live as long as what writes does.
func (s *Service) writeExport(ctx context.Context, locks []*os.File, r Receipt, o ExportOptions) (err error) {
	d, to, format := r.Disk(), o.To, o.Format
	c, err := s.readyToRead(ctx, r)
	if err != nil {
		return err
	}
	defer s.deactivateIdle(&group{backend: s.backend(d), copies: []Copy{c}})
	if err := isNew(to); err != nil {
		return err
	}
	folder, err := s.exportFolder(r, to)
	if err != nil {
		err = failure.Wrap(failure.Precondition, fmt.Errorf("%s: export: %w", d, err))
		return failure.Hint(err, "name a file in a directory that exists and can be written to")
	}
	defer func() {
		if left := folder.remove(); left != nil {
			s.Log.Warn("export: clean up; `diskhook local gc` does", "err", left)
		}
		if err != nil {
			err = during(d, "export", err)
		}
	}()
	partial := folder.disk()
	layers, size := r.layers(c), c.Size
	if r.Overlay != nil {
		size = r.Size
		observed := []Observed{{Disk: d, Receipt: &r, Copy: c}}
		if s.lookBelow(ctx, observed); observed[0].Below != nil {
			return observed[0].Below
		}
	}
	// A kill of this process ends the reading, too: it would keep the domain from
	// its disk, for nothing. Should storage that hangs keep it, gc leaves the
	// folder alone for as long.
	img := qemuimg.QemuImg{Run: s.Run, Death: syscall.SIGKILL}
	if err := img.Convert(ctx, qemuimg.ConvertOptions{
		Source: layers, Target: partial, TargetFormat: format, Rate: o.Rate,
		Locks: locks, Progress: o.Progress, Total: size,
	}); err != nil {
		return err
	}
	if err := failpoint.Hit("export.written"); err != nil {
		return err
	}
	// First: what is compared is what the disk has.
	if err := flushFile(partial); err != nil {
		return err
	}
	equal, err := img.Compare(ctx, layers, []imagecheck.Layer{{Path: partial, Format: format}})
	if err != nil {
		return err
	}
	if !equal {
		err := failure.New(failure.Problems, "%s differs from %s after it was written", partial, c)
		return failure.Hint(err, "check the disks below both (`journalctl -k`), then export it again")
	}
	if err := atomicfile.Name(partial, to); err != nil {
		return err
	}
	if err := failpoint.Hit("export.named"); err != nil {
		return err
	}
	return atomicfile.Sync(filepath.Dir(to))
}

// readyToRead finds the copy ready and not open by anybody, and activates it.
func (s *Service) readyToRead(ctx context.Context, r Receipt) (Copy, error) {
	o, err := s.readable(ctx, r)
	c := o.Copy
	if err != nil {
		return c, err
	}
	if err := s.backend(o.Disk).activate(ctx, o.nodes()); err != nil {
		return c, fmt.Errorf("%s: %w", o.Disk, err)
	}
	for _, node := range o.nodes() {
		if err := node.awaitNode(ctx); err != nil {
			return c, fmt.Errorf("%s: %w", o.Disk, err)
		}
	}
	return c, nil
}

// readable is the copy that r names, ready and not open by anybody, on what its
// receipt says.
func (s *Service) readable(ctx context.Context, r Receipt) (Observed, error) {
	d := r.Disk()
	o, err := s.foundBy(ctx, r)
	c := o.Copy
	switch {
	case err != nil:
		return o, err
	case c.State == Absent:
		return o, lost(Observed{Disk: d, Receipt: &r})
	case c.State == Ready && c.UUID != r.Copy:
		return o, foreign(Observed{Disk: d, Copy: c, Receipt: &r})
	case c.State != Ready:
		err := failure.New(failure.Conflict, "%s: %s is %s", d, c, c.State)
		return o, failure.Hint(err, "see `diskhook local status %s`", d.NameArg())
	case r.Pivot != nil && r.Overlay != nil:
		err := failure.New(failure.Conflict, "%s: a change to a raw copy was interrupted, which may have newer data than %s", d, c)
		return o, failure.Hint(err, "run `diskhook local settle --raw %s`, then try again", d.args())
	case o.Below != nil:
		return o, o.Below
	case c.Active && !s.asFileOpen(c).closed():
		err := failure.New(failure.Conflict, "%s: %s is open: the domain runs, or something else reads it", d, c)
		return o, failure.Hint(err, "shut the domain down, or end what has it open (`lsof %s`), then try again", c.Path)
	}
	return o, nil
}

// flushFile brings a file to its disk, from where it is read next: on storage
// without direct I/O the page cache has nothing of it any more.
func flushFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(0o600), f.Sync())
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	return errors.Join(err, f.Close())
}
