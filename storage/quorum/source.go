// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// A set takes the place of a disk. If somebody wrote to the disk after the set
// was built from it, the guest would find itself with older data, and nothing
// would tell. So a set keeps what it was filled from, or found equal to, until a
// guest is about to write to the set. What is not known by a fingerprint the
// content decides.

// Source is the disk whose content a set holds.
type Source struct {
	Path string `json:"path"` // its top image
	// Fingerprint is as imagecheck has it; "" where a block device is in the
	// chain, which does not tell whether it was written to.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Compared is when the two were last found to be equal; zero is a set that
	// was filled from it.
	Compared time.Time `json:"compared,omitzero"`
	// For is the disk of a domain that was bound to the set then, and whose guest
	// writes to Path no more.
	For *Use `json:"for,omitempty"`
}

func sourceOf(disk []imagecheck.Layer, info imagecheck.Info) *Source {
	src := Source{Path: disk[0].Path, Fingerprint: info.Fingerprint}
	if info.Block {
		src.Fingerprint = ""
	}
	return &src
}

// Current refuses a set that does not hold what the disk holds whose chain is
// given, top first. It is for who binds the disk to the set, while nobody runs
// on the disk; it may read all of both, and changes nothing. A set in use, and
// one that holds something else, are a failure.Conflict with the way out.
func (s *Service) Current(ctx context.Context, name string, disk []imagecheck.Layer, report progress.Func) error {
	held, set, err := s.hold(name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := refuseWhile(set, ""); err != nil {
		return err
	}
	info, err := s.checker().Chain(ctx, disk)
	if err != nil {
		return err
	}
	now := sourceOf(disk, info).Fingerprint
	if now != "" && set.Source != nil && now == set.Source.Fingerprint {
		return nil
	}
	found, err := s.compare(ctx, set, disk, report, held.File())
	if err != nil {
		return err
	}
	return set.unlike(failure.Conflict, disk[0], found)
}

// VerifyAgainst is Verify that compares a disk as well, top first, which nobody
// may write to meanwhile; in the Verification it is called "source". If record is
// asked for and the set holds what the disk holds, that is noted durably: the
// disk may be replaced by the set, as Fits finds it unchanged. The error also
// says that it does not (failure.Problems).
func (s *Service) VerifyAgainst(ctx context.Context, name string, disk []imagecheck.Layer, record bool, report progress.Func) (Verification, error) {
	held, set, err := s.hold(name)
	if err != nil {
		return Verification{}, err
	}
	defer held.Release()
	if err := refuseWhile(set, ""); err != nil {
		return Verification{}, err
	}
	before, err := s.checker().Chain(ctx, disk)
	if err != nil {
		return Verification{}, err
	}
	found, err := s.compare(ctx, set, disk, report, held.File())
	if err != nil {
		return found, err
	}
	differs := set.unlike(failure.Problems, disk[0], found)
	switch {
	case !record:
		return found, differs
	case differs == nil:
		return found, s.noteSource(ctx, set, disk, before.Fingerprint, nil)
	case set.Source != nil && set.Source.Fingerprint == "":
		// An earlier comparison with a device does not hold any more.
		set.Source = nil
		return found, errors.Join(differs, s.save(set))
	}
	return found, differs
}

// Bound notes that a disk of a domain, which Current has passed and whose
// fingerprint was before then, is bound to the set.
func (s *Service) Bound(ctx context.Context, name string, use Use, disk []imagecheck.Layer, before string) error {
	held, set, err := s.hold(name)
	if err != nil {
		return err
	}
	defer held.Release()
	return s.noteSource(ctx, set, disk, before, &use)
}

// Unbound takes back that a disk is bound, before it gets its own image back. A
// set that is gone or knows nothing of it is no error.
func (s *Service) Unbound(name string, use Use) error {
	return s.amend(name, func(set *Set) bool {
		if set.Source == nil || set.Source.For == nil || !set.Source.For.isDisk(use) {
			return false
		}
		set.Source.For, set.Source.Compared = nil, time.Time{}
		return true
	})
}

// noteSource is durable when it returns. The caller has the set's lock, and the
// two were found equal since before was the disk's fingerprint.
func (s *Service) noteSource(ctx context.Context, set Set, disk []imagecheck.Layer, before string, bound *Use) error {
	info, err := s.checker().Chain(ctx, disk)
	if err != nil {
		return err
	}
	if info.Fingerprint != before {
		err := failure.New(failure.Temporary, "%s: %s was written to while it was compared", &set, disk[0].Path)
		return failure.Hint(err, "end what writes to it, then run this again")
	}
	set.Source = sourceOf(disk, info)
	set.Source.Compared, set.Source.For = time.Now().UTC().Truncate(time.Second), bound
	return s.save(set)
}

// compare holds a set that the caller has locked against a disk.
func (s *Service) compare(ctx context.Context, set Set, disk []imagecheck.Layer, report progress.Func, held *os.File) (Verification, error) {
	s.Activate(ctx, set)
	d, observed, err := s.Decide(ctx, set)
	if err == nil {
		err = d.Veto
	}
	if err != nil {
		return Verification{}, err
	}
	c, err := s.muster(ctx, set, roles(set, d, observed, ""), true, held)
	if err != nil {
		return Verification{}, err
	}
	defer c.dismiss()
	chain, err := typed(disk)
	if err != nil {
		return Verification{}, err
	}
	source, err := s.openSource(ctx, chain, set.Size, held)
	if err != nil {
		return Verification{}, err
	}
	c.others = append(c.others, source) // held against the voters, and dismissed with them
	found, err := c.verify(ctx, report)
	if err == nil && len(found.NoMajority) > 0 {
		err = found.Err()
	}
	return found, err
}

// unlike says that a disk is not what the set holds; nil if it is.
func (s *Set) unlike(kind *failure.Kind, disk imagecheck.Layer, found Verification) error {
	differs := found.Differs[sourceID]
	if len(differs) == 0 {
		return nil
	}
	err := failure.New(kind, "%s: it does not hold what %s holds now: %d bytes differ from byte %d on, so one of them was written to since it was built", s, disk.Path, total(differs), differs[0].Offset)
	if s.User != nil {
		return failure.Hint(err, "%s", s.ofUser())
	}
	return failure.Hint(err, "%s", s.renewal(disk))
}

// renewal are the commands that make a set what a disk holds.
func (s *Set) renewal(disk imagecheck.Layer) string {
	i := slices.IndexFunc(s.Replicas, func(r Replica) bool { return r.Top().Path == disk.Path })
	if i >= 0 {
		return fmt.Sprintf("make all replicas what that one holds with `diskhook quorum resync --from %s %s`", s.Replicas[i].ID, s.Name)
	}
	var tops []string
	for _, r := range s.Replicas {
		tops = append(tops, r.Top().String())
	}
	argv := []string{"diskhook", "quorum", "build", "--overwrite", "--replicas", strings.Join(tops, ","), "--threshold", strconv.Itoa(s.Threshold)}
	if s.AllowMinority {
		argv = append(argv, "--allow-minority", "--read-pattern", s.ReadPattern)
	}
	argv = append(argv, "--from", disk.Path, "--from-format", disk.Format, s.Name)
	return fmt.Sprintf("build it from the disk as it is now: `diskhook quorum remove %s`, then `%s`", s.Name, command.Quote(argv))
}

// holdsSource refuses to pass a complete set for one that was just filled from
// another source, or from the same one as it is now.
func (s *Service) holdsSource(ctx context.Context, set Set, b Building) error {
	if len(b.From) == 0 || set.User != nil { // what a guest wrote since is the set's
		return nil
	}
	info, err := s.checker().Chain(ctx, b.From)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	now := sourceOf(b.From, info)
	if info.VirtualSize == set.Size && s.sameDevice(ctx, set.Source, *now) {
		return nil
	}
	err = failure.New(failure.Conflict, "%s: it is built already, and not known to hold what %s holds now", &set, b.From[0].Path)
	return failure.Hint(err, "see whether it does with `diskhook quorum verify --against %s %s`; or %s", b.From[0].Path, set.Name, set.renewal(b.From[0]))
}

// sourceUnchanged refuses a build whose source was written to meanwhile: the
// replicas may have something of before and something of after.
func (s *Service) sourceUnchanged(ctx context.Context, set Set) error {
	if set.Source == nil || set.Source.Fingerprint == "" {
		return nil
	}
	info, err := s.checker().Chain(ctx, layers(set.Intent.Source))
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if info.Fingerprint == set.Source.Fingerprint {
		return nil
	}
	err = failure.New(failure.Conflict, "%s: %s was written to while it was copied", &set, set.Intent.Source[0])
	return failure.Hint(err, "end what writes to it, then run the same command again")
}
