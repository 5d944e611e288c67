// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/stream"
)

func thinExportVerbs(p *program) []*cli.Command {
	return []*cli.Command{
		p.thinVerb("export", "write the block addresses of a volume, or with --format vhd what it holds", "VOLUME [FILE]", thinExport,
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: string(stream.Text), Usage: "`FORMAT` of the stream: text, json, xml (as thin_dump), or vhd, the data themselves"},
			dryRunFlag()),
		p.memberVerb("import", "make a volume of a stream, or of an image", "FILE", thinImport, thinImportFlags()...),
	}
}

func thinExport(p *program, c *cli.Context) error {
	f, t, words, err := thinArgs(p, c, "VOLUME", "[FILE]")
	if err != nil {
		return err
	}
	kind, err := stream.ParseFormat(c.String("format"), stream.Text, stream.JSON, stream.XML, stream.VHD)
	if err != nil {
		return err
	}
	s, err := t.streams().Export(c.Context, words[0], t.live)
	if err != nil {
		return err
	}
	write := func(w io.Writer) error { return s.Write(w, kind) }
	if kind == stream.VHD {
		write = func(w io.Writer) error { return t.writeVHD(c.Context, s, w) }
	}
	to := words[1]
	if to == "" || to == "-" {
		if c.Bool("dry-run") {
			return p.change(f, true, thinVolume(s.Name), []string{fmt.Sprintf("# write %s of %s to standard output", kind, s.Name)}, nil)
		}
		if kind == stream.VHD && isTerminal(p.stdout) {
			return failure.Hint(failure.New(failure.Usage, "an image does not go to a terminal"), "name a file: `diskhook thin export --format vhd %s %s.vhd`", s.Name, s.Name)
		}
		return write(p.stdout)
	}
	if err := atomicfile.Absent(to); err != nil {
		return err
	}
	return p.change(f, c.Bool("dry-run"), thinVolume(s.Name), []string{"# write " + to}, func() (string, error) {
		return "exported to " + to, atomicfile.New(to, write)
	})
}

// live tells what this host maps for a volume that is attached to it.
func (t *thinCluster) live(ctx context.Context, v layout.VolumeRecord) (layout.VolumeRecord, layout.Mapping, error) {
	m, err := t.member(ctx)
	if err != nil {
		return v, layout.Mapping{}, err
	}
	mapping, now, err := m.Mapping(ctx, v.Name)
	return now, mapping, err
}

// writeVHD writes what an offline volume holds. The image is complete only if the
// volume stayed offline until its end.
func (t *thinCluster) writeVHD(ctx context.Context, s stream.Stream, w io.Writer) error {
	return t.streams().Read(ctx, s, func(contents stream.Contents) error {
		return contents.WriteVHD(ctx, w, s.Volume, time.Now())
	})
}
