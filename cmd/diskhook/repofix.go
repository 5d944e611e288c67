// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/repository"
)

func repoCheck(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	report, err := chosen(c, s, words[0])
	if err != nil {
		return err
	}
	if f == inJSON {
		err = p.printJSON(struct {
			Schema     string `json:"schema"`
			Repository string `json:"repository"`
			repository.Report
		}{"diskhook.repo-check/v1", words[0], report})
	} else {
		l := listing{header: []string{"FIX", "TYPE", "BYTES", "WHAT"}, ifEmpty: fmt.Sprintf("repository %s: nothing to fix in %d images", words[0], report.Images)}
		for _, x := range report.Fixes {
			bytes := "unknown"
			if x.Bytes >= 0 {
				bytes = size(x.Bytes)
			}
			l.names = append(l.names, x.ID)
			what := x.Summary
			if x.ByName {
				what += " (only if it is named)"
			}
			l.rows = append(l.rows, []string{x.ID, string(x.Type), bytes, what})
		}
		err = p.print(f, l)
		for _, problem := range report.Problems {
			fmt.Fprintf(p.stderr, "diskhook: repository %s: %s\n", words[0], harmless(problem))
		}
	}
	if err != nil {
		return err
	}
	if n := len(report.Fixes) + len(report.Problems); n > 0 {
		err := failure.New(failure.Problems, "repository %s: %d findings", words[0], n)
		if len(report.Fixes) == 0 {
			return err // each says itself what to do
		}
		return failure.Hint(err, "see what `diskhook repo fix -n --all %s` would do", words[0])
	}
	return nil
}

// chosen is a check, but for fixes of other types than those that are asked for.
func chosen(c *cli.Context, s *repository.Service, repo string) (repository.Report, error) {
	types := c.StringSlice("type")
	for _, t := range types {
		if !slices.Contains([]repository.FixType{repository.Clean, repository.Optimize, repository.Merge, repository.Mend}, repository.FixType(t)) {
			return repository.Report{}, see(c, failure.New(failure.Usage, "--type %q: one of clean, optimize, merge, mend", t))
		}
	}
	check := s.CheckStorageRepository
	if c.Bool("deep") {
		check = s.DeepCheckStorageRepository
	}
	report, err := check(c.Context, repo)
	report.Fixes = slices.DeleteFunc(report.Fixes, func(x repository.Fix) bool {
		return len(types) > 0 && !slices.Contains(types, string(x.Type))
	})
	return report, err
}

// repoFix checks by itself: the opaque data of fixes need not pass through a shell.
func repoFix(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	words, err := operandList(c, "REPO")
	switch {
	case err != nil:
		return err
	case len(words) == 0:
		return see(c, failure.New(failure.Usage, "REPO is missing"))
	case (len(words) == 1) != c.Bool("all"):
		return see(c, failure.New(failure.Usage, "name fixes of `diskhook repo check %s`, or give --all", words[0]))
	}
	s, err := p.repositories()
	if err != nil {
		return err
	}
	if c.Bool("wait") && !c.Bool("dry-run") {
		if err := p.awaitFixes(c.Context, f, s, words[0]); err != nil {
			return err
		}
	}
	report, err := chosen(c, s, words[0])
	if err != nil {
		return err
	}
	fixes, err := ofIDs(report.Fixes, words[0], words[1:])
	if err != nil {
		return err
	}
	if n := len(report.Fixes) - len(unnamed(report.Fixes)); n > 0 && c.Bool("all") {
		fmt.Fprintf(p.stderr, "diskhook: repository %s: %d fixes give something up, and are done only if they are named: see `diskhook repo check %s`\n", words[0], n, words[0])
	}
	var steps []string
	for _, x := range fixes {
		steps = append(steps, fmt.Sprintf("%s %s: %s", x.Type, x.ID, x.Summary))
	}
	return p.change(f, c.Bool("dry-run"), storageRepository(words[0]), steps, func() (string, error) {
		return p.fixAll(c, f, s, words[0], fixes)
	})
}

// unnamed are the fixes that --all does: not those that give something up.
func unnamed(fixes []repository.Fix) []repository.Fix {
	return slices.DeleteFunc(slices.Clone(fixes), func(x repository.Fix) bool { return x.ByName })
}

