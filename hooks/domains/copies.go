// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// Verbs on copies that the metadata of a domain speak of, too.

// prestage has the disks' copies filled and notes them in the metadata. A copy
// that no guest used, and whose source was written to since, is made again.
func (s *Service) prestage(ctx context.Context, disks []localdisk.Disk, fill func([]localdisk.Disk) error) error {
	if err := s.fillable(disks); err != nil || len(disks) == 0 {
		return err
	}
	observed, err := s.Local.ObserveSources(ctx, disks)
	if err != nil {
		return err
	}
	var anew []string
	for i, o := range observed {
		switch localdisk.Decide(o).Action {
		case localdisk.Create, localdisk.Resume, localdisk.Replace, localdisk.Retire:
			anew = append(anew, o.Disk.Target)
			disks[i].Copy = "" // that of the new one is not known yet
		}
	}
	failed := fill(disks)
	if ctx.Err() != nil {
		return failed
	}
	release, err := s.hold(ctx, domainOf(disks[0]))
	if err != nil {
		s.Host.Log.Warn("the copies are made, but not noted in the metadata", "err", err)
		return failed // whoever works on the domain notes them
	}
	defer release()
	err = s.note(ctx, disks[0].Domain, disks[0].Key(), anew...)
	switch {
	case failed != nil:
		return failed
	case err != nil && s.startedMeanwhile(ctx, disks[0]):
		s.Host.Log.Warn("the copies are made, but not noted in the metadata: the domain starts", "err", err)
		return nil
	}
	return err
}

// startedMeanwhile says that the domain of a disk is active: a start that came
// while its copies were made has waited for them, and uses them.
func (s *Service) startedMeanwhile(ctx context.Context, disk localdisk.Disk) bool {
	facts, known, err := s.State(ctx, disk.Domain, disk.Key())
	return err == nil && known && facts.Active
}

func domainOf(d localdisk.Disk) bindings.Domain {
	return bindings.Domain{UUID: d.Domain, Name: d.DomainName}
}

// Recreate gives the copy of a disk up, as g says, and fills a new one.
func (s *Service) Recreate(ctx context.Context, disk localdisk.Disk, g localdisk.GiveUp, w localdisk.Waiting) error {
	release, err := s.hold(ctx, domainOf(disk))
	if err != nil {
		return err
	}
	defer release()
	if err := s.MayChange(ctx, disk.Domain, disk.Key()); err != nil {
		return err
	}
	if err := s.Local.Recreate(ctx, disk, g, w); err != nil {
		return err
	}
	return s.note(ctx, disk.Domain, disk.Key(), disk.Target)
}

// Rediscover looks up again what lies below a disk's source.
func (s *Service) Rediscover(ctx context.Context, disk localdisk.Disk) (localdisk.Disk, error) {
	if disk.From != nil {
		return disk, nil // its repository tells, and who copies it asks
	}
	source, err := s.Host.Discover(ctx, disk, disk.Source[0])
	if err != nil {
		err = fmt.Errorf("%s: its source: %w", disk, err)
		if failure.HintOf(err) == "" {
			err = failure.Hint(err, "bring its storage back, then try again; the copy was not touched")
		}
		return disk, err
	}
	disk.Source = source
	return disk, nil
}

// Remove gives the copy of a disk up, as g says.
func (s *Service) Remove(ctx context.Context, domain, key string, g localdisk.GiveUp) error {
	release, err := s.hold(ctx, bindings.Domain{UUID: domain})
	if err != nil {
		return err
	}
	defer release()
	if err := s.MayChange(ctx, domain, key); err != nil {
		return err
	}
	if err := s.Local.Withdraw(domain, key); err != nil {
		return err
	}
	if err := s.Local.Remove(ctx, domain, key, g); err != nil {
		return err
	}
	return s.note(ctx, domain, key, key)
}

// MayChange refuses to replace or give up a copy of a domain that libvirt says
// must not be touched, or of which that cannot be known; see State.
func (s *Service) MayChange(ctx context.Context, domain, key string) error {
	d, known, err := s.ask(ctx, domain, key)
	if err != nil || !known {
		return err
	}
	disk, there := d.Disk(key)
	isCopy := there && disk.Path == localdisk.StablePath(s.Host.Layout, d.UUID, key)
	if d.entry(key) == nil && !isCopy {
		return nil
	}
	return s.untouchable(d)
}

// MayAccept refuses to look at a source anew while libvirt says that the domain
// runs on it, or where that cannot be known; see State. Saved memory is no
// reason: the disk stays what it is, and without the source it cannot be restored.
func (s *Service) MayAccept(ctx context.Context, domain, key string) error {
	d, known, err := s.ask(ctx, domain, key)
	if err != nil || !known || !d.Facts.Active {
		return err
	}
	err = failure.New(failure.Conflict, "%s: it is %s", d, d.Facts.State)
	return failure.Hint(err, "shut it down with `virsh shutdown %s`, then run this again", d.NameArg())
}

// State is what libvirt says about the domain of a copy. known is false where
// no libvirt has the domain: then the copy's own checks are all there is to ask.
//
// That libvirt does not answer is an error: the domain may run, or have saved
// memory that needs the copy. No answer is needed
//   - under DISKHOOK_ROOT, unless a connection is named: there is no libvirt;
//   - for an image of oVirt: its libvirt answers VDSM alone, the hooks keep a
//     mark of saved memory, and no copy is given up while it is open;
//   - on a host without libvirt, which has neither a socket of its daemon nor a
//     definition of any domain.
func (s *Service) State(ctx context.Context, domain, key string) (facts Facts, known bool, err error) {
	d, known, err := s.ask(ctx, domain, key)
	return d.Facts, known, err
}

// ask looks up the domain of a copy, with the outcomes of State.
func (s *Service) ask(ctx context.Context, domain, key string) (d Domain, known bool, err error) {
	if s.Libvirt.URI == "" {
		return Domain{}, false, nil
	}
	d, err = s.Look(ctx, domain)
	switch {
	case err == nil, d.Doc != nil: // damaged metadata are no reason not to know the rest
		return d, true, nil
	case failure.KindOf(err) == failure.NotFound:
		return Domain{}, false, nil
	case host.IsUUID(key), s.Libvirt.URI == HostURI && !hasLibvirt(s.Host.Layout):
		s.Host.Log.Warn("libvirt was not asked", "domain", domain, "err", err)
		return Domain{}, false, nil
	}
	hint := failure.HintOf(err)
	if hint == "" {
		hint = "see whether `virsh list --all` works"
	}
	err = fmt.Errorf("domain %s: disk %s: whether it runs or has saved memory cannot be known: %w", domain, key, err)
	return Domain{}, false, failure.Hint(err, "%s; then run this again", hint)
}

// hasLibvirt says that the host has, or had, domains of libvirt. In doubt it has.
func hasLibvirt(l host.Layout) bool {
	for _, socket := range []string{"libvirt-sock", "virtqemud-sock"} {
		if _, err := os.Lstat(filepath.Join("/", l.Root, "run/libvirt", socket)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	entries, err := os.ReadDir(filepath.Join("/", l.Root, "etc/libvirt/qemu"))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".xml") })
}

// note records copies where there are metadata to record them in.
func (s *Service) note(ctx context.Context, domain, key string, anew ...string) error {
	d, known, err := s.ask(ctx, domain, key)
	if err != nil {
		s.Host.Log.Warn("the metadata do not tell of the copy", "err", err)
	}
	if !known || d.Metadata == nil {
		return nil
	}
	return s.record(ctx, domain, anew...)
}
