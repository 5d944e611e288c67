// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// What a guest wrote to a set is in the set alone, and belongs to one disk of one
// domain: the set's User. Before a set takes a disk's place for the first time,
// Fits asks for proof that it holds what the disk holds. Who binds disks keeps
// receipts of sets in use, and does not ask again; the User in the definition
// is for those that were lost, and for disks that have none.

// Former is what a disk is without the set that takes its place.
type Former struct {
	// Chain are its images, top first, as far as they are told; none: nobody
	// knows.
	Chain []imagecheck.Layer
	// Replicas: it is the set's replicas themselves, by an element that names
	// them. There is nothing else that could be newer.
	Replicas bool
}

// Fits refuses a set that is not known to hold what the disk of use holds, which
// it is to replace: the guest would find older data. Nothing but headers is read.
// It returns the fingerprint of the disk, for Use, or "" where that tells
// nothing.
//
// A set with what another guest wrote is a failure.Conflict, and so is a disk
// that is not what the set was filled from or compared with; what cannot be
// known a failure.Precondition. The hints are the ways out.
func (s *Service) Fits(ctx context.Context, name string, use Use, was Former) (string, error) {
	set, err := s.Load(name)
	if err != nil {
		return "", err
	}
	if err := set.OfAnother(use); err != nil {
		return "", err
	}
	if was.Replicas || s.serving(name, use) {
		return "", nil
	}
	if len(was.Chain) == 0 {
		err := failure.New(failure.Precondition, "%s: whether it holds what the disk held is not known: nothing tells what the disk is without it", &set)
		return "", failure.Hint(err, "if the set is to be the disk, %s", set.accept(use))
	}
	now, err := s.look(ctx, was.Chain)
	if err != nil {
		err = failure.New(failure.Precondition, "%s: whether it holds what %s holds is not known: %w", &set, was.Chain[0].Path, err)
		return "", failure.Hint(err, "bring the disk back, or, if the set is to be the disk, %s", set.accept(use))
	}
	if kind, why := set.unproven(use, *now, s.sameDevice(ctx, set.Source, *now)); why != "" {
		against := command.Quote([]string{"diskhook", "quorum", "verify", "--against", was.Chain[0].Path, "--against-format", was.Chain[0].Format, name})
		err := failure.New(kind, "%s: it may not hold what %s holds now: %s", &set, was.Chain[0].Path, why)
		return "", failure.Hint(err, "compare the two with `%s`; or, if the set and not that is to be the disk, %s", against, set.accept(use))
	}
	return now.Fingerprint, nil
}

// lookTimeout bounds how long headers are read: a hook waits.
const lookTimeout = 10 * time.Second

func (s *Service) look(ctx context.Context, chain []imagecheck.Layer) (*Source, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	checker := s.checker()
	checker.User = s.Reader
	last := len(chain) - 1
	below, err := checker.Discover(ctx, chain[last])
	if err != nil {
		return nil, err
	}
	chain = append(chain[:last:last], below...)
	info, err := checker.Chain(ctx, chain)
	if err != nil {
		return nil, err
	}
	return sourceOf(chain, info), nil
}

// comparedFor is how long a comparison with a block device counts. Nothing
// tells that it was written to since, so that it has to be recent.
const comparedFor = time.Hour

// unproven says why a set may not hold what a disk holds; "" if it does. same:
// the disk is the device that the set's source was.
func (s *Set) unproven(use Use, now Source, same bool) (*failure.Kind, string) {
	src, user := s.Source, s.User
	equal := func(other string) bool { return now.Fingerprint != "" && now.Fingerprint == other }
	switch {
	case src != nil && equal(src.Fingerprint), user != nil && equal(user.Fingerprint):
		return nil, ""
	case user != nil && src == nil:
		return failure.Conflict, "the set has what this disk's guest wrote, but there is no receipt of that, and what the disk was before has changed or cannot be told"
	case src == nil:
		return failure.Precondition, "the set was neither filled from a disk nor compared with one since its content was last chosen"
	case now.Fingerprint != "":
		return failure.Conflict, fmt.Sprintf("that is not %s as it was when the set was made of it or compared with it", src.Path)
	case !same:
		return failure.Conflict, fmt.Sprintf("the set was made of %s or compared with that", src.Path)
	case src.For != nil && src.For.isDisk(use):
		return nil, ""
	case src.Compared.IsZero():
		return failure.Precondition, "a block device does not tell whether it was written to since the set was made of it"
	}
	if age := time.Since(src.Compared); age < 0 || age > comparedFor {
		return failure.Precondition, fmt.Sprintf("they were compared at %s, and a block device does not tell whether it was written to since", src.Compared.Format(time.RFC3339))
	}
	return nil, ""
}

