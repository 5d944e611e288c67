// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// FlattenOptions say what to read into an image.
type FlattenOptions struct {
	// Chain is the image and what it lies on, top first; all of them are read as
	// declared.
	Chain    []imagecheck.Layer
	Size     int64 // virtual size of the image, in bytes
	Rate     int64 // bytes per second; 0 is no limit
	Progress progress.Func
	Locks    []*os.File // inherited
}

// flattenChunk is how much is read in before it is flushed, flattenPiece how
// much at once: what is zero all over one is not written.
const (
	flattenChunk = 64 << 20
	flattenPiece = 1 << 20
)

// Flatten reads into the top image all that it takes from the layers below it.
// What the image has already is left alone, so one that was interrupted goes
// on where it was. The layers stay in the header; see RemoveBacking.
//
// This is what `qemu-img rebase -b ""` does, but that keeps what it knows of
// the clusters it wrote in memory until it ends: of one that is killed next to
// nothing stays. So it is done by pieces, through the copy-on-read of qemu-io(1),
// each of which reaches the disk before the next begins.
func (q *QemuImg) Flatten(ctx context.Context, o FlattenOptions) error {
	chain, err := places(ctx, o.Chain, nil, 0)
	if err != nil {
		return err
	}
	image, err := tree(chain)
	if err != nil {
		return err
	}
	f := flatten{q, o, image, cacheOf(chain), time.Now(), 0}
	err = f.run(ctx)
	return classify(o.Chain[0].Path, "read in "+o.Chain[1].Path, err)
}

type flatten struct {
	q     *QemuImg
	o     FlattenOptions
	image string
	cache string
	began time.Time
	moved int64 // bytes that were read in since
}

func (f *flatten) run(ctx context.Context) error {
	chunks := f.chunks()
	has, err := f.allocated(ctx, chunks)
	if err != nil {
		return err
	}
	done := int64(0)
	for i, c := range chunks {
		if has[i] < c.bytes {
			if err := f.read(ctx, c); err != nil {
				return err
			}
			f.moved += c.bytes - has[i]
		}
		done += c.bytes
		if f.o.Progress != nil {
			f.o.Progress(done, f.o.Size)
		}
		if err := f.pace(ctx); err != nil {
			return err
		}
	}
	if has, err = f.allocated(ctx, []chunk{{0, f.o.Size}}); err == nil && has[0] != f.o.Size {
		return fmt.Errorf("it has %d bytes of %d after all was read", has[0], f.o.Size)
	}
	return err
}

type chunk struct{ at, bytes int64 }

// chunks divide the image. With a rate they are of a second at most.
func (f *flatten) chunks() []chunk {
	size := int64(flattenChunk)
	if f.o.Rate > 0 {
		size = min(size, max(1<<20, f.o.Rate/clusterBytes*clusterBytes))
	}
	var all []chunk
	for at := int64(0); at < f.o.Size; at += size {
		all = append(all, chunk{at, min(size, f.o.Size-at)})
	}
	return all
}

// read is the grammar:
//
//	qemu-io -t CACHE -C -c 'read -q OFFSET BYTES' … -c flush IMAGE
//
// -C writes into the image what a read takes from below it.
func (f *flatten) read(ctx context.Context, c chunk) error {
	args := []string{"-t", f.cache, "-C"}
	for at := c.at; at < c.at+c.bytes; at += flattenPiece {
		args = append(args, "-c", fmt.Sprintf("read -q %d %d", at, min(flattenPiece, c.at+c.bytes-at)))
	}
	args = append(args, "-c", "flush", f.image)
	_, err := f.q.Run.Run(ctx, command.Cmd{Name: tool, Args: args, Files: f.o.Locks, User: f.q.User, Limits: copyLimits})
	return err
}

// tool does what qemu-img has no verb for; it comes in one package with it.
const tool = "qemu-io"

// allocated is how many bytes of each chunk the image itself has:
//
//	qemu-io -r IMAGE   with "alloc OFFSET BYTES" on its standard input
//
// which answers "qemu-io> 65536/67108864 bytes allocated at offset 0 bytes".
func (f *flatten) allocated(ctx context.Context, chunks []chunk) ([]int64, error) {
	var ask strings.Builder
	for _, c := range chunks {
		fmt.Fprintf(&ask, "alloc %d %d\n", c.at, c.bytes)
	}
	result, err := f.q.Run.Run(ctx, command.Cmd{
		Name: tool, Args: []string{"-r", "-t", f.cache, f.image},
		Stdin: strings.NewReader(ask.String()), User: f.q.User, Files: f.o.Locks, Limits: copyLimits,
	})
	if err != nil {
		return nil, err
	}
	return parseAllocated(string(result.Stdout), chunks)
}

func parseAllocated(text string, chunks []chunk) ([]int64, error) {
	var has []int64
	for line := range strings.Lines(text) {
		for strings.HasPrefix(line, "qemu-io> ") { // the prompt
			line = strings.TrimPrefix(line, "qemu-io> ")
		}
		answer, rest, _ := strings.Cut(line, " ")
		bytes, of, found := strings.Cut(answer, "/")
		if !found || !strings.HasPrefix(rest, "bytes allocated at ") || len(has) == len(chunks) {
			continue
		}
		n, err := strconv.ParseInt(bytes, 10, 64)
		if err != nil || of != strconv.FormatInt(chunks[len(has)].bytes, 10) {
			break
		}
		has = append(has, n)
	}
	if len(has) != len(chunks) {
		return nil, fmt.Errorf("%s: alloc: not understood: %q", tool, failure.OneLine(text[:min(len(text), 200)]))
	}
	return has, nil
}

// pace waits until what was read in is no more than the rate allows.
func (f *flatten) pace(ctx context.Context) error {
	if f.o.Rate > 0 {
		due := f.began.Add(time.Duration(float64(f.moved) / float64(f.o.Rate) * float64(time.Second)))
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(due)):
		}
	}
	return context.Cause(ctx)
}
