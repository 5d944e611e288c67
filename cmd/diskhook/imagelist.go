// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/repository"
)

func imageList(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	filter := repository.Filter{
		Kind: repository.Kind(c.String("kind")), State: repository.State(c.String("state")), Base: c.String("base"),
		After: c.String("after"), Limit: c.Int("limit"),
	}
	page, err := s.ListImages(c.Context, words[0], filter)
	all := page.Images
	for err == nil && page.Next != "" && filter.Limit == 0 { // all were asked for
		filter.After = page.Next
		page, err = s.ListImages(c.Context, words[0], filter)
		all = append(all, page.Images...)
	}
	if err != nil {
		return err
	}
	if f == inJSON {
		return p.printJSON(map[string]any{"schema": "diskhook.images/v1", "repository": words[0], "images": append([]repository.Info{}, all...), "next": page.Next})
	}
	l := listing{header: []string{"IMAGE", "KIND", "SIZE", "STATE", "BASE", "USED BY", "WORK"}, ifEmpty: "repository " + words[0] + ": no images"}
	for _, i := range all {
		l.names = append(l.names, words[0]+"/"+i.ID)
		l.rows = append(l.rows, []string{i.ID, string(i.Kind), size(i.Size), string(i.State), i.Base, strings.Join(i.Holders, ", "), goesOn(i.Status)})
	}
	if err := p.print(f, l); err != nil || page.Next == "" {
		return err
	}
	fmt.Fprintf(p.stderr, "diskhook: repository %s: there may be more images: go on with --after %s\n", words[0], page.Next)
	return nil
}

// goesOn is the work on an image in one cell.
func goesOn(st repository.Status) string {
	switch {
	case !st.Open && st.State != repository.Broken:
		return ""
	case st.Running:
		return inStages(st)
	case st.LastError != "":
		return st.LastError
	case st.Open:
		return "nobody is at it"
	}
	return ""
}

// inStages is how far work is, for people.
func inStages(st repository.Status) string {
	text := strings.TrimSpace(fmt.Sprintf("%s %s %s", st.Verb, st.Stage, st.StageName))
	if st.PercentComplete >= 0 {
		text += fmt.Sprintf(" %d %%", st.PercentComplete)
	}
	return text
}

func imageShow(p *program, c *cli.Context) error {
	f, s, ref, _, err := imageArgs(p, c)
	if err != nil {
		return err
	}
	info, err := s.GetImage(c.Context, ref.repo, ref.id)
	if err != nil {
		return err
	}
	if f == inJSON {
		return p.printJSON(struct {
			Schema     string `json:"schema"`
			Repository string `json:"repository"`
			repository.Info
		}{"diskhook.image/v1", ref.repo, info})
	}
	return p.print(f, listing{
		names: []string{ref.String()}, header: []string{"IMAGE", info.ID},
		rows: [][]string{
			{"KIND", string(info.Kind)},
			{"SIZE", fmt.Sprintf("%s (%d bytes)", size(info.Size), info.Size)},
			{"STATE", string(info.State)},
			{"STRATEGY", string(info.Strategy)},
			{"BASE", info.Base},
			{"VOLUMES", strconv.Itoa(info.Chain)},
			{"CREATED", info.Created.Format("2006-01-02 15:04:05Z07:00")},
			{"USED BY", strings.Join(info.Holders, ", ")},
			{"USER DATA", string(info.UserData)},
			{"WORK", goesOn(info.Status)},
		},
	})
}

func imageStatus(p *program, c *cli.Context) error {
	f, s, ref, _, err := imageArgs(p, c)
	if err != nil {
		return err
	}
	st, err := s.GetImageStatus(c.Context, ref.repo, ref.id)
	if err != nil {
		return err
	}
	if f == inJSON {
		return p.printJSON(struct {
			Schema string `json:"schema"`
			Image  string `json:"image"`
			repository.Status
		}{"diskhook.image-status/v1", ref.String(), st})
	}
	l := listing{names: []string{string(st.State)}, header: []string{"IMAGE", "STATE", "STAGE", "%", "HOST", "RUNNING", "LAST ERROR"}}
	l.rows = [][]string{{ref.String(), string(st.State), strings.TrimSpace(st.Stage + " " + st.StageName), percent(st), st.HostID, yesNo(st.Running), st.LastError}}
	return p.print(f, l)
}

func percent(st repository.Status) string {
	if st.PercentComplete < 0 {
		return ""
	}
	return strconv.Itoa(st.PercentComplete)
}

func imageTasks(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	tasks, err := s.ListTasks(c.Context, words[0])
	if err != nil {
		return err
	}
	l := listing{
		schema: "diskhook.image-tasks/v1", member: "tasks", items: append([]repository.Task{}, tasks...),
		header: []string{"IMAGE", "WORK", "STAGE", "%", "HOST", "RUNNING", "LAST ERROR"}, ifEmpty: "repository " + words[0] + ": all work is done",
	}
	for _, t := range tasks {
		l.names = append(l.names, t.RepoID+"/"+t.ImageID)
		l.rows = append(l.rows, []string{t.ImageID, t.Verb, strings.TrimSpace(t.Stage + " " + t.StageName), percent(t.Status), t.HostID, yesNo(t.Running), t.LastError})
	}
	return p.print(f, l)
}