// sameDevice says that a set's source and a disk are one block device, be it by
// two names.
func (s *Service) sameDevice(ctx context.Context, src *Source, now Source) bool {
	if src == nil || src.Fingerprint != "" || now.Fingerprint != "" || src.Path == now.Path {
		return src != nil && src.Fingerprint == now.Fingerprint
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	same, err := command.Abandon(ctx, func() (bool, error) {
		a, errA := os.Stat(src.Path)
		b, errB := os.Stat(now.Path)
		return errA == nil && errB == nil && sameNode(a, b), nil
	})
	return same && err == nil
}

// accept is the command by which an operator gives up what a disk was.
func (s *Set) accept(use Use) string {
	return fmt.Sprintf("say so with `diskhook quorum accept --discard-disk-data %s %s %s`", s.Name, use.Domain, use.key())
}

// OfAnother refuses a set that has what another guest than that of use wrote
// (failure.Conflict).
func (s *Set) OfAnother(use Use) error {
	if s.User == nil || s.User.isDisk(use) {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: it has what the guest of domain %s wrote to its disk %s", s, s.User.domain(), failure.OneLine(clip(s.User.Target)))
	return failure.Hint(err, "build a set of its own with `diskhook quorum build --replicas A,B,C --threshold 2 --from SRC NAME`, or give up what that guest wrote with `%s`", s.forgetCommand())
}

// Unwritten refuses a set that has what a guest wrote, which nothing else has
// (failure.Conflict).
func (s *Set) Unwritten() error {
	if s.User == nil {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: it has what the guest of domain %s wrote to its disk %s, and nothing else has", s, s.User.domain(), failure.OneLine(clip(s.User.Target)))
	if s.User.key() != s.User.Target { // oVirt's
		return failure.Hint(err, "give that up with `%s`, then run this again", s.forgetCommand())
	}
	return failure.Hint(err, "keep that with `diskhook domain revert --export FILE %s %s`, or give it up with `%s`; then run this again", s.User.Domain, s.User.Target, s.forgetCommand())
}

// ofUser is the way out where a guest's data is in the way.
func (s *Set) ofUser() string {
	return fmt.Sprintf("it has what the guest of domain %s wrote to its disk %s; if that is what counts, %s; else give it up with `%s`", s.User.domain(), failure.OneLine(clip(s.User.Target)), s.accept(*s.User), s.forgetCommand())
}

func (s *Set) forgetCommand() string {
	return fmt.Sprintf("diskhook quorum forget --discard-guest-data %s %s", s.User.Domain, s.User.key())
}

// serving says that a guest has the set as this very disk now.
func (s *Service) serving(name string, use Use) bool {
	live, err := s.Live(name)
	return err == nil && live.State == Serving && live.Use.isDisk(use) && startOf(live.PID) != ""
}

// begun notes durably that from now on the guest of use writes to the set, whose
// lock the caller has. It refuses one that another guest has written to since
// the claim was made.
func (s *Service) begun(name string, use Use) error {
	set, err := s.Load(name)
	if err != nil {
		return err
	}
	if err := set.OfAnother(use); err != nil {
		return err
	}
	if use.Fingerprint == "" && set.User != nil {
		use.Fingerprint = set.User.Fingerprint
	}
	if set.Source == nil && set.User != nil && *set.User == use {
		return nil
	}
	set.Source, set.User = nil, &use
	if err := s.save(set); err != nil {
		return err
	}
	return failpoint.Hit("quorum.begun")
}

// Accept takes an operator's word that a set, as it is, is the disk of use from
// now on. A set with what another guest wrote is a failure.Conflict.
func (s *Service) Accept(name string, use Use) error {
	held, err := s.Lock(name)
	if err != nil {
		return err
	}
	defer held.Release()
	return s.begun(name, use)
}

// Forget takes an operator's word that what the guest of use wrote to the set
// called name, of that uuid ("" is any), is given up or kept elsewhere. A set
// that is gone, or has nothing of it, is no error.
func (s *Service) Forget(name, uuid string, use Use) error {
	return s.amend(name, func(set *Set) bool {
		if set.User == nil || !set.User.isDisk(use) || uuid != "" && uuid != set.UUID {
			return false
		}
		set.User = nil
		return true
	})
}

// amend changes the definition of a set, if it is there, under its lock, which is
// not asked for where change has nothing to do.
func (s *Service) amend(name string, change func(*Set) bool) error {
	set, err := s.Load(name)
	if errors.Is(err, failure.NotFound) {
		return nil
	}
	if err != nil || !change(&set) {
		return err
	}
	held, err := s.Lock(name)
	if err != nil {
		return err
	}
	defer held.Release()
	if set, err = s.Load(name); err != nil || !change(&set) {
		return err
	}
	return s.save(set)
}
