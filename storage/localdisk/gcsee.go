// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lock"
)

// sight is all that there is of copies on this host.
type sight struct {
	copies   []foundCopy
	receipts []Receipt
	damaged  map[string]error // by domain: receipts that cannot be read
	// unseen is why not every home could be looked at; nil is that all were.
	unseen error
}

// foundCopy is a copy of a disk, by its name and tags.
type foundCopy struct {
	Backend     string
	Domain, Key string // "" is not known
	Copy        Copy
}

// places hands out one backend for each home; kinds of volumes share a group.
func (s *Service) places() iter.Seq2[string, backend] {
	return func(yield func(string, backend) bool) {
		seen := map[string]bool{}
		for _, kind := range Backends() {
			b := backends()[kind](s)
			if !seen[b.home()] && !yield(kind, b) {
				return
			}
			seen[b.home()] = true
		}
	}
}

// see looks at every home once, and at all receipts. A volume group that is not
// there is no error.
func (s *Service) see(ctx context.Context) (sight, error) {
	seen := sight{damaged: map[string]error{}}
	files, err := receiptsNamed(s.Layout, "")
	if err != nil {
		return seen, err
	}
	for _, f := range files {
		r, err := ReadReceipt(s.Layout, f.domain, f.key)
		if err != nil {
			seen.damaged[f.domain] = err
		} else if r != nil {
			seen.receipts = append(seen.receipts, *r)
		}
	}
	for kind, b := range s.places() {
		copies, err := b.find(ctx)
		if errors.Is(err, failure.Precondition) {
			seen.unseen = err
			continue
		}
		if err != nil {
			return seen, err
		}
		for _, name := range slices.Sorted(maps.Keys(copies)) {
			if f, is := asCopy(kind, copies[name]); is {
				seen.copies = append(seen.copies, f)
			}
		}
	}
	return seen, nil
}

// asCopy says whose copy a volume or file is, by its name and tags, which have
// to agree. What is marked UPDATING and nobody's is a copy, too, that nobody
// knows; other volumes are none of ours.
func asCopy(kind string, c Copy) (f foundCopy, is bool) {
	f = foundCopy{Backend: kind, Copy: c}
	rest, named := strings.CutPrefix(c.Name, copyPrefix)
	domain, target, _ := strings.Cut(rest, "_")
	target = strings.TrimSuffix(target, rawSuffixOfName)
	owner := tagged(c, tagVM)
	switch {
	case named && host.IsUUID(domain) && validTarget(target) && (owner == domain || owner == ""):
		f.Domain, f.Key = domain, target
	case host.IsUUID(c.Name) && owner != "":
		f.Domain, f.Key = owner, tagged(c, tagImage)
	case owner == "" && c.State != Updating:
		return f, false
	}
	return f, true
}

// evidenceOf gathers what there is about a copy.
func (s *Service) evidenceOf(f foundCopy, seen sight) evidence {
	e := evidence{copy: s.asFileOpen(f.Copy), key: f.Key, unknown: seen.damaged[f.Domain]}
	e.raw = f.Copy.State == Updating && strings.HasSuffix(f.Copy.Name, rawSuffixOfName)
	for _, r := range seen.receipts {
		e.other = e.other || r.Pivot != nil && r.Home == f.Copy.Home && r.Pivot.Name == f.Copy.Name
		names := r.Copy == f.Copy.UUID && r.Copy != "" || r.Home == f.Copy.Home && r.Name == f.Copy.Name
		if names || r.Domain == f.Domain && r.Key() == f.Key {
			e.claims = append(e.claims, r)
		}
	}
	if f.Domain == "" {
		return e
	}
	e.saved = Saved(s.Layout, f.Domain)
	if f.Key != "" {
		held, err := lock.Held(s.Layout.Locks(), lockName(f.Domain, f.Key))
		e.busy = held || e.other && s.settling(f.Domain, f.Key)
		e.unknown = errors.Join(e.unknown, err)
	}
	return e
}

// disk is as much of the disk as its copy tells.
func (f foundCopy) disk() Disk {
	d := Disk{Domain: f.Domain, Target: f.Key, Backend: f.Backend, OnStop: Keep}
	if host.IsUUID(f.Key) {
		d.Image, d.Volume = f.Key, f.Copy.Name
	}
	return d
}

// removeUnused is called under the lock of the disk. First goes what would have
// somebody go on with the copy or use it, so that one that is wiped in part is
// only ever made again.
func (s *Service) removeUnused(ctx context.Context, f foundCopy, e evidence, w Wipe) error {
	if err := s.forget(f.Copy); err != nil {
		return fmt.Errorf("cursor %w", err)
	}
	for _, r := range e.claims {
		if err := removeReceipt(s.Layout, r.Domain, r.Key()); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("gc.receipt-removed"); err != nil {
		return err
	}
	if err := s.wipe(ctx, f, w); err != nil {
		return err
	}
	if err := failpoint.Hit("gc.wiped"); err != nil {
		return err
	}
	if err := s.backend(f.disk()).remove(ctx, f.Copy); err != nil {
		return err
	}
	if f.Key != "" {
		s.removeStatus(f.Domain, f.Key)
	}
	return failpoint.Hit("gc.removed")
}
