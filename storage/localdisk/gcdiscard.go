// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"strings"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// Is says whether the object is called that: by all of Object, or without the word
// that says what it is.
func (j Judged) Is(name string) bool {
	_, bare, _ := strings.Cut(j.Object, " ")
	return name == j.Object || name == bare
}

// Discardable refuses what Discard would refuse, as far as Judge could see.
func (j Judged) Discardable() error {
	if j.discard == nil {
		err := failure.New(failure.Conflict, "%s: it is no copy of a disk", j.Object)
		return failure.Hint(err, "`diskhook local gc --yes` takes what nobody needs")
	}
	if j.kept != nil {
		return fmt.Errorf("%s: %w", j.Object, j.kept)
	}
	return nil
}

// Discard removes a copy that no receipt tells of, with what a guest may have written to
// it: on the word of an operator who names this very object, as no other verb
// knows it. One that a receipt names, that is open or of unknown state, that somebody
// works on, or of a domain with saved memory, is a failure.Conflict or failure.Temporary,
// and so is what is no copy of a disk.
func (s *Service) Discard(ctx context.Context, j Judged, w Wipe) error {
	if err := j.Discardable(); err != nil {
		return err
	}
	if err := j.discard(ctx, w); err != nil {
		return fmt.Errorf("%s: %w", j.Object, err)
	}
	return nil
}

func (s *Service) discardCopy(ctx context.Context, f foundCopy, w Wipe) error {
	l, err := s.lockOne(ctx, f.Domain, f.Key)
	if err != nil {
		return err
	}
	defer l.Release()
	now, e, err := s.evidenceAgain(ctx, f)
	if err != nil || now == nil {
		return err
	}
	if err := s.discardable(e, *now); err != nil {
		return err
	}
	if err := s.mayWipe(ctx, *now, w); err != nil {
		return err
	}
	if err := s.spoil(ctx, now); err != nil {
		return err
	}
	return s.removeUnused(ctx, *now, e, w)
}

// spoil marks a copy unfinished before anything of it goes, as no receipt is there to
// hold that it is being discarded: one that lost a part is then never adopted, and the
// next gc or start makes an end of it.
func (s *Service) spoil(ctx context.Context, f *foundCopy) (err error) {
	// First what would have a start go on with it.
	if err := s.forget(f.Copy); err != nil {
		return fmt.Errorf("cursor %w", err)
	}
	if f.Copy, err = s.backend(f.disk()).spoil(ctx, f.Copy); err != nil {
		return err
	}
	return failpoint.Hit("gc.spoiled")
}

// discardable refuses a copy that has a verb of its own, or of which something is
// not known.
func (s *Service) discardable(e evidence, f foundCopy) error {
	whose := f.Domain + " " + f.Key
	switch {
	case f.Domain == "" || f.Key == "":
		err := failure.New(failure.Conflict, "whose disk it is cannot be told")
		return failure.Hint(err, "look at it with `diskhook local list`")
	case e.busy:
		return s.worked(f.Domain, f.Key)
	case e.unknown != nil:
		return e.unknown
	case e.other:
		err := failure.New(failure.Conflict, "left by a change to a raw copy that was interrupted")
		return failure.Hint(err, "run `diskhook local settle --raw %s`", whose)
	case len(e.claims) > 0:
		err := failure.New(failure.Conflict, "a receipt tells of it")
		return failure.Hint(err, "run `diskhook local remove --discard-guest-data %s`", whose)
	case e.saved:
		err := failure.New(failure.Conflict, "the domain has saved memory, which may need it")
		return failure.Hint(err, "start the domain and shut it down")
	case e.copy.Sick != "":
		err := failure.New(failure.Conflict, "its state is unknown: %s", e.copy.Sick)
		return failure.Hint(err, "see `diskhook local list`")
	case !e.copy.closed():
		return inUse(e.copy)
	}
	return nil
}
