// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// kind is what verbs on definitions have to know of a kind of binding by which a disk
// gets other data than its own. Each has a file, and its place in kinds.
type kind interface {
	// binds says whether a binding is the kind's to judge.
	binds(bindings.Binding) bool
	// free refuses what a disk of other has, a domain of this host, maybe d itself.
	free(d Domain, b bindings.Bound, other Facts) error
	// fits refuses what else is wrong with giving it to the disk.
	fits(ctx context.Context, d Domain, b bindings.Bound) error
	// note is what an operator has to know of a disk that p binds; "" is nothing.
	note(p *Plan, b bindings.Bound) string

	// used are the disks of d whose guests this host knows to have written to what the
	// kind keeps, by target, and what that is; also disks that are not bound any more.
	used(d Domain) (map[string]string, error)
	// giveBack adds to p what becomes of that for a disk, or asks for the operator's word
	// where it would go out of sight.
	giveBack(p *Plan, target string, g GivingUp) error
	// undo changes what a disk has besides its source because it is bound so.
	undo(e xmlrewrite.BoundDisk) []xmlrewrite.Rewriter
	// leave is told of a disk that is about to lose its binding.
	leave(d Domain, e xmlrewrite.BoundDisk) error
}

// plain are kinds whose data stays where it is, for whoever is bound to it next.
type plain struct{}

func (plain) used(Domain) (map[string]string, error)          { return nil, nil }
func (plain) giveBack(*Plan, string, GivingUp) error          { return nil }
func (plain) undo(xmlrewrite.BoundDisk) []xmlrewrite.Rewriter { return nil }
func (plain) leave(Domain, xmlrewrite.BoundDisk) error        { return nil }

func (s *Service) kinds() []kind {
	return []kind{replicas{s}, volumes{Service: s}, images{Service: s}, thins{Service: s}}
}

// allUsed is what the disks of a domain have written to, of whatever kind, by target.
func (s *Service) allUsed(d Domain) (map[string]string, error) {
	all := map[string]string{}
	for _, k := range s.kinds() {
		of, err := k.used(d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		maps.Copy(all, of)
	}
	return all, nil
}

// leaveAll has the kinds know which disks are about to lose their binding: from then on
// the guest writes to what they were.
func (s *Service) leaveAll(p *Plan) error {
	for _, target := range p.released {
		e := p.Domain.entry(target)
		if e == nil {
			continue
		}
		for _, k := range s.kinds() {
			if err := k.leave(p.Domain, *e); err != nil {
				return fmt.Errorf("%s: disk %s: %w", p.Domain, target, err)
			}
		}
	}
	return nil
}

// each calls do for the disks of each kind.
func (s *Service) each(bound []bindings.Bound, do func(kind, bindings.Bound) error) error {
	for _, k := range s.kinds() {
		for _, b := range bound {
			if !k.binds(b.Binding) {
				continue
			}
			if err := do(k, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// free refuses to bind disks to what other domains have: as their disks are, or were
// before they were bound, and as they are bound.
func (s *Service) free(ctx context.Context, d Domain, bound []bindings.Bound, others []Facts) error {
	if err := s.notShared(ctx, d, bound, others); err != nil {
		return err
	}
	return s.each(bound, func(k kind, b bindings.Bound) error {
		for _, other := range others {
			if err := k.free(d, b, other); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) fit(ctx context.Context, d Domain, bound []bindings.Bound) error {
	return s.each(bound, func(k kind, b bindings.Bound) error { return k.fits(ctx, d, b) })
}

func (s *Service) notes(p *Plan) (notes []string) {
	_ = s.each(p.binds, func(k kind, b bindings.Bound) error {
		if note := k.note(p, b); note != "" {
			notes = append(notes, note)
		}
		return nil
	})
	return notes
}

// apart refuses what a disk of another domain has; hint is how both get their own.
func apart(d Domain, b bindings.Bound, what, target string, other Facts, hint string, args ...any) error {
	err := failure.New(failure.Conflict, "%s: disk %s: %s is disk %s of domain %s", d, b.Disk.Target, what, failure.OneLine(target), failure.OneLine(other.Name))
	return failure.Hint(err, hint, args...)
}

// keptFor is the disk of another domain whose metadata bind it to what keeps the data
// of b, "" if none is, or both only read it.
func keptFor(d Domain, b bindings.Bound, other Facts) string {
	if other.UUID == d.UUID {
		return ""
	}
	doc, entries := other.bound()
	for _, e := range entries {
		theirs, there := doc.Disk(e.Target)
		if reads := b.Disk.ReadOnly && there && theirs.ReadOnly; b.IsKept(e) && !reads {
			return e.Target
		}
	}
	return ""
}

// bound is what a domain's definition says itself of its disks' bindings: nothing, where
// it is a clone's, or cannot be read and so is not ours to judge.
func (f Facts) bound() (*xmlrewrite.Document, []xmlrewrite.BoundDisk) {
	doc, err := xmlrewrite.Parse([]byte(f.XML))
	if err != nil {
		return nil, nil
	}
	metadata, err := doc.Metadata()
	if err != nil || metadata == nil || metadata.Domain != f.UUID {
		return nil, nil
	}
	return doc, metadata.Disks
}

// isAt says whether a disk is what is at a path, by another name, or nothing that could
// hold data.
func isAt(ctx context.Context, disk bindings.Disk, path string) (bool, error) {
	if disk.Path == "" || disk.Path == path {
		return disk.Path == path || disk.Socket == "", nil
	}
	return withPatience(ctx, func() (bool, error) {
		now, err := os.Stat(disk.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		there, err := os.Stat(path)
		return err == nil && os.SameFile(now, there), nil
	})
}

// different refuses a disk with data of its own: nobody knows whether what is to be in
// its place holds them. The hint is how they get there.
func different(d Domain, b bindings.Bound, hint string, args ...any) error {
	err := failure.New(failure.Conflict, "%s: disk %s is %s, and nobody knows whether %s holds what that holds", d, b.Disk.Target, describeSource(b), b.Kept())
	return failure.Hint(err, hint, args...)
}

func describeSource(b bindings.Bound) string { return failure.OneLine(b.Disk.At()) }

func onDisk(d Domain, b bindings.Bound, err error) error {
	if err != nil {
		err = fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
	}
	return err
}
