// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/quorum"
)

func buildFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "replicas", Aliases: []string{"r"}, Usage: "files, devices and NBD URLs of the replicas: `A,B,C` (repeatable)"},
		&cli.IntFlag{Name: "threshold", Aliases: []string{"t"}, Usage: "how many replicas must agree: `N`"},
		&cli.StringFlag{Name: "from", Usage: "fill them with the content of this `IMAGE`"},
		&cli.StringFlag{Name: "from-format", Usage: "`FORMAT` of that image: raw or qcow2 (default: by its name, else raw)"},
		&cli.StringFlag{Name: "size", Aliases: []string{"s"}, Usage: "without --from: a disk of `SIZE` with zeros"},
		replicaFormatFlag(),
		&cli.StringFlag{Name: "read-pattern", Usage: "`PATTERN`: quorum (all replicas are read and vote) or fifo (the first is believed)"},
		&cli.BoolFlag{Name: "allow-minority", Usage: "accept a threshold of half the replicas or less, or the pattern fifo"},
		&cli.BoolFlag{Name: "adopt", Usage: "take images that exist as they are, once they are found to be equal"},
		overwriteFlag(), dryRunFlag(),
	}
}

func quorumBuild(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "NAME")
	if err != nil {
		return err
	}
	b, err := building(c, s, words[0])
	if err != nil {
		return err
	}
	steps, err := s.quorum.ExplainBuild(c.Context, b)
	if err != nil {
		return err
	}
	return p.change(f, c.Bool("dry-run"), replicaSet(b.Name), steps, func() (string, error) {
		r := p.reporter(f)
		defer r.close()
		b.Progress = r.work("replica set " + b.Name)
		set, err := s.quorum.Build(c.Context, b)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("built: %d replicas of %s, threshold %d", len(set.Replicas), size(set.Size), set.Threshold), nil
	})
}

// building is what the flags ask for. What they leave open or say twice is
// refused here; whether it can be built, by who builds it.
func building(c *cli.Context, s *services, name string) (quorum.Building, error) {
	b := quorum.Building{
		Name: name, Threshold: c.Int("threshold"), ReadPattern: c.String("read-pattern"),
		AllowMinority: c.Bool("allow-minority"), Overwrite: c.Bool("overwrite"), Adopt: c.Bool("adopt"),
	}
	usage := func(format string, args ...any) error {
		return see(c, failure.New(failure.Usage, format, args...))
	}
	for _, list := range c.StringSlice("replicas") {
		for spec := range strings.SplitSeq(list, ",") {
			l, err := replica(c, spec)
			if err != nil {
				return b, err
			}
			b.Replicas = append(b.Replicas, l)
		}
	}
	from := c.String("from")
	switch {
	case len(b.Replicas) == 0:
		return b, usage("replica set %s: --replicas is missing", name)
	case !c.IsSet("threshold"):
		return b, usage("replica set %s: --threshold is missing: how many of the %d replicas must agree", name, len(b.Replicas))
	case b.Adopt && (from != "" || c.IsSet("size")):
		return b, usage("replica set %s: --adopt takes the images as they are, without --from and --size", name)
	case from != "" && c.IsSet("size"):
		return b, usage("replica set %s: --size is that of the image to copy", name)
	case !b.Adopt && from == "" && !c.IsSet("size"):
		return b, usage("replica set %s: say what is in it: --from IMAGE, --size SIZE for zeros, or --adopt", name)
	}
	var err error
	if text := c.String("size"); text != "" {
		if b.Size, err = host.ParseSize(text); err != nil {
			return b, err
		}
	}
	if from != "" {
		b.From, err = s.imageChain(c.Context, from, c.String("from-format"), "--from-format")
	}
	return b, err
}

// replica reads how a replica is named. A file's format goes by its name.
func replica(c *cli.Context, spec string) (quorum.Layer, error) {
	spec = strings.TrimSpace(spec)
	if spec != "" && !strings.Contains(spec, "://") && !filepath.IsAbs(spec) {
		path, err := absolute(spec)
		if err != nil {
			return quorum.Layer{}, err
		}
		spec = path
	}
	format := c.String("format")
	switch {
	case format != "" && format != imagecheck.Raw && format != imagecheck.QCOW2:
		err := failure.New(failure.Usage, "--format %q: no such format", format)
		return quorum.Layer{}, failure.Hint(err, "use raw or qcow2")
	case format == "" && strings.HasPrefix(spec, "/"):
		var err error
		if format, err = declaredFormat("", spec, "--format"); err != nil {
			return quorum.Layer{}, err
		}
	}
	return quorum.ParseReplica(spec, format)
}

