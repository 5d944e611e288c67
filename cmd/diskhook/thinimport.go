// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/stream"
)

func thinImportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "from", Usage: "FILE is a stream of this cluster's, `NAME`, whose volume group this host sees"},
		&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "without --from: FILE is an image of this `FORMAT`, vhd or raw"},
		&cli.StringFlag{Name: "name", Usage: "call the new volume `VOLUME` (default: as the one of the stream)"},
		&cli.BoolFlag{Name: "move", Usage: "with --from: delete the volume there once it is here"},
	}
}

// intake is what is to be imported.
type intake struct {
	name       string
	source     string // stream.Intake's
	size, need uint64 // bytes
	from       string // for people
	fill       func(context.Context, io.WriterAt) error
	// fits refuses what is not to be imported as things are now; nil refuses nothing.
	fits func(context.Context) error
	// after is what is to be done once the volume is complete; nil is nothing.
	after func(context.Context) error
	close func() error
}

func thinImport(p *program, c *cli.Context) (err error) {
	f, t, words, err := thinMemberArgs(p, c, "FILE")
	if err != nil {
		return err
	}
	r := p.reporter(f)
	defer r.close()
	open := p.openImage
	if c.String("from") != "" {
		open = p.openStream
	}
	in, err := open(c, words[0], r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.close()) }()
	if name := c.String("name"); name != "" {
		in.name = name
	}
	if in.name == "" {
		return see(c, failure.New(failure.Usage, "--name is missing: what the volume is to be called"))
	}
	if err := validVolume(in.name); err != nil {
		return err
	}
	i := stream.Importer{
		Host: intakeHost{t}, Cluster: t.thinCluster.Name, Notes: filepath.Join(t.layout.State(), "thin", t.thinCluster.Name+".imports"), Locks: t.layout.Locks(),
	}
	whole, err := i.Whole(in.name, in.source)
	if err == nil && !whole && in.fits != nil {
		err = in.fits(c.Context)
	}
	if err == nil && c.Bool("dry-run") {
		err = i.Available(c.Context, in.name)
	}
	if err != nil {
		return err
	}
	steps := t.ask("make volume %s of %d bytes, and fill it from %s", in.name, in.size, in.from)
	if whole {
		steps = []string{"# detach volume " + in.name + ", which was filled before"}
	}
	if in.after != nil {
		steps = append(steps, "# delete "+in.from)
	}
	return t.change(p, c, f, thinVolume(in.name), steps, func(ctx context.Context) (string, error) {
		return "imported", i.Import(ctx, stream.Intake{
			Name: in.name, Source: in.source, Size: in.size, Need: in.need, After: in.after,
			Fill: func(to io.WriterAt) error { return in.fill(ctx, to) },
		})
	})
}

// openStream reads a stream of another cluster, or of this one.
func (p *program) openStream(c *cli.Context, file string, r *reporter) (*intake, error) {
	if c.String("format") != "" {
		return nil, see(c, failure.New(failure.Usage, "--format is for images, --from for streams"))
	}
	from, err := p.thinCluster(c.String("from"))
	if err != nil {
		return nil, err
	}
	s, err := p.readStream(file)
	if err != nil {
		return nil, err
	}
	in := &intake{
		name: s.Name, size: s.Mapping.Size, need: s.Mapping.Blocks() * s.Mapping.BlockSize, from: "volume " + s.Name + " of cluster " + from.Name,
		source: fmt.Sprintf("volume %s of cluster %s, generation %d", s.Volume, s.Cluster, s.Generation),
		close:  func() error { return nil },
	}
	in.fits = func(ctx context.Context) error {
		m, err := from.readMap(ctx)
		if err != nil {
			return err
		}
		return s.Fits(from.UUID, m)
	}
	in.fill = func(ctx context.Context, to io.WriterAt) error {
		return from.streams().Read(ctx, s, func(contents stream.Contents) error {
			return contents.Copy(ctx, to, r.work(in.from))
		})
	}
	if !c.Bool("move") {
		return in, nil
	}
	if s.State == stream.Suspect {
		err := failure.New(failure.Conflict, "volume %s: it is suspect, and its original is not deleted before somebody has looked at the copy", s.Name)
		return nil, failure.Hint(err, "import it without --move")
	}
	there, err := from.member(c.Context)
	if err != nil {
		return nil, err
	}
	// Whoever attached it meanwhile may have written to it.
	in.after = func(ctx context.Context) error { return there.DeleteUnused(ctx, s.Volume, s.Generation) }
	return in, nil
}

