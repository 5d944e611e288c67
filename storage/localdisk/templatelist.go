// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/transfer"
)

// Template is an entry of the cache.
type Template struct {
	Name    string    `json:"name"`
	Backend string    `json:"backend"`
	Home    string    `json:"home"` // volume group, or directory
	Path    string    `json:"path"` // node or file
	State   State     `json:"state"`
	Size    int64     `json:"size"`           // bytes, as a disk
	From    string    `json:"from"`           // path of the base that it was made of
	Clones  int       `json:"clones"`         // copies that were made of it and are there
	Lying   int       `json:"overlays"`       // those of them that cannot be without it
	LastUse time.Time `json:"last_use"`       // the day; zero is not known
	Busy    bool      `json:"busy"`           // it is being made
	Kept    string    `json:"kept,omitempty"` // why it is not to go now; "" is that it may
	// Problem is what is to be known of one that was left unfinished, and on which
	// nobody works; "" is none.
	Problem string `json:"problem,omitempty"`

	copy  Copy
	doubt string // why it cannot be told what needs it; "" is that it can
}

// Templates returns all templates of this host, those used longest ago first.
// Kept says what EvictTemplate would refuse, and what is younger than [local]
// cache_min_age.
func (s *Service) Templates(ctx context.Context) ([]Template, error) {
	places, err := s.places()
	if err != nil {
		return nil, err
	}
	var all []Template
	for _, p := range places {
		for _, kind := range Backends() {
			b := s.backend(Disk{Backend: kind, Home: p.home})
			if b.home() != p.home {
				continue // its copies are in places of the other sort
			}
			found, err := s.templatesOf(ctx, kind, b)
			if errors.Is(err, failure.Precondition) {
				continue // no such volume group on this host
			}
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
		}
	}
	sortTemplates(all)
	return all, nil
}

// templatesOf returns the templates of one backend.
func (s *Service) templatesOf(ctx context.Context, kind string, b backend) ([]Template, error) {
	copies, err := b.find(ctx)
	if err != nil {
		return nil, err
	}
	var all []Template
	for _, c := range copies {
		if !isTemplate(c) || !b.keeps(c) {
			continue
		}
		t := Template{
			Name: c.Name, Backend: kind, Home: c.Home, Path: c.Path, State: c.State, Size: c.Size,
			From: fromPath(c.Tags), LastUse: lastUse(c.Tags), copy: c,
		}
		t.Clones, t.Lying, t.doubt = s.needs(c, copies)
		if t.Busy, err = lock.Held(s.Layout.Locks(), templateLock(c.Name)); err != nil {
			return nil, err
		}
		if t.State == Updating && !t.Busy {
			t.Problem = s.leftTemplate(c)
		}
		if t.Kept = t.inUse(b); t.Kept == "" {
			t.Kept = t.young(time.Now(), time.Duration(s.Config.Local.CacheMinAge))
		}
		all = append(all, t)
	}
	sortTemplates(all)
	return all, nil
}

// leftTemplate is Template.Problem of one that is updating.
func (s *Service) leftTemplate(c Copy) string {
	next := "makes it anew"
	if done, ok := transfer.Begun(s.cursorPath(c), c.target()); ok && c.Size > 0 {
		next = fmt.Sprintf("goes on with it at %d %%", done*100/c.Size)
	}
	return failure.OneLine(fmt.Sprintf("%s: the template of %s, unfinished, nobody makes it; the next copy of a disk on that %s, `diskhook local gc --yes` removes it", c, fromPath(c.Tags), next))
}

// needs counts the copies that were made of a template: those that a backend
// found in its home, by their tags and headers, and those that receipts name.
// lying are the overlays on it, to which it is a part of their disk. doubt is
// why there may be others.
func (s *Service) needs(t Copy, copies map[string]Copy) (clones, lying int, doubt string) {
	overlays := map[string]bool{}
	for name, c := range copies {
		on, err := c.liesOn(t)
		switch {
		case err != nil:
			doubt = failure.OneLine(fmt.Sprintf("what %s lies on cannot be told: %v", c, err))
		case on:
			overlays[name] = true
		case c.Origin == t.Name:
			clones++
		}
	}
	receipts, err := Receipts(s.Layout, "")
	if err != nil {
		doubt = failure.OneLine(err.Error())
	}
	for _, r := range receipts {
		if r.OnTemplate() && r.Home == t.Home && r.Overlay.Template.Name == t.Name {
			overlays[r.Name] = true
		}
	}
	return clones + len(overlays), len(overlays), doubt
}

// liesOn says whether a copy is an overlay on the template. A file says so in
// its header, too, if its sidecar got lost. Of a volume the tags cannot be lost
// without it.
func (c Copy) liesOn(t Copy) (bool, error) {
	if c.Format != imagecheck.QCOW2 {
		return false, nil
	}
	if c.Origin == t.Name || !c.file() {
		return c.Origin == t.Name, nil
	}
	h, err := c.header()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // it went just now
	case err != nil && c.State == Updating && c.UUID != "":
		return false, nil // one that has no header yet has its tags
	case err != nil:
		return false, err
	}
	return h.BackingFile == t.Path, nil
}

// sortTemplates puts those that are missed least first: unfinished ones, then
// those without clones, then by last use.
func sortTemplates(all []Template) {
	slices.SortFunc(all, func(a, b Template) int {
		rank := func(t Template) int {
			switch {
			case t.State != Ready || t.copy.altered() != "":
				return 0
			case t.Clones == 0:
				return 1
			}
			return 2
		}
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		if d := a.LastUse.Compare(b.LastUse); d != 0 {
			return d
		}
		return strings.Compare(a.Home+"/"+a.Name, b.Home+"/"+b.Name)
	})
}

// inUse is why the template cannot go.
func (t Template) inUse(b backend) string {
	switch {
	case t.Busy:
		return "somebody makes it"
	case t.doubt != "":
		return t.doubt
	case t.Lying > 0:
		return fmt.Sprintf("%d copies lie on it, and are nothing without it", t.Lying)
	case t.Clones > 0 && b.clonesHold():
		return fmt.Sprintf("%d copies share its blocks, so nothing would be won", t.Clones)
	}
	return ""
}

// young is why the template stays for a while. A last use in the future is of
// a clock that was wrong, and counts as now.
func (t Template) young(now time.Time, least time.Duration) string {
	if t.State != Ready || t.copy.altered() != "" || least <= 0 {
		return ""
	}
	// The day is over when it was used last at the latest.
	if since := now.Sub(t.LastUse.Add(day)); since < least {
		return fmt.Sprintf("used on %s; [local] cache_min_age is %v", t.LastUse.Format(time.DateOnly), least)
	}
	return ""
}
