// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/repository"
)

func waitFlag() cli.Flag {
	return &cli.BoolFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait until the work is done, and show how far it is"}
}

// startTime is how long a process may take until it is seen at its work.
const startTime = 30 * time.Second

// await waits for the work on an image, whoever does it. Ended by a signal, it
// leaves the work alone.
func (p *program) await(ctx context.Context, f format, s *repository.Service, ref imageRef) error {
	told, since := "", time.Now()
	for {
		st, err := s.GetImageStatus(ctx, ref.repo, ref.id)
		switch {
		case err != nil:
			return err
		case !st.Open && st.State == repository.Broken:
			return failure.New(failure.Precondition, "image %s: broken: %s", ref, st.LastError)
		case !st.Open:
			return nil
		case st.Running:
			since = time.Now()
		case time.Since(since) > startTime || st.LastError != "" && time.Since(since) > 5*time.Second:
			return left(ref, st)
		}
		if now := inStages(st); st.Running && now != told {
			told = now
			p.tellStage(f, ref, st)
		}
		select {
		case <-ctx.Done():
			err := fmt.Errorf("image %s: the work on it goes on: %w", ref, context.Cause(ctx))
			return failure.Hint(err, "see `diskhook image status %s`, or end it with `diskhook image stop %s`", ref, ref)
		case <-time.After(pollEvery):
		}
	}
}

// left is that nobody is at work which is not done.
func left(ref imageRef, st repository.Status) error {
	kind, first := failure.Temporary, fmt.Sprintf("see why with `diskhook image status %s`", ref)
	if st.LastErrorCode == failure.NoSpace.Code {
		kind, first = failure.NoSpace, fmt.Sprintf("free space in repository %s, or give it more", ref.repo)
	}
	err := failure.New(kind, "image %s: nobody is at the work on it: %s", ref, goesOn(st))
	return failure.Hint(err, "%s, then run `diskhook image resume --wait %s`", first, ref)
}

func (p *program) tellStage(f format, ref imageRef, st repository.Status) {
	if f == inJSON {
		_ = json.NewEncoder(p.stderr).Encode(struct {
			Type   string `json:"type"`
			Object string `json:"object"`
			repository.Status
		}{"progress", ref.String(), st})
		return
	}
	fmt.Fprintf(p.stderr, "diskhook: image %s: %s\n", ref, inStages(st))
}

// imageWork is the main process of a unit. What goes wrong is in the status of
// the image, too.
func imageWork(p *program, c *cli.Context) error {
	words, err := operands(c, "REPO/IMAGE")
	if err != nil {
		return err
	}
	ref, err := parseImageRef(c, words[0])
	if err != nil || c.Bool("after") && os.Getenv("SERVICE_RESULT") == "success" { // systemd.exec(5)
		return err
	}
	s, err := p.repositories()
	if err != nil {
		return err
	}
	if c.Bool("after") {
		return s.LetGo(c.Context, ref.repo)
	}
	return s.Run(c.Context, ref.repo, ref.id)
}

func imageStop(p *program, c *cli.Context) error {
	f, s, ref, _, err := imageArgs(p, c)
	if err != nil {
		return err
	}
	st, err := s.GetImageStatus(c.Context, ref.repo, ref.id)
	if err != nil {
		return err
	}
	var steps []string
	if st.Open {
		steps = append(steps, "ask for a stop of the work on image "+ref.String())
	}
	return p.change(f, c.Bool("dry-run"), imageOf(ref), steps, func() (string, error) {
		return "asked to stop", s.StopTask(c.Context, ref.repo, ref.id)
	})
}

// imageResume starts a process for each image whose work nobody is at. With --wait it
// also waits for what somebody is at.
func imageResume(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	words, err := operands(c, "REPO[/IMAGE]")
	if err != nil {
		return err
	}
	s, err := p.repositories()
	if err != nil {
		return err
	}
	of, repo, only := storageRepository(words[0]), words[0], ""
	if ref, err := parseImageRef(c, words[0]); err == nil {
		of, repo, only = imageOf(ref), ref.repo, ref.id
		if _, err := s.GetImage(c.Context, ref.repo, ref.id); err != nil {
			return err
		}
	}
	tasks, err := s.ListTasks(c.Context, repo)
	if err != nil {
		return err
	}
	var images, steps, others []string
	for _, t := range tasks {
		switch {
		case only != "" && t.ImageID != only:
		case t.Running:
			others = append(others, t.ImageID)
		default:
			images = append(images, t.ImageID)
			steps = append(steps, fmt.Sprintf("diskhook image work %s/%s", repo, t.ImageID))
		}
	}
	wait := c.Bool("wait") && !c.Bool("dry-run")
	if len(images) == 0 && wait {
		if err := p.awaitAll(c.Context, f, s, repo, others); err != nil {
			return err
		}
	}
	return p.change(f, c.Bool("dry-run"), of, steps, func() (string, error) {
		var failed error
		for _, image := range images {
			failed = errors.Join(failed, s.Start(c.Context, repo, image))
		}
		if failed == nil && wait {
			failed = p.awaitAll(c.Context, f, s, repo, append(images, others...))
			return fmt.Sprintf("%d done", len(images)), failed
		}
		return fmt.Sprintf("%d go on", len(images)), failed
	})
}

func imagePrepare(p *program, c *cli.Context) error {
	f, s, ref, _, err := imageArgs(p, c)
	if err != nil {
		return err
	}
	if c.String("holder") == "" {
		return see(c, failure.New(failure.Usage, "--holder is missing: who uses the image"))
	}
	asked := repository.Preparing{Holder: c.String("holder"), Write: c.Bool("write"), Dead: c.StringSlice("dead")}
	if c.Bool("dry-run") {
		if _, err := s.PreviewImage(c.Context, ref.repo, ref.id, asked); err != nil {
			return err
		}
		return p.change(f, true, imageOf(ref), []string{"prepare image " + ref.String() + " for " + asked.Holder}, nil)
	}
	at, err := s.PrepareImage(c.Context, ref.repo, ref.id, asked)
	if err != nil {
		return err
	}
	return p.print(f, listing{
		schema: "diskhook.images-prepared/v1", member: "images", items: []repository.Prepared{at},
		header: []string{"PATH", "FORMAT", "SIZE"}, names: []string{at.Path},
		rows: [][]string{{at.Path, at.Format, size(at.Size)}},
	})
}

func imageRelease(p *program, c *cli.Context) error {
	f, s, ref, _, err := imageArgs(p, c)
	if err != nil {
		return err
	}
	if c.String("holder") == "" {
		return see(c, failure.New(failure.Usage, "--holder is missing: who used the image"))
	}
	steps := []string{"release image " + ref.String() + " of " + c.String("holder")}
	return p.change(f, c.Bool("dry-run"), imageOf(ref), steps, func() (string, error) {
		return "released", s.ReleaseImage(c.Context, ref.repo, ref.id, c.String("holder"))
	})
}
