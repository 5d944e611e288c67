// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
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
	LastUse time.Time `json:"last_use"`       // the day; zero is not known
	Busy    bool      `json:"busy"`           // it is being made, or cloned
	Kept    string    `json:"kept,omitempty"` // why it is not to go now; "" is that it may

	copy Copy
}

// Templates returns all templates of this host, those used longest ago first.
// Kept says what EvictTemplate would refuse, and what is younger than [local]
// cache_min_age.
func (s *Service) Templates(ctx context.Context) ([]Template, error) {
	var all []Template
	homes := map[string]bool{}
	for _, kind := range Backends() {
		b := backends()[kind](s)
		if b.templateHome() == "" || homes[b.home()] {
			continue
		}
		homes[b.home()] = true
		found, err := s.templatesOf(ctx, kind, b)
		if errors.Is(err, failure.Precondition) {
			continue // no such volume group on this host
		}
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	sortTemplates(all)
	return all, nil
}

// templatesOf returns the templates of one home.
func (s *Service) templatesOf(ctx context.Context, kind string, b backend) ([]Template, error) {
	if b.templateHome() == "" {
		return nil, nil
	}
	copies, err := b.find(ctx)
	if err != nil {
		return nil, err
	}
	clones := map[string]int{}
	for _, c := range copies {
		clones[c.Origin]++
	}
	var all []Template
	for _, c := range copies {
		if !isTemplate(c) {
			continue
		}
		t := Template{
			Name: c.Name, Backend: kind, Home: c.Home, Path: c.Path, State: c.State, Size: c.Size,
			From: fromPath(c.Tags), Clones: clones[c.Name], LastUse: lastUse(c.Tags), copy: c,
		}
		if t.Busy, err = lock.Held(s.Layout.Locks(), templateLock(c.Name)); err != nil {
			return nil, err
		}
		if t.Kept = t.inUse(b); t.Kept == "" {
			t.Kept = t.young(time.Now(), time.Duration(s.Config.Local.CacheMinAge))
		}
		all = append(all, t)
	}
	sortTemplates(all)
	return all, nil
}

// sortTemplates puts those that are missed least first: unfinished ones, then
// those without clones, then by last use.
func sortTemplates(all []Template) {
	slices.SortFunc(all, func(a, b Template) int {
		rank := func(t Template) int {
			switch {
			case t.State != Ready:
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
		return "somebody makes or clones it"
	case t.Clones > 0 && b.clonesHold():
		return fmt.Sprintf("%d copies share its blocks, so nothing would be won", t.Clones)
	}
	return ""
}

// young is why the template stays for a while. A last use in the future is of
// a clock that was wrong, and counts as now.
func (t Template) young(now time.Time, least time.Duration) string {
	if t.State != Ready || least <= 0 {
		return ""
	}
	// The day is over when it was used last at the latest.
	if since := now.Sub(t.LastUse.Add(day)); since < least {
		return fmt.Sprintf("used on %s; [local] cache_min_age is %v", t.LastUse.Format(time.DateOnly), least)
	}
	return ""
}