func (p *program) readStream(file string) (stream.Stream, error) {
	if file == "-" {
		return stream.Read(p.stdin)
	}
	f, err := openIntake(file)
	if err != nil {
		return stream.Stream{}, err
	}
	defer f.Close()
	return stream.Read(f)
}

// openIntake opens what is to be imported; a directory is nothing of that.
func openIntake(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.Wrap(failure.NotFound, err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = failure.New(failure.Precondition, "%s: it is a directory", path)
		err = failure.Hint(err, "name the file in it: with --from a stream of `diskhook thin export`, else an image of a disk")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openImage opens an image of a disk.
func (p *program) openImage(c *cli.Context, file string, r *reporter) (*intake, error) {
	if c.Bool("move") {
		return nil, see(c, failure.New(failure.Usage, "--move needs --from"))
	}
	kind, err := stream.ParseFormat(c.String("format"), stream.VHD, stream.Raw)
	if err != nil {
		return nil, failure.Hint(err, "say what it is: --format vhd or raw for an image, --from CLUSTER for a stream")
	}
	f, err := openIntake(file)
	if err != nil {
		return nil, err
	}
	length, err := blockdev.Size(f)
	var contents stream.Contents
	switch {
	case err != nil:
	case kind == stream.VHD:
		contents, err = stream.OfVHD(f, length)
	default:
		contents, err = stream.OfRaw(f, length)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	in := &intake{size: uint64(contents.Size), from: file, close: f.Close}
	in.source = fmt.Sprintf("image %q of %d bytes, written %s", file, length, info.ModTime().UTC().Format(time.RFC3339Nano))
	for _, x := range contents.Ranges {
		in.need += uint64(x.Length)
	}
	in.fill = func(ctx context.Context, to io.WriterAt) error { return contents.Copy(ctx, to, r.work(file)) }
	return in, nil
}

// intakeHost is this host as an import sees it.
type intakeHost struct{ *thinMember }

func (h intakeHost) Create(ctx context.Context, id uuid.UUID, name string, bytes uint64) error {
	return h.Member.Create(ctx, id, name, bytes)
}

func (h intakeHost) Attach(ctx context.Context, name string) (string, error) {
	return h.Member.Attach(ctx, name, member.AttachOptions{})
}

func (h intakeHost) Detach(ctx context.Context, name string) error { return h.Member.Detach(ctx, name) }
func (h intakeHost) Delete(ctx context.Context, name string) error { return h.Member.Delete(ctx, name) }

// Reserve counts a quantum more than is asked for: what other volumes of this host
// write meanwhile comes from the same pool.
func (h intakeHost) Reserve(ctx context.Context, bytes uint64) error {
	need := cluster.BlocksFor(h.known, bytes) + cluster.Quantum(h.known)
	slack, err := h.Use(ctx)
	if err != nil || slack.Free >= need {
		return err
	}
	_, err = h.Request(ctx, need-slack.Free)
	return err
}

func (h intakeHost) Find(ctx context.Context, name string) (stream.Found, bool, error) {
	m, err := h.readMap(ctx)
	if err != nil {
		return stream.Found{}, false, err
	}
	v, err := cluster.Volume(m, name)
	if errors.Is(err, failure.NotFound) {
		return stream.Found{}, false, nil
	}
	return stream.Found{ID: v.UUID, Generation: v.Generation}, err == nil, err
}
