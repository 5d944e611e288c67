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
	Chain []imagecheck.Layer
	Size  int64 // virtual size of the image, in bytes
	// Only is what of the image is wanted, in order; nil is all of it.
	Only     []Range
	Rate     int64 // bytes per second that are read from below; 0 is no limit
	Progress progress.Func
	Locks    []*os.File // inherited
}

// Range is a part of a virtual disk, in bytes.
type Range struct{ Offset, Length int64 }

// flattenChunk is how much is read in before it is flushed, flattenPiece how
// much at once: what is zero all over one is not written. flattenReads bounds
// how many reads one command line has.
const (
	flattenChunk = 64 << 20
	flattenPiece = 1 << 20
	flattenReads = 1024
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
	f := flatten{q: q, o: o, image: image, cache: cacheOf(chain)}
	if err = f.look(ctx); err == nil {
		err = f.run(ctx)
	}
	return classify(o.Chain[0].Path, "read in "+o.Chain[1].Path, err)
}

type flatten struct {
	q     *QemuImg
	o     FlattenOptions
	image string
	cache string

	below []Range // where layers below have data; only with a rate
	began time.Time
	moved int64 // bytes of theirs that were read since
}

// look finds out what is to be read from below: zeros and holes are not, and
// count for no rate.
func (f *flatten) look(ctx context.Context) error {
	if f.o.Rate > 0 {
		extents, err := f.q.Map(ctx, f.o.Chain, nil)
		if err != nil {
			return err
		}
		for _, x := range extents {
			if x.Depth > 0 && x.Data && !x.Zero {
				f.below = append(f.below, Range{x.Start, x.Length})
			}
		}
	}
	f.began = time.Now()
	return nil
}

// moves is how many bytes reading the chunks in takes from below. Those below
// them are not asked for any more: chunks come in order.
func (f *flatten) moves(chunks []chunk) (n int64) {
	for _, c := range chunks {
		for len(f.below) > 0 {
			b := f.below[0]
			n += max(0, min(b.Offset+b.Length, c.at+c.bytes)-max(b.Offset, c.at))
			if b.Offset+b.Length > c.at+c.bytes {
				break
			}
			f.below = f.below[1:]
		}
	}
	return n
}

func (f *flatten) run(ctx context.Context) error {
	wanted := f.wanted()
	chunks := f.chunks(wanted)
	has, err := f.allocated(ctx, chunks)
	if err != nil {
		return err
	}
	total, done := sum(chunks), int64(0)
	for len(chunks) > 0 {
		n := f.batch(chunks)
		batch := chunks[:n]
		if sum(batch) > added(has[:n]) {
			if err := f.read(ctx, batch); err != nil {
				return err
			}
		}
		f.moved += f.moves(batch)
		chunks, has = chunks[n:], has[n:]
		done += sum(batch)
		if f.o.Progress != nil {
			f.o.Progress(done, total)
		}
		if err := f.pace(ctx); err != nil {
			return err
		}
	}
	if has, err = f.allocated(ctx, wanted); err == nil && added(has) != total {
		return fmt.Errorf("it has %d bytes of %d after all was read", added(has), total)
	}
	return err
}

// chunk is a part of the image that is read in, or not, as a whole.
type chunk struct{ at, bytes int64 }

func sum(chunks []chunk) (n int64) {
	for _, c := range chunks {
		n += c.bytes
	}
	return n
}

func added(all []int64) (n int64) {
	for _, b := range all {
		n += b
	}
	return n
}

func (f *flatten) wanted() []chunk {
	if f.o.Only == nil {
		return []chunk{{0, f.o.Size}}
	}
	var all []chunk
	for _, r := range f.o.Only {
		if n := min(r.Length, f.o.Size-r.Offset); n > 0 {
			all = append(all, chunk{r.Offset, n})
		}
	}
	return all
}

// chunks divide what is wanted.
func (f *flatten) chunks(wanted []chunk) []chunk {
	size := f.most()
	var all []chunk
	for _, w := range wanted {
		for at, end := w.at, w.at+w.bytes; at < end; at += size {
			all = append(all, chunk{at, min(size, end-at)})
		}
	}
	return all
}

// most is how much is read in at once. With a rate it is of a second at most.
func (f *flatten) most() int64 {
	if f.o.Rate > 0 {
		return min(flattenChunk, max(1<<20, f.o.Rate/clusterBytes*clusterBytes))
	}
	return flattenChunk
}

// batch is how many of the next chunks one command reads.
func (f *flatten) batch(chunks []chunk) int {
	var bytes, reads int64
	for i, c := range chunks {
		bytes += c.bytes
		reads += (c.bytes + flattenPiece - 1) / flattenPiece
		if i > 0 && (bytes > f.most() || reads > flattenReads) {
			return i
		}
	}
	return len(chunks)
}

// read is the grammar:
//
//	qemu-io -t CACHE -C -c 'read -q OFFSET BYTES' … -c flush IMAGE
//
// -C writes into the image what a read takes from below it.
func (f *flatten) read(ctx context.Context, chunks []chunk) error {
	args := []string{"-t", f.cache, "-C"}
	for _, c := range chunks {
		for at := c.at; at < c.at+c.bytes; at += flattenPiece {
			args = append(args, "-c", fmt.Sprintf("read -q %d %d", at, min(flattenPiece, c.at+c.bytes-at)))
		}
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