// confirmed are the options of a fix that was named, or needs no name.
func confirmed(x repository.Fix) repository.Options {
	o := repository.Options{}
	if x.ByName && len(x.Images) > 0 {
		o.Confirm = x.Images[0]
	}
	return o
}

// ofIDs are the fixes that are named; if none is, all that need no name.
func ofIDs(fixes []repository.Fix, repo string, ids []string) ([]repository.Fix, error) {
	if len(ids) == 0 {
		return unnamed(fixes), nil
	}
	var named []repository.Fix
	for _, id := range ids {
		i := slices.IndexFunc(fixes, func(x repository.Fix) bool { return x.ID == id })
		if i < 0 {
			err := failure.New(failure.NotFound, "repository %s: fix %q: there is none, or no more", repo, id)
			return nil, failure.Hint(err, "see `diskhook repo check %s`", repo)
		}
		named = append(named, fixes[i])
	}
	return named, nil
}

// rounds bounds how often --all checks again: each fix may lead to others, a
// merge to a clean.
const rounds = 20

// fixAll does the fixes, and with --all what they lead to. One that is stale by
// the time it is its turn is left to the next check. Work that was begun here is not begun
// again: if it goes on, somebody is at it, and if it failed, it would fail again.
func (p *program) fixAll(c *cli.Context, f format, s *repository.Service, repo string, fixes []repository.Fix) (string, error) {
	did, since := 0, time.Now().Truncate(time.Millisecond)
	seen, begun := map[string]bool{}, map[string]bool{}
	var failed error
	for range rounds {
		before := did
		for _, x := range fixes {
			if seen[x.ID] || x.Resumes && begun[x.Images[0]] {
				continue
			}
			seen[x.ID] = true
			err := s.FixStorageRepository(c.Context, repo, x, confirmed(x))
			for _, image := range x.Images {
				begun[image] = begun[image] || !errors.Is(err, repository.ErrStaleFix)
			}
			if err == nil && c.Bool("wait") {
				err = p.awaitAll(c.Context, f, s, repo, x.Images)
			}
			switch {
			case errors.Is(err, repository.ErrStaleFix):
			case errors.Is(err, repository.ErrInUse) && c.Bool("all"):
				fmt.Fprintf(p.stderr, "diskhook: repository %s: fix %s is left for later: %s\n", repo, x.ID, harmless(failure.Line(err)))
			case err != nil:
				failed = errors.Join(failed, fmt.Errorf("fix %s: %w", x.ID, err))
			default:
				did++
			}
		}
		if !c.Bool("all") || did == before {
			break
		}
		report, err := chosen(c, s, repo)
		if err != nil {
			return "", errors.Join(failed, err)
		}
		fixes = unnamed(report.Fixes)
	}
	if !c.Bool("wait") {
		failed = errors.Join(failed, failedSince(c.Context, s, repo, since))
	}
	return fmt.Sprintf("%d fixes", did), failed
}

// failedSince is the work of a repository that has failed since then, by the clock of this
// host: nobody waited for it.
func failedSince(ctx context.Context, s *repository.Service, repo string, since time.Time) error {
	tasks, err := s.ListTasks(ctx, repo)
	for _, t := range tasks {
		if !t.Running && t.LastError != "" && t.HostID == s.HostID && !t.Updated.Before(since) {
			err = errors.Join(err, left(imageRef{repo, t.ImageID}, t.Status))
		}
	}
	return err
}

func (p *program) awaitAll(ctx context.Context, f format, s *repository.Service, repo string, images []string) error {
	for _, image := range images {
		if err := p.await(ctx, f, s, imageRef{repo, image}); err != nil && !errors.Is(err, repository.ErrNoImage) {
			return err
		}
	}
	return nil
}

// awaitFixes waits for fixes that were begun before, and that somebody is at: no check finds
// them. One that fails the check finds again.
func (p *program) awaitFixes(ctx context.Context, f format, s *repository.Service, repo string) error {
	tasks, err := s.ListTasks(ctx, repo)
	for _, t := range tasks {
		if t.Running && (t.Verb == string(repository.Merge) || t.Verb == string(repository.Optimize)) {
			if err := p.awaitAll(ctx, f, s, repo, []string{t.ImageID}); ctx.Err() != nil {
				return err
			}
		}
	}
	return err
}
