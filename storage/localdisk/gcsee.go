// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
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
	places   []place
	// unseen is why a place could not be looked at, by its home.
	unseen map[string]error
	// left counts the copies and templates in each home.
	left map[string]int
}

// foundCopy is a copy of a disk, by its name and tags.
type foundCopy struct {
	Backend     string
	Domain, Key string // "" is not known
	Copy        Copy
}

// see looks at every place once, and at all receipts. One that is away is no
// error.
func (s *Service) see(ctx context.Context) (sight, error) {
	seen := sight{damaged: map[string]error{}, unseen: map[string]error{}, left: map[string]int{}}
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
	if seen.places, err = s.places(); err != nil {
		return seen, err
	}
	for _, p := range seen.places {
		copies, err := s.in(ctx, p)
		if errors.Is(err, failure.Precondition) {
			seen.unseen[p.home] = err
			continue
		}
		if err != nil {
			return seen, failure.Denied(err)
		}
		for _, name := range slices.Sorted(maps.Keys(copies)) {
			f, is := asCopy(p.kind, copies[name])
			if is {
				seen.copies = append(seen.copies, f)
			}
			if is || isTemplate(f.Copy) {
				seen.left[p.home]++
			}
		}
	}
	return seen, nil
}

// hides is why a copy that was not seen may be there all the same; nil is that
// it is not. Of a cursor it is known whether its copy is one of LVM.
func (seen sight) hides(f aboutFile) error {
	for _, p := range seen.places {
		err := seen.unseen[p.home]
		switch {
		case f.kind == kindCursor && host.IsUUID(f.uuid) == (p.kind == "lvm"), f.kind == kindSidecar:
		case f.kind != kindCursor && p.note == "":
		case err != nil:
			return err
		}
	}
	return nil
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
		if names || r.Domain == f.Domain && r.Key() == f.Key && !seen.ready(r) {
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

// ready says that a receipt's own copy is there and complete, so that another
// one of its disk is none that a guest wrote to.
func (seen sight) ready(r Receipt) bool {
	return slices.ContainsFunc(seen.copies, func(f foundCopy) bool {
		return f.Copy.State == Ready && f.Copy.UUID == r.Copy && f.Copy.Home == r.Home && f.Copy.Name == r.Name
	})
}

// disk is as much of the disk as its copy tells.
func (f foundCopy) disk() Disk {
	d := Disk{Domain: f.Domain, Target: f.Key, Backend: f.Backend, OnStop: Keep, Home: f.Copy.Home}
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
