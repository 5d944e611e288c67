// SPDX-License-Identifier: Apache-2.0

// Package transfer is the one copy engine: it brings the content of a backing
// chain onto a raw block device or file.
//
// Copy makes one promise, on which the end of every UPDATING mark rests: when
// it returns nil, the target reads as the source does, reads zero from there
// to Target.Size, and all of that has reached the disk. Nothing beyond
// Target.Size is touched, and the source is never written.
//
// It takes the first Method that can do it: blocks shared by the file system,
// our own reader of raw files and plain qcow2 clusters, or qemu-img for
// everything else. With a cursor (Options.Cursor) a copy that was stopped, by
// a crash or a reboot too, goes on where it was.
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
// a running QEMU has the source locked for writing or the source changed
// meanwhile, and with the context's error when that ends. That does not wait
// for storage that hangs; see session. After a failure the target holds
// anything, of which a cursor says what is of use.
package transfer

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
)

// Engine copies, where it needs programs with those that Run runs. Log may be
// nil.
type Engine struct {
	Run command.Runner
	Log *slog.Logger

	// CursorEvery is the least time between two cursors that are written: each
	// costs a flush of the target. 0 is 1.5 s.
	CursorEvery time.Duration

	// Of tests; nil is none.
	wrap   func(io.ReaderAt) io.ReaderAt // around layers that the native copy reads
	before func()                        // it writes
}

// Method is how content is copied.
type Method string

// The methods, in the order in which they are tried.
const (
	Reflink Method = "reflink" // the target shares the blocks of the one raw source file
	Native  Method = "native"  // raw files and plain qcow2 clusters are read as they lie
	Ranges  Method = "ranges"  // one qemu-img after the other, each for a range
	Whole   Method = "whole"   // one qemu-img, which cannot be resumed
)

// Source is a chain that imagecheck has accepted.
type Source struct {
	Layers []imagecheck.Layer // top first
	Size   int64              // its virtual size in bytes, a multiple of 512

	// Files, one per layer, are the descriptors through which the headers were
	// inspected (imagecheck.Opened). Nil looks at the paths anew. While Copy
	// runs they are its own: it takes QEMU's image locks on them and switches
	// them to direct I/O.
	Files []*os.File

	// Fingerprint is imagecheck.Info.Fingerprint, which a cursor needs.
	Fingerprint string

	// Present says that the content of the lowest so many layers is in the
	// target already: it is a snapshot or reflink of a copy of them. Fewer
	// than all.
	Present int
}

// Target is where the copy goes, in raw format.
type Target struct {
	Path string // absolute

	// Block says that it is a block device, which must exist. A file that does
	// not exist is made, sparse, mode 0600, owned by Options.User.
	Block bool

	// Zeroed promises that the first Size bytes read zero now; with
	// Source.Present, those beyond the end of the layers that are there. With a
	// cursor that is there it is about the time before the copy began.
	Zeroed bool

	// Size in bytes, at least the source's. What lies beyond is not ours.
	Size int64

	// ID is what this target is, whatever its path: a volume's UUID. A cursor
	// needs it.
	ID string
}

// Options is how to copy.
type Options struct {
	Rate     int64               // bytes per second, 0 is unlimited
	Locks    []*os.File          // held by the writer, so that they outlive the caller with it
	Progress progress.Func       // bytes of Source.Size; may be nil
	User     *command.Credential // reads the source and writes the target; nil is our own
	IOClass  IOClass

	// Only leaves no choice; a Method that cannot do it is a
	// failure.Precondition. "" is what anybody but a test wants.
	Only Method

	// Cursor is the file that makes the copy one that can be resumed; its
	// directory must exist, and survive whatever the copy is to survive. It is
	// written before the target is. One that is found is trusted when it is of
	// the same source, target and method. Otherwise the copy starts over and
	// takes neither Target.Zeroed nor Source.Present for true, as an earlier
	// copy has been there. Without any file both are believed: whoever loses it
	// makes the target anew.
	//
	// With LateCursor the first one is not written before the copy has taken
	// CursorEvery, or is stopped: a copy that takes less costs three flushes of
	// the target and three files less. It is for who makes the target anew where
	// there is no cursor, since that says no more that nothing was written.
	//
	// A copy that succeeds leaves a cursor that says so if it had one before, for a caller that is
	// stopped before it has noted as much. In the end it calls RemoveCursor.
	Cursor     string
	LateCursor bool

	// Verify reads the target back from its storage, and compares: with the sum
	// of what Method Native read while it copied, else with the source, which is
	// read once more. Where they differ it is a failure.Problems, and no later
	// copy goes on with that target.
	Verify bool
}

// Result is what was done with the bytes of Source.Size.
type Result struct {
	Method  Method
	Copied  int64  // written
	Zeroed  int64  // zeroed without writing them one by one
	Skipped int64  // were right already, or are shared
	Resumed int64  // an earlier copy did them
	Digest  string // of what was read back, with Options.Verify
}

// Copy copies source to target as the package comment says.
func (e *Engine) Copy(ctx context.Context, source Source, target Target, o Options) (_ Result, err error) {
	if err := check(source, target, o); err != nil {
		return Result{}, err
	}
	c := &copying{Engine: e, source: source, target: target, o: o}
	defer c.session.close()
	if err := c.open(ctx); err != nil {
		return Result{}, err
	}
	defer func() {
		if c.made && o.Cursor == "" && err != nil {
			_ = os.Remove(target.Path)
		}
	}()
	if err := c.content(ctx); err != nil {
		return Result{}, err
	}
	if err := failpoint.Hit("transfer.converted"); err != nil {
		return Result{}, err
	}
	if err := c.end(ctx); err != nil {
		return Result{}, err
	}
	return c.result, nil
}

func check(source Source, target Target, o Options) error {
	switch {
	case len(source.Layers) == 0:
		return failure.New(failure.Usage, "%s: nothing to copy from", target.Path)
	case source.Size <= 0 || source.Size%512 != 0:
		return failure.New(failure.Usage, "%s: a size of %d bytes is no number of sectors", source.Layers[0].Path, source.Size)
	case len(source.Files) > 0 && len(source.Files) != len(source.Layers):
		return failure.New(failure.Usage, "a source of %d layers and %d open files", len(source.Layers), len(source.Files))
	case source.Present < 0 || source.Present >= len(source.Layers):
		return failure.New(failure.Usage, "%s: %d of %d layers are there already", target.Path, source.Present, len(source.Layers))
	case target.Size < source.Size:
		return failure.New(failure.Precondition, "%s: %d bytes are too small for the %d of %s", target.Path, target.Size, source.Size, source.Layers[0].Path)
	case !filepath.IsAbs(target.Path):
		return failure.New(failure.Usage, "%q: not an absolute path", target.Path)
	}
	if err := o.IOClass.check(); err != nil {
		return err
	}
	return checkCursor(o.Cursor, source, target)
}

// Verify compares source and target and fails when they differ; behind the
// source's end the target has to read zero up to its size.
func (e *Engine) Verify(ctx context.Context, source Source, target Target, user *command.Credential) error {
	q := qemuimg.QemuImg{Run: e.Run, User: user}
	equal, err := q.CompareTarget(ctx, source.Layers, target.Path, target.Size)
	if err != nil {
		return err
	}
	if !equal {
		return differs(source, target)
	}
	return nil
}

func differs(source Source, target Target) error {
	err := failure.New(failure.Problems, "%s: differs from %s", target.Path, source.Layers[0].Path)
	return failure.Hint(err, "check the disks below it (`journalctl -k`), then copy again")
}

func (e *Engine) note(text string) { e.say("copy", "note", text) }
