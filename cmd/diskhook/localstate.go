// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

func localList(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	entries, err := s.local.List(c.Context)
	if err != nil {
		return err
	}
	s.noteGone(c.Context, entries)
	cut := f == table && shorten(entries)
	if err := p.printCopies(f, entries); err != nil {
		return err
	}
	s.tellMore(c.Context, p)
	if cut {
		fmt.Fprintln(p.stderr, "diskhook: what to do about a problem: `diskhook local status NAME`")
	}
	return nil
}

// tellMore tells of what is no copy of any disk, and in no list of them.
func (s *services) tellMore(ctx context.Context, p *program) {
	s.tellAway(ctx, p)
	templates, err := s.local.Templates(ctx)
	if err != nil {
		p.notice(err)
	}
	for _, t := range templates {
		if t.Problem != "" {
			fmt.Fprintf(p.stderr, "diskhook: %s\n", harmless(t.Problem))
		}
	}
}

// tellAway tells of places whose copies are not listed, as nobody can look into
// them.
func (s *services) tellAway(ctx context.Context, p *program) {
	away, err := s.local.Away(ctx)
	if err != nil {
		p.notice(err)
	}
	for _, why := range away {
		fmt.Fprintf(p.stderr, "diskhook: %s: what is unfinished in it is not listed; `diskhook local gc` shows how to forget it\n", harmless(why))
	}
}

func (p *program) printCopies(f format, entries []localdisk.Entry) error {
	if entries == nil {
		entries = []localdisk.Entry{}
	}
	l := listing{
		schema: "diskhook.local/v1", member: "copies", items: entries,
		header:  []string{"DOMAIN", "DISK", "BACKEND", "STATE", "USED", "SIZE", "COPY", "PROBLEM"},
		ifEmpty: "no local copies",
	}
	for _, e := range entries {
		name := e.DomainName
		if name == "" {
			name = e.Domain
		}
		used, bytes := "no", e.Copy.Size
		if e.Receipt != nil {
			bytes = e.Receipt.Size
			if e.Receipt.Used {
				used = "yes"
			}
		}
		l.rows = append(l.rows, []string{name, e.Target, e.Backend, stateOf(e), used, size(bytes), placeOf(e.Copy), e.Matter()})
		l.names = append(l.names, name+"/"+e.Key)
	}
	return p.print(f, l)
}

// placeOf is where a copy is: VG/LV, CLUSTER/VOLUME, or its file.
func placeOf(c localdisk.Copy) string {
	if filepath.IsAbs(c.Home) && c.Path != "" {
		return c.Path
	}
	if c.Home == "" {
		return "" // there is nothing yet
	}
	return strings.TrimPrefix(c.Home, "thin:") + "/" + c.Name
}

// stateOf is a copy's state, with how far it is while somebody works on it.
func stateOf(e localdisk.Entry) string {
	switch {
	case e.Failed():
		return string(e.Status.State)
	case e.Settling && e.Status != nil && !e.Status.State.Final():
		return fmt.Sprintf("settling %d%%", e.Status.Percent())
	case e.Copy.State == localdisk.Ready && e.Receipt.Unsettled():
		return "overlay"
	}
	if e.Exporting && e.Status != nil {
		return fmt.Sprintf("exporting %d%%", e.Status.Percent())
	}
	if e.Busy && e.Status != nil && e.Status.Note != "" && !e.Status.State.Final() {
		return fmt.Sprintf("template %d%%", e.Status.Percent())
	}
	if e.Busy && e.Status != nil && !e.Status.State.Final() {
		return fmt.Sprintf("%s %d%%", e.Copy.State, e.Status.Percent())
	}
	return string(e.Copy.State)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// entries are those of a domain, or of one disk; all if domain is "".
func (s *services) entries(ctx context.Context, domain, disk string) ([]localdisk.Entry, error) {
	all, err := s.local.List(ctx)
	if err != nil {
		return nil, err
	}
	var some []localdisk.Entry
	for _, e := range all {
		if (domain == "" || e.Domain == domain) && (disk == "" || e.Target == disk || e.Key == disk) {
			some = append(some, e)
		}
	}
	return some, nil
}

const (
	// sourcePatience bounds the look at one source, which may be gone or hang.
	sourcePatience = 5 * time.Second
	// sourceLooks is how many are looked at side by side, so that a server that
	// hangs makes the lines late that are about it, and not their sum.
	sourceLooks = 16
)

// noteChanges adds what has become of domains and of sources. They are remarks:
// a copy is the truth, whatever happened to its source.
func (s *services) noteChanges(ctx context.Context, entries []localdisk.Entry) {
	s.noteGone(ctx, entries)
	var looks sync.WaitGroup
	slots := make(chan struct{}, sourceLooks)
	for i := range entries {
		slots <- struct{}{}
		looks.Go(func() {
			s.noteChange(ctx, &entries[i])
			<-slots
		})
	}
	looks.Wait()
}

func (s *services) noteChange(ctx context.Context, e *localdisk.Entry) {
	if e.Receipt == nil || e.Problem != "" || e.Busy || e.Settling {
		return
	}
	if left := e.Receipt.Left(); left != "" {
		e.Problem = "remark: " + left
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sourcePatience)
	defer cancel()
	changed, why, err := s.local.SourceChanged(ctx, *e.Receipt)
	switch {
	case err != nil && e.Receipt.Unsettled():
		e.Problem = failure.Line(err) // it would refuse a start
	case err != nil:
		e.Problem = "remark: the source cannot be read: " + failure.OneLine(err.Error())
	case changed:
		e.Problem = "remark: " + why
	}
}

func localResize(p *program, c *cli.Context) error {
	f, s, words, domain, key, err := copyArgs(p, c, "SIZE")
	if err != nil {
		return err
	}
	bytes, err := host.ParseSize(strings.TrimPrefix(words[2], "+"))
	if err != nil {
		return err
	}
	entries, err := s.entries(c.Context, domain, key)
	if err != nil {
		return err
	}
	if len(entries) == 0 || entries[0].Receipt == nil {
		return failure.New(failure.NotFound, "domain %s: disk %s: no local copy", words[0], words[1])
	}
	r := entries[0].Receipt
	if strings.HasPrefix(words[2], "+") {
		bytes += r.Size
	}
	facts, asked, err := s.domains.State(c.Context, domain, key)
	if err != nil {
		return err
	}
	if asked && facts.ManagedSave {
		err := failure.New(failure.Conflict, "domain %s: it has a managed save, whose memory needs the disk as it is", words[0])
		return failure.Hint(err, "start the domain, then run this again")
	}
	var steps []string
	if bytes != r.Size || r.Growing != nil {
		steps = append(steps, fmt.Sprintf("extend %s to %d bytes and zero what is new", entries[0].Copy, bytes))
		if asked && facts.Active {
			steps = append(steps, s.domains.Libvirt.Cmd(domains.VerbBlockResize).String())
		}
	}
	return p.change(f, c.Bool("dry-run"), copiesOf(words[0]), steps, done(func() error {
		if _, err := s.local.Resize(c.Context, domain, key, bytes); err != nil {
			return err
		}
		if !asked || !facts.Active {
			return nil
		}
		return s.domains.Libvirt.BlockResize(c.Context, domain, r.Target, bytes)
	}))
}
