// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// A set takes the place of a disk. If somebody wrote to the disk after the set
// was built from it, the guest would find itself with older data, and nothing
// would tell. So a set keeps the fingerprint of what it was filled from until a
// guest is about to write to the set. A block device's fingerprint proves
// nothing, and images that were adopted have none: there the content decides.

// Current refuses a set that does not hold what the disk holds whose chain is
// given, top first. It is for who binds the disk to the set, while nobody runs
// on the disk; it may read all of both. A set in use, and one that holds
// something else, are a failure.Conflict with the way out.
func (s *Service) Current(ctx context.Context, name string, disk []imagecheck.Layer, report progress.Func) error {
	held, err := s.Lock(name)
	if err != nil {
		return err
	}
	defer held.Release()
	set, err := s.Load(name)
	if err != nil {
		return err
	}
	if err := refuseWhile(set, ""); err != nil {
		return err
	}
	info, err := s.checker().Chain(ctx, disk)
	if err != nil {
		return err
	}
	if now := fingerprintOf(info); now != "" && now == set.SourceFingerprint {
		return nil
	}
	s.Activate(ctx, set)
	d, observed, err := s.Decide(ctx, set)
	if err == nil {
		err = d.Veto
	}
	if err != nil {
		return err
	}
	voters, _, missing := roles(set, d, observed, "")
	c, err := s.muster(ctx, set, voters, nil, true, held.File())
	if err != nil {
		return err
	}
	defer c.dismiss()
	chain, err := typed(disk)
	if err != nil {
		return err
	}
	source, err := s.openSource(ctx, chain, set.Size, held.File())
	if err != nil {
		return err
	}
	c.others = append(c.others, source) // held against the voters, and dismissed with them
	c.missing = missing
	found, err := c.verify(ctx, report)
	if err != nil {
		return err
	}
	if len(found.NoMajority) > 0 {
		return found.Err()
	}
	differs := found.Differs[sourceID]
	if len(differs) == 0 {
		return nil
	}
	err = failure.New(failure.Conflict, "%s: it does not hold what %s holds now: %d bytes differ from byte %d on, so one of them was written to since it was built", &set, disk[0].Path, total(differs), differs[0].Offset)
	return failure.Hint(err, "%s", set.renewal(disk[0]))
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
	options := fmt.Sprintf("--overwrite --replicas %s --threshold %d", strings.Join(tops, ","), s.Threshold)
	if s.AllowMinority {
		options += " --allow-minority --read-pattern " + s.ReadPattern
	}
	return fmt.Sprintf("build it from the disk as it is now: `diskhook quorum remove %[1]s`, then `diskhook quorum build %[2]s --from %[3]s --from-format %[4]s %[1]s`", s.Name, options, disk.Path, disk.Format)
}

// fingerprintOf is "" where it would prove nothing.
func fingerprintOf(info imagecheck.Info) string {
	if info.Block {
		return ""
	}
	return info.Fingerprint
}

// sourceUnchanged refuses a build whose source was written to meanwhile: the
// replicas may have something of before and something of after.
func (s *Service) sourceUnchanged(ctx context.Context, set Set) error {
	if set.SourceFingerprint == "" {
		return nil
	}
	info, err := s.checker().Chain(ctx, layers(set.Intent.Source))
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if info.Fingerprint == set.SourceFingerprint {
		return nil
	}
	err = failure.New(failure.Conflict, "%s: %s was written to while it was copied", &set, set.Intent.Source[0])
	return failure.Hint(err, "end what writes to it, then run the same command again")
}

// written notes durably that from now on a guest writes to the set. The caller
// has its lock.
func (s *Service) written(name string) error {
	set, err := s.Load(name)
	if err != nil || set.SourceFingerprint == "" {
		return err
	}
	set.SourceFingerprint = ""
	return s.save(set)
}
