// SPDX-License-Identifier: Apache-2.0

// Package transfer is the one copy engine: it brings the content of a backing
// chain onto a raw block device or file.
//
// Copy makes one promise, on which the end of every UPDATING mark rests: when
// it returns nil, the target reads as the source does, reads zero from there
// to Target.Size, and all of that has reached the disk. Nothing beyond
// Target.Size is touched, and the source is never written.
//
// Zeros are where copies go wrong. What was in a thick volume before shows
// through every hole that a copy skips; zeros written to a thin volume
// allocate it. So Target.Zeroed is a promise of the caller, true only for a
// new file or a new thin volume without origin in a pool that zeroes. Then
// holes are skipped, in a single pass. The promise is checked where that is
// cheap: a file with data in it is not taken as zero, and a tail that does
// not read zero fails the copy. In all other cases zeros are written.
//
// It fails with failure.NoSpace when the target is full, failure.Conflict when
// a running QEMU has the source locked for writing, and with the context's
// error when that ends, which kills the writer. After a failure the target
// holds anything.
package transfer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
)

// Engine copies with the programs that Run runs. Log may be nil.
type Engine struct {
	Run command.Runner
	Log *slog.Logger
}

// Source is a chain that imagecheck has accepted.
type Source struct {
	Layers []imagecheck.Layer // top first
	Size   int64              // its virtual size in bytes, a multiple of 512

	// Files, one per layer, are the descriptors through which the headers were
	// inspected (imagecheck.Opened); nil opens the paths anew.
	Files []*os.File
}

// Target is where the copy goes, in raw format.
type Target struct {
	Path string // absolute

	// Block says that it is a block device, which must exist. A file that does
	// not exist is made, sparse, mode 0600, owned by Options.User.
	Block bool

	// Zeroed promises that the first Size bytes read zero now.
	Zeroed bool

	// Size in bytes, at least the source's. What lies beyond is not ours.
	Size int64
}

// Options is how to copy.
type Options struct {
	Rate     int64               // bytes per second, 0 is unlimited
	Locks    []*os.File          // inherited by the writer, so that they outlive us with it
	Progress progress.Func       // bytes of Source.Size; may be nil
	User     *command.Credential // reads the source and writes the target; nil is our own

	// Verify compares source and target at the end, which reads both once more.
	Verify bool
}

// Copy copies source to target as the package comment says.
func (e *Engine) Copy(ctx context.Context, source Source, target Target, o Options) (err error) {
	if err := check(source, target); err != nil {
		return err
	}
	f, made, err := e.open(&target, o.User)
	if err != nil {
		return err
	}
	defer f.Close()
	defer func() {
		if made && err != nil {
			_ = os.Remove(target.Path)
		}
	}()
	if err := e.convert(ctx, source, target, o); err != nil {
		return err
	}
	if err := still(f, target.Path); err != nil {
		return err
	}
	if err := failpoint.Hit("transfer.converted"); err != nil {
		return err
	}
	if err := tail(ctx, f, source, target); err != nil {
		return err
	}
	if err := failpoint.Hit("transfer.zeroed"); err != nil {
		return err
	}
	if err := flush(ctx, f, made); err != nil {
		return err
	}
	if err := failpoint.Hit("transfer.flushed"); err != nil {
		return err
	}
	if o.Verify {
		return e.Verify(ctx, source, target, o.User)
	}
	return nil
}

func check(source Source, target Target) error {
	switch {
	case len(source.Layers) == 0:
		return failure.New(failure.Usage, "%s: nothing to copy from", target.Path)
	case source.Size <= 0 || source.Size%512 != 0:
		return failure.New(failure.Usage, "%s: a size of %d bytes is no number of sectors", source.Layers[0].Path, source.Size)
	case target.Size < source.Size:
		return failure.New(failure.Precondition, "%s: %d bytes are too small for the %d of %s", target.Path, target.Size, source.Size, source.Layers[0].Path)
	case !filepath.IsAbs(target.Path):
		return failure.New(failure.Usage, "%q: not an absolute path", target.Path)
	}
	return nil
}

func (e *Engine) convert(ctx context.Context, source Source, target Target, o Options) error {
	q := qemuimg.QemuImg{Run: e.Run, User: o.User}
	c := convertOptions(source, target)
	c.Rate, c.Locks, c.Progress, c.Total, c.Note = o.Rate, o.Locks, o.Progress, source.Size, e.note
	return q.Convert(ctx, c)
}

func convertOptions(source Source, target Target) qemuimg.ConvertOptions {
	return qemuimg.ConvertOptions{
		Source: source.Layers, SourceFiles: source.Files,
		Target: target.Path, TargetFormat: imagecheck.Raw,
		TargetExists: true, TargetSize: source.Size, TargetIsZero: target.Zeroed,
	}
}

// tail makes [source.Size, target.Size) read zero. A guest must not find there
// what the device held before. In a target that was promised to be zero it is
// read instead, since writing zeros would allocate it: were there anything
// else, the promise was wrong, and so would be every hole of the copy.
func tail(ctx context.Context, f *os.File, source Source, target Target) error {
	if !target.Zeroed {
		return blockdev.ZeroRange(ctx, f, source.Size, target.Size-source.Size)
	}
	at, err := firstData(ctx, f, source.Size, target.Size)
	if err != nil {
		return fmt.Errorf("%s: read its end: %w", target.Path, err)
	}
	if at >= 0 {
		err := failure.New(failure.Precondition, "%s: was taken as reading zero, but has data at byte %d", target.Path, at)
		return failure.Hint(err, "if it is a thin volume, let its pool zero new blocks: `lvchange --zero y VG/POOL`")
	}
	return nil
}

// flush brings everything to the disk. It may hang as long as the disk does.
func flush(ctx context.Context, f *os.File, made bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if err := blockdev.Flush(f); err != nil {
		return noSpace(err)
	}
	if made {
		return atomicfile.Sync(filepath.Dir(f.Name()))
	}
	return nil
}

// Explain lists what Copy would do, for dry runs: the command, then what is
// done without one. The target need not exist. Nothing is changed.
func (e *Engine) Explain(source Source, target Target) []string {
	ctx, cancel := context.WithTimeout(context.Background(), explainTimeout)
	defer cancel()
	line, err := qemuimg.Explain(ctx, convertOptions(source, target), target.Block)
	if err != nil {
		return []string{"# refused: " + failure.Line(err)}
	}
	lines := []string{line}
	if rest := target.Size - source.Size; rest > 0 && !target.Zeroed {
		lines = append(lines, fmt.Sprintf("# zero %d bytes at %d of %s", rest, source.Size, target.Path))
	}
	return append(lines, "# flush "+target.Path)
}

// explainTimeout bounds the look at sources on storage that may hang.
const explainTimeout = 10 * time.Second

// Verify compares source and target and fails when they differ; behind the
// source's end the target has to read zero up to its size.
func (e *Engine) Verify(ctx context.Context, source Source, target Target, user *command.Credential) error {
	q := qemuimg.QemuImg{Run: e.Run, User: user}
	equal, err := q.CompareTarget(ctx, source.Layers, target.Path, target.Size)
	if err != nil {
		return err
	}
	if !equal {
		err := failure.New(failure.Problems, "%s: differs from %s", target.Path, source.Layers[0].Path)
		return failure.Hint(err, "check the disks below it (`journalctl -k`), then copy again")
	}
	return nil
}

func (e *Engine) note(text string) {
	if e.Log != nil {
		e.Log.Info("copy", "note", text)
	}
}
