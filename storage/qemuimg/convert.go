// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// ConvertOptions say what to copy where.
type ConvertOptions struct {
	Source []imagecheck.Layer // declared chain, top first

	// SourceFiles, one per layer, are open descriptors (imagecheck.Open) to
	// read through instead of the paths: what was inspected is then what is
	// read, whatever happens to the names meanwhile.
	SourceFiles []*os.File

	Target       string // absolute path
	TargetFormat string // imagecheck.Raw or imagecheck.QCOW2

	// TargetExists writes into what is there (a block device, a file) and
	// creates nothing; it must be large enough. Otherwise Target must not
	// exist, and becomes a new file.
	TargetExists bool

	// TargetSize limits an existing raw target to its first bytes, a multiple
	// of 512; 0 is all of it. What lies beyond is not touched.
	TargetSize int64

	// Offset and Length limit the copy to a range of the virtual disk, which goes
	// to the same place of an existing raw target; TargetSize then says nothing.
	// Length 0 copies all.
	Offset, Length int64

	// TargetIsZero promises that an existing target reads zero everywhere, so
	// that no zeros are written. A false promise gives a wrong copy.
	TargetIsZero bool

	Rate int64 // bytes per second, 0 is unlimited

	// Locks are inherited, so that they live as long as the writing.
	Locks []*os.File

	Progress progress.Func // may be nil
	Total    int64         // virtual size in bytes, for Progress

	// Note is told, in a sentence, what was done otherwise than asked; may be nil.
	Note func(string)
}

// Convert copies the content of a chain. The target has been flushed once by
// qemu-img when it returns nil; whoever relies on it flushes and checks again.
func (q *QemuImg) Convert(ctx context.Context, o ConvertOptions) error {
	version, err := q.Version(ctx)
	if err != nil {
		return err
	}
	chain, err := places(ctx, o.Source, o.SourceFiles, 3+len(o.Locks))
	if err != nil {
		return err
	}
	target, err := o.target()
	if err != nil {
		return err
	}
	args, err := convertArgs(o, version, chain, target)
	if err != nil {
		return err
	}
	cmd := command.Cmd{
		Name: program, Args: args, User: q.User, Limits: copyLimits, Death: q.Death,
		Files: append(append([]*os.File(nil), o.Locks...), o.SourceFiles...),
	}
	if o.Progress != nil {
		cmd.Stdout = &meter{total: o.Total, report: o.Progress}
	}
	_, err = q.Run.Run(ctx, cmd)
	return classify(o.Target, "copy from "+o.Source[0].Path, err)
}

// Explain is the command that Convert would run for an existing target with
// the newest qemu-img, quoted for a shell. Only the source's nodes are looked
// at. block says whether the target, which need not exist yet, is a device.
func Explain(ctx context.Context, o ConvertOptions, block bool) (string, error) {
	chain, err := places(ctx, o.Source, nil, 0)
	if err != nil {
		return "", err
	}
	target := place{Layer: imagecheck.Layer{Path: o.Target, Format: o.TargetFormat}, block: block, direct: true}
	args, err := convertArgs(o, Version{Major: math.MaxInt}, chain, target)
	return command.Cmd{Name: program, Args: args}.String(), err
}

// target looks at where the copy goes.
func (o ConvertOptions) target() (place, error) {
	l := imagecheck.Layer{Path: o.Target, Format: o.TargetFormat}
	if o.TargetExists {
		return look(l, o.Target)
	}
	switch _, err := os.Lstat(o.Target); {
	case err == nil:
		err := failure.New(failure.Conflict, "%s: exists", o.Target)
		return place{}, failure.Hint(err, "name a file that does not exist, or remove it")
	case !errors.Is(err, fs.ErrNotExist):
		return place{}, err
	case !filepath.IsAbs(o.Target):
		return place{}, failure.New(failure.Usage, "%q: not an absolute path", o.Target)
	}
	// A nameless file tells whether the directory's file system can do direct I/O.
	fd, err := unix.Open(filepath.Dir(o.Target), unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err == nil {
		_ = unix.Close(fd)
	}
	return place{Layer: l, direct: err == nil}, nil
}

// convertArgs is the grammar:
//
//	convert -p -t CACHE -T CACHE [-n [--target-is-zero]] [-W -m N] [-r RATE] -O FORMAT -- SOURCE TARGET
//
// -t: the default, unsafe, never flushes. -W writes out of order with -m
// coroutines, which helps on storage with latency, and spreads compressed
// clusters over the processors. A new file would fragment by it.
func convertArgs(o ConvertOptions, version Version, chain []place, target place) ([]string, error) {
	note := func(format string, args ...any) {
		if o.Note != nil {
			o.Note(fmt.Sprintf(format, args...))
		}
	}
	source, err := o.source(chain)
	if err != nil {
		return nil, err
	}
	cacheSource, cacheTarget := cacheOf(chain), cacheOf([]place{target})
	if cacheSource != "none" {
		note("%s: its storage has no direct I/O, it is read through the page cache", o.Source[0].Path)
	}
	if cacheTarget != "none" {
		note("%s: its storage has no direct I/O, it is written through the page cache", o.Target)
	}
	args := []string{"convert", "-p", "-t", cacheTarget, "-T", cacheSource}
	into := o.Target
	if o.TargetExists {
		args = append(args, "-n")
		if o.TargetFormat == imagecheck.Raw {
			if into, err = o.within(target); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case !o.TargetIsZero:
	case !o.TargetExists:
		return nil, failure.New(failure.Usage, "%s: a new file needs no promise of zeros", o.Target)
	case version.targetIsZero():
		args = append(args, "--target-is-zero")
	default:
		note("qemu-img %s has no --target-is-zero: zeros are written", version)
	}
	if o.TargetExists && o.TargetFormat == imagecheck.Raw {
		args = append(args, "-W", "-m", "16")
	}
	if o.Rate > 0 {
		if !version.rateLimit() {
			err := failure.New(failure.Precondition, "qemu-img %s cannot limit its rate, 5.2 can", version)
			return nil, failure.Hint(err, "unset [local] rate, or install a newer qemu-img")
		}
		args = append(args, "-r", strconv.FormatInt(o.Rate, 10))
	}
	return append(args, "-O", o.TargetFormat, "--", source, into), nil
}

// source is the chain, or the range of it that is wanted.
func (o ConvertOptions) source(chain []place) (string, error) {
	whole, err := tree(chain)
	if err != nil || o.Length == 0 {
		return whole, err
	}
	size := o.Length
	if o.Offset+size >= o.Total {
		size = 0 // to the end: a raw file may end within the last sector
	}
	n, err := encode(rangeNode{Driver: imagecheck.Raw, Offset: o.Offset, Size: size, File: json.RawMessage(strings.TrimPrefix(whole, "json:"))})
	return "json:" + string(n), err
}

// within is the existing raw target.
func (o ConvertOptions) within(target place) (string, error) {
	if o.Length > 0 {
		return within(target, o.Offset, o.Length)
	}
	return within(target, 0, o.TargetSize)
}

// within is an existing raw target of which only size bytes at offset may be
// touched: to make a target read zero, qemu-img clears all that it sees.
func within(target place, offset, size int64) (string, error) {
	n, err := encode(node{Driver: imagecheck.Raw, Offset: offset, Size: size, File: target.file()})
	return "json:" + string(n), err
}