// imageChain is an image with all that lies below it. Its format is declared
// and never guessed from what is in it.
func (s *services) imageChain(ctx context.Context, image, format, flag string) ([]imagecheck.Layer, error) {
	path, err := absolute(image)
	if err != nil {
		return nil, err
	}
	if format, err = declaredFormat(format, path, flag); err != nil {
		return nil, err
	}
	checker := imagecheck.Checker{Allowed: s.config.Paths.Allowed}
	return checker.Discover(ctx, imagecheck.Layer{Path: path, Format: format})
}

func quorumResync(p *program, c *cli.Context) error {
	f, s, set, _, err := setArgs(p, c)
	if err != nil {
		return err
	}
	from := c.String("from")
	behind, served, err := s.quorum.Behind(set.Name)
	if err != nil {
		return err
	}
	if served {
		return p.resyncServed(f, c, s, set, behind)
	}
	var steps []string
	if c.Bool("dry-run") {
		if steps, err = s.quorum.ExplainResync(c.Context, set.Name, quorum.Resyncing{From: from}); err != nil {
			return err
		}
	} else {
		steps = []string{"make all replicas equal"} // where they differ, who resyncs finds out
	}
	var v quorum.Verification
	of := replicaSet(set.Name)
	of.result = func() any { return v }
	return p.change(f, c.Bool("dry-run"), of, steps, func() (string, error) {
		r := p.reporter(f)
		defer r.close()
		v, err = s.quorum.Resync(c.Context, set.Name, quorum.Resyncing{From: from, Progress: r.work("replica set " + set.Name)})
		return repaired(v), err
	})
}

// resyncServed has who serves a set bring those replicas up to date that do not
// vote, while the guest goes on.
func (p *program) resyncServed(f format, c *cli.Context, s *services, set quorum.Set, behind []string) error {
	if from := c.String("from"); from != "" {
		err := failure.New(failure.Conflict, "%s: it is served to a guest, whose disk is what the majority has, and not what %s has", &set, from)
		return failure.Hint(err, "leave --from out, or shut the guest down first")
	}
	var steps []string
	for _, id := range behind {
		r, _ := set.Replica(id)
		steps = append(steps, fmt.Sprintf("write what the majority has to %s, while the guest goes on", r))
	}
	return p.change(f, c.Bool("dry-run"), replicaSet(set.Name), steps, func() (string, error) {
		r := p.reporter(f)
		defer r.close()
		err := s.quorum.ResyncServed(c.Context, set.Name, "", r.work("replica set "+set.Name))
		return "brought up to date, and voting: " + strings.Join(behind, ", "), err
	})
}

func repaired(v quorum.Verification) string {
	if len(v.Differs) == 0 {
		return "its replicas were equal"
	}
	var words []string
	for _, id := range ids(v.Differs) {
		words = append(words, fmt.Sprintf("%s (%s)", id, size(bytesOf(v.Differs[id]))))
	}
	return "repaired " + strings.Join(words, ", ")
}

func quorumReplace(p *program, c *cli.Context) error {
	f, s, set, words, err := setArgs(p, c, "ID", "REPLICA")
	if err != nil {
		return err
	}
	with, err := replica(c, words[2])
	if err != nil {
		return err
	}
	replacing := quorum.Replacing{Old: words[1], New: with, Overwrite: c.Bool("overwrite")}
	steps, err := s.quorum.ExplainReplace(c.Context, set.Name, replacing)
	if err != nil {
		return err
	}
	return p.change(f, c.Bool("dry-run"), replicaSet(set.Name), steps, func() (string, error) {
		r := p.reporter(f)
		defer r.close()
		replacing.Progress = r.work("replica set " + set.Name)
		id, err := s.quorum.Replace(c.Context, set.Name, replacing)
		return replacing.Old + " is replaced by " + id, err
	})
}
