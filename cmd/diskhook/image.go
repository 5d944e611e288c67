// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
)

func imageCommand(p *program) *cli.Command {
	verb := p.verb
	making := func(more ...cli.Flag) []cli.Flag {
		return append(more,
			&cli.StringFlag{Name: "user-data", Usage: "keep this `JSON` with the image (@FILE: of a file), 2 KiB at most"},
			&cli.StringFlag{Name: "strategy", Usage: "what is worth more: space or performance (default: space)"},
			&cli.StringFlag{Name: "request-id", Usage: "the same `ID` again gives the same image, and makes none"},
			&cli.BoolFlag{Name: "no-fix", Usage: "leave the work to `diskhook image resume`, on whatever host"},
			waitFlag(), dryRunFlag())
	}
	searching := func(more ...cli.Flag) []cli.Flag {
		return making(append(more,
			&cli.StringSliceFlag{Name: "repo", Usage: "look for existing images in the target and this `REPO` only (repeatable)"},
			&cli.StringSliceFlag{Name: "hint", Usage: "that image has to be in that repository: `IMAGE=REPO` (repeatable)"})...)
	}
	base := &cli.StringFlag{Name: "base", Usage: "lay it over this snapshot (its `ID`)"}
	holder := func() cli.Flag {
		return &cli.StringFlag{Name: "holder", Usage: "who uses it: a `NAME`, as a domain's UUID"}
	}
	return &cli.Command{
		Name: "image", Usage: "images in storage repositories: virtual disks and snapshots",
		Subcommands: []*cli.Command{
			verb("create", "make a virtual disk", "REPO", imageCreate, searching(base,
				&cli.StringFlag{Name: "size", Usage: "`SIZE` as 10G (default: that of the base)"})...),
			verb("snapshot", "make a snapshot of a virtual disk, which goes on", "REPO/IMAGE", imageSnapshot, making()...),
			verb("copy", "copy an image into a repository", "[REPO/]IMAGE TARGET", imageCopy, searching(
				&cli.StringFlag{Name: "base", Usage: "copy only the difference to this ancestor (its `ID`)"})...),
			verb("import", "take a file or device in, as a snapshot or virtual disk", "REPO FILE", imageImport, making(
				&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT` of the file: raw or qcow2 (default: as its name says, else raw)"},
				&cli.BoolFlag{Name: "backing", Usage: "also take in the files that its header says it lies on: your word that it may name them"},
				&cli.StringFlag{Name: "kind", Value: "snapshot", Usage: "what it becomes: snapshot or disk"})...),
			verb("remove", "hide an image at once; `repo fix` frees its space", "REPO/IMAGE", imageRemove,
				&cli.BoolFlag{Name: "post-zero", Usage: "overwrite its data with zeros before that is deleted"},
				&cli.BoolFlag{Name: "discard", Usage: "tell the storage that its blocks are not needed any more"}, dryRunFlag()),
			verb("resize", "make a virtual disk larger", "REPO/IMAGE SIZE", imageResize, waitFlag(), dryRunFlag()),
			verb("annotate", "replace the user data of an image", "REPO/IMAGE JSON", imageAnnotate, dryRunFlag()),
			verb("list", "list the images of a repository", "REPO", imageList,
				&cli.StringFlag{Name: "kind", Usage: "only of this `KIND`: disk or snapshot"},
				&cli.StringFlag{Name: "state", Usage: "only in this `STATE`: optimized, degraded or broken"},
				&cli.StringFlag{Name: "base", Usage: "only those over this snapshot (its `ID`)"},
				&cli.StringFlag{Name: "after", Usage: "begin after this image (its `ID`)"},
				&cli.IntFlag{Name: "limit", Usage: "at most so many (`N`)"}),
			verb("show", "show all that is known of an image", "REPO/IMAGE", imageShow),
			verb("status", "show how an image is, and how far the work on it is", "REPO/IMAGE", imageStatus),
			verb("tasks", "list the work that is not done, and who is at it", "REPO", imageTasks),
			verb("stop", "stop the work on an image, on whatever host; it can be resumed", "REPO/IMAGE", imageStop, dryRunFlag()),
			verb("resume", "go on with work that stopped: on one image, or all", "REPO[/IMAGE]", imageResume, waitFlag(), dryRunFlag()),
			verb("prepare", "make an image usable on this host, and keep it as it is for that", "REPO/IMAGE", imagePrepare, holder(),
				&cli.BoolFlag{Name: "write", Usage: "for writing, which only one can"},
				&cli.StringSliceFlag{Name: "dead", Usage: "take it from holders on `HOST`: your word that this one is off (repeatable)"}, dryRunFlag()),
			verb("release", "end what prepare began", "REPO/IMAGE", imageRelease, holder(), dryRunFlag()),
			{
				Name: "work", Usage: "do the work on one image (started by diskhook itself)", ArgsUsage: "REPO/IMAGE", Hidden: true,
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "after", Usage: "let go of what the work had open, if it was killed"}},
				Action: func(c *cli.Context) error { return imageWork(p, c) },
			},
		},
	}
}

// imageRef is an image by the repository that is meant.
type imageRef struct{ repo, id string }

func (r imageRef) String() string { return r.repo + "/" + r.id }

// imageArgs is what a verb on one image begins with.
func imageArgs(p *program, c *cli.Context, more ...string) (format, *repository.Service, imageRef, []string, error) {
	f, err := outputOf(c)
	if err != nil {
		return f, nil, imageRef{}, nil, err
	}
	words, err := operands(c, append([]string{"REPO/IMAGE"}, more...)...)
	if err != nil {
		return f, nil, imageRef{}, nil, err
	}
	ref, err := parseImageRef(c, words[0])
	if err != nil {
		return f, nil, ref, nil, err
	}
	s, err := p.repositories()
	return f, s, ref, words[1:], err
}

func parseImageRef(c *cli.Context, word string) (imageRef, error) {
	repo, id, ok := strings.Cut(word, "/")
	if !ok || repo == "" || id == "" {
		return imageRef{}, see(c, failure.New(failure.Usage, "%q: not REPO/IMAGE", word))
	}
	return imageRef{repo, id}, nil
}

func imageOf(r imageRef) subject {
	return subject{schema: "diskhook.image-change/v1", key: "image", word: "image", name: r.String()}
}

// made is what the verbs that make an image print.
type made struct {
	Repository string `json:"repository"`
	Image      string `json:"image"`
	repository.Status
}

// making is what a verb that makes an image calls: to make it, or to preview that.
func making[F any](c *cli.Context, meant, preview F) F {
	if c.Bool("dry-run") {
		return preview
	}
	return meant
}

// makes is such a verb: verb says in words what act does. In a dry run act is its preview, and
// returns the image only if it is there already.
func (p *program) makes(c *cli.Context, f format, s *repository.Service, repo, verb string, act func(json.RawMessage, repository.Options) (string, error)) error {
	userData, err := readUserData(c, c.String("user-data"))
	if err != nil {
		return err
	}
	if _, err := s.Connection(repo); err != nil {
		return err
	}
	options := repository.Options{
		NoAutoFix: c.Bool("no-fix"), Strategy: repository.Strategy(c.String("strategy")), RequestID: c.String("request-id"),
		ParticipatingRepositories: c.StringSlice("repo"),
	}
	if options.ImageHints, err = hints(c); err != nil {
		return err
	}
	if c.Bool("no-fix") && c.Bool("wait") {
		return see(c, failure.New(failure.Usage, "--wait: nobody does the work with --no-fix"))
	}
	m := made{Repository: repo}
	of := storageRepository(repo)
	of.result = func() any { return m }
	steps := []string{verb}
	if c.Bool("dry-run") {
		if m.Image, err = act(userData, options); err != nil {
			return err
		}
		if m.Image != "" {
			steps = nil
		}
	}
	err = p.change(f, c.Bool("dry-run"), of, steps, func() (string, error) {
		if m.Image, err = act(userData, options); err != nil {
			return "", err
		}
		if c.Bool("wait") {
			err = p.await(c.Context, f, s, imageRef{repo, m.Image})
		}
		if err == nil {
			m.Status, err = s.GetImageStatus(c.Context, repo, m.Image)
		}
		return "image " + m.Image + " made", err
	})
	if m.Image != "" && f != inJSON {
		fmt.Fprintln(p.stdout, m.Image) // also if the work on it failed
	}
	return err
}

// hints are the pairs of --hint.
func hints(c *cli.Context) (map[string]string, error) {
	all := map[string]string{}
	for _, pair := range c.StringSlice("hint") {
		image, repo, ok := strings.Cut(pair, "=")
		if !ok || image == "" || repo == "" {
			return nil, see(c, failure.New(failure.Usage, "--hint %q: not IMAGE=REPO", pair))
		}
		if other, twice := all[image]; twice && other != repo {
			return nil, see(c, failure.New(failure.Usage, "--hint: image %s cannot be in %s and in %s", image, other, repo))
		}
		all[image] = repo
	}
	return all, nil
}

// readUserData is JSON, or @ and the name of a file with it.
func readUserData(c *cli.Context, text string) (json.RawMessage, error) {
	name, isFile := strings.CutPrefix(text, "@")
	switch {
	case text == "":
		return nil, nil
	case isFile:
		file, err := os.Open(name)
		if err != nil {
			return nil, failure.Wrap(failure.NotFound, err)
		}
		defer file.Close()
		return io.ReadAll(io.LimitReader(file, 1<<20)) // it is refused far below that
	case !json.Valid([]byte(text)):
		return nil, see(c, failure.New(failure.Usage, "user data: not JSON, nor @FILE"))
	}
	return json.RawMessage(text), nil
}

func imageCreate(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	var bytes int64
	base := c.String("base")
	if text := c.String("size"); text != "" {
		if bytes, err = host.ParseSize(text); err != nil {
			return err
		}
	} else if base == "" {
		return see(c, failure.New(failure.Usage, "--size is missing"))
	}
	return p.makes(c, f, s, words[0], "make a virtual disk", func(data json.RawMessage, o repository.Options) (string, error) {
		return making(c, s.CreateVirtualDisk, s.PreviewVirtualDisk)(c.Context, words[0], bytes, base, data, o)
	})
}

func imageSnapshot(p *program, c *cli.Context) error {
	f, s, ref, _, err := imageArgs(p, c)
	if err != nil {
		return err
	}
	return p.makes(c, f, s, ref.repo, "make a snapshot of image "+ref.String(), func(data json.RawMessage, o repository.Options) (string, error) {
		return making(c, s.CreateSnapshot, s.PreviewSnapshot)(c.Context, ref.repo, ref.id, data, o)
	})
}

// imageCopy takes an image that is named without a repository from wherever it is found.
func imageCopy(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	words, err := operands(c, "REPO/IMAGE", "TARGET")
	if err != nil {
		return err
	}
	id, target := words[0], words[1]
	ref := imageRef{id: id}
	if strings.Contains(id, "/") {
		if ref, err = parseImageRef(c, id); err != nil {
			return err
		}
		id = ref.id
		if c.IsSet("repo") || c.IsSet("hint") {
			return see(c, failure.New(failure.Usage, "--repo and --hint: %s says where the image is", ref))
		}
	}
	s, err := p.repositories()
	if err != nil {
		return err
	}
	return p.makes(c, f, s, target, "copy image "+words[0], func(data json.RawMessage, o repository.Options) (string, error) {
		if ref.repo != "" {
			o.ImageHints = map[string]string{id: ref.repo}
		}
		return making(c, s.CopyImage, s.PreviewCopy)(c.Context, target, id, c.String("base"), data, o)
	})
}

func imageImport(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c, "FILE")
	if err != nil {
		return err
	}
	file, err := filepath.Abs(words[1])
	if err != nil {
		return err
	}
	declared, err := declaredFormat(c.String("format"), file, "--format")
	if err != nil {
		return err
	}
	kind := repository.Kind(c.String("kind"))
	return p.makes(c, f, s, words[0], "take in "+file, func(data json.RawMessage, o repository.Options) (string, error) {
		checker := imagecheck.Checker{Allowed: s.Allowed}
		layers, err := checker.Discover(c.Context, imagecheck.Layer{Path: file, Format: declared})
		if err != nil {
			return "", err
		}
		if len(layers) > 1 && !c.Bool("backing") {
			err := failure.New(failure.Precondition, "%s: its header says that it lies on %s, which would be taken in as well", file, layers[1].Path)
			return "", failure.Hint(err, "add --backing if whoever made it may read that")
		}
		return making(c, s.ImportImage, s.PreviewImport)(c.Context, words[0], layers, kind, data, o)
	})
}

func imageRemove(p *program, c *cli.Context) error {
	f, s, ref, _, err := imageArgs(p, c)
	if err != nil {
		return err
	}
	o := repository.Options{PostZero: c.Bool("post-zero"), Discard: c.Bool("discard")}
	if _, err := s.GetImage(c.Context, ref.repo, ref.id); err != nil {
		return err
	}
	if err := s.PreviewRemove(c.Context, ref.repo, ref.id, o); err != nil {
		return err
	}
	steps := []string{"remove image " + ref.String()}
	if o.PostZero {
		steps = append(steps, "overwrite with zeros what no other image reads, the rest once none does")
	}
	if o.Discard {
		steps = append(steps, "discard the blocks of what no other image reads, the rest once none does")
	}
	return p.change(f, c.Bool("dry-run"), imageOf(ref), steps, func() (string, error) {
		return "removed", s.RemoveImage(c.Context, ref.repo, ref.id, o)
	})
}

func imageResize(p *program, c *cli.Context) error {
	f, s, ref, words, err := imageArgs(p, c, "SIZE")
	if err != nil {
		return err
	}
	bytes, err := host.ParseSize(words[0])
	if err != nil {
		return err
	}
	var steps []string
	from, to, err := s.PreviewResize(c.Context, ref.repo, ref.id, bytes)
	if err != nil {
		return err
	}
	if from != to {
		steps = append(steps, fmt.Sprintf("make image %s %d bytes large, from %d", ref, to, from))
	}
	return p.change(f, c.Bool("dry-run"), imageOf(ref), steps, func() (string, error) {
		err := s.ResizeVirtualDisk(c.Context, ref.repo, ref.id, bytes, repository.Options{})
		if err != nil || !c.Bool("wait") {
			return "grows", err
		}
		return "resized", p.await(c.Context, f, s, ref)
	})
}

func imageAnnotate(p *program, c *cli.Context) error {
	f, s, ref, words, err := imageArgs(p, c, "JSON")
	if err != nil {
		return err
	}
	data, err := readUserData(c, words[0])
	if err != nil {
		return err
	}
	if err := s.PreviewUserData(c.Context, ref.repo, ref.id, data); err != nil {
		return err
	}
	return p.change(f, c.Bool("dry-run"), imageOf(ref), []string{"replace the user data of image " + ref.String()}, done(func() error {
		return s.SetUserData(c.Context, ref.repo, ref.id, data)
	}))
}
