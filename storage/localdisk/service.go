// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
)

// Service does the work on local copies. All fields but User, Owner,
// Images and Thin are needed. It keeps no state between calls and may be used from any goroutine.
type Service struct {
	Layout host.Layout
	Config host.Config
	Run    command.Runner
	Log    *slog.Logger

	// Program is the absolute path of diskhook, which is started as
	// `diskhook local fill JOBFILE` for each copy.
	Program string
	// User reads the sources of oVirt's disks, and Owner gets the nodes of
	// their copies; see OVirtIdentities. nil is ourselves.
	User  *command.Credential
	Owner *Owner
	// Images are those of storage repositories; nil: there are none here.
	Images Images
	// Thin is this host's side of thin clusters; nil: there are none here.
	Thin Pools
}

// Owner is the numeric owner of a node or file.
type Owner struct{ UID, GID int }

// Observe looks at all disks at once and changes nothing. LVM is asked once
// per volume group.
func (s *Service) Observe(ctx context.Context, disks []Disk) ([]Observed, error) {
	if err := validate(disks); err != nil {
		return nil, err
	}
	observed, err := s.observe(ctx, disks, s.held)
	if err == nil {
		s.lookBelow(ctx, observed)
	}
	return observed, err
}

// held says whether somebody holds the disk's lock.
func (s *Service) held(d Disk) (bool, error) {
	return lock.Held(s.Layout.Locks(), lockName(d.Domain, d.Key()))
}

func (s *Service) observe(ctx context.Context, disks []Disk, busy func(Disk) (bool, error)) ([]Observed, error) {
	machine, err := s.Layout.MachineID()
	if err != nil {
		return nil, failure.Hint(failure.Wrap(failure.Precondition, err), "run `systemd-machine-id-setup`")
	}
	observed, named := make([]Observed, len(disks)), make([]Disk, len(disks))
	for i, d := range disks {
		r, err := ReadReceipt(s.Layout, d.Domain, d.Key())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		named[i] = d.named(r)
		observed[i] = Observed{Disk: named[i], Receipt: r, Machine: machine, Saved: Saved(s.Layout, d.Domain)}
	}
	all, err := s.look(ctx, named)
	if err != nil {
		return nil, err
	}
	for i, d := range disks {
		o := observed[i]
		s.seen(&o, all)
		if o.Receipt == nil && o.Copy.State == Absent {
			if err := s.leftBehind(ctx, &o); err != nil {
				return nil, fmt.Errorf("%s: %w", d, err)
			}
		}
		if o.Busy, err = busy(d); err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		o.Begun = s.begun(o.Copy)
		if st, err := progress.Read(s.statusPath(d.Domain, d.Key())); err == nil {
			o.Status = &st
		}
		o.Stuck = !o.Busy && stuck(o.Copy, false, o.Status)
		observed[i] = o
	}
	return observed, nil
}

// homes is what there is in each home, by name.
type homes map[string]surveyed

type surveyed struct {
	copies map[string]Copy
	room   room
}

// look asks the home of each disk once.
func (s *Service) look(ctx context.Context, disks []Disk) (homes, error) {
	all := homes{}
	for _, d := range disks {
		b := s.backend(d)
		if _, asked := all[b.home()]; asked {
			continue
		}
		copies, free, err := b.survey(ctx)
		if err != nil {
			return nil, failure.Denied(fmt.Errorf("%s: %w", d, err))
		}
		all[b.home()] = surveyed{copies, free}
	}
	return all, nil
}

func (h homes) copy(home, name string) Copy {
	if c, ok := h[home].copies[name]; ok {
		return c
	}
	return Copy{State: Absent, Name: name, Home: home}
}

// seen looks up the copy of a disk, and the template that it lies on, with what
// is wrong with that.
func (s *Service) seen(o *Observed, all homes) {
	home := s.backend(o.Disk).home()
	o.Copy = all.copy(home, o.Disk.CopyName())
	if name := o.lowest(); name != "" {
		o.Template = all.copy(home, name)
	}
	o.Below = unlikeTemplate(*o)
	o.room = all[home].room
}

// find looks the copies of all disks up.
func (s *Service) find(ctx context.Context, disks []Disk) ([]Copy, error) {
	all, err := s.look(ctx, disks)
	if err != nil {
		return nil, err
	}
	found := make([]Copy, len(disks))
	for i, d := range disks {
		found[i] = all.copy(s.backend(d).home(), d.CopyName())
	}
	return found, nil
}

func lockName(domain, key string) string { return "local-" + domain + "-" + key }

func (s *Service) statusPath(domain, key string) string {
	return filepath.Join(s.Layout.Status(), domain, key+".json")
}

func (s *Service) logPath(domain, key string) string {
	return filepath.Join(s.Layout.Status(), domain, key+".log")
}

// runDirs makes what tmpfiles.d makes on an installed host.
func (s *Service) runDirs() error {
	for _, dir := range []string{s.Layout.Run(), s.Layout.Locks(), s.Layout.Links(), s.Layout.Status()} {
		if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return nil
}

// lockDisks takes the locks of all disks without waiting. A disk whose lock
// somebody else holds is busy. release gives all of them up.
func (s *Service) lockDisks(disks []Disk) (busy func(Disk) (bool, error), release func(), err error) {
	if err := errors.Join(validate(disks), s.runDirs()); err != nil {
		return nil, nil, err
	}
	var locks []*lock.Lock
	release = func() {
		for _, l := range locks {
			l.Release()
		}
	}
	held := map[string]bool{}
	for _, d := range disks {
		name := lockName(d.Domain, d.Key())
		l, err := lock.Try(s.Layout.Locks(), name)
		switch {
		case errors.Is(err, lock.ErrHeld):
			held[name] = true
		case err != nil:
			release()
			return nil, nil, fmt.Errorf("%s: %w", d, err)
		default:
			locks = append(locks, l)
		}
	}
	return func(d Disk) (bool, error) { return held[lockName(d.Domain, d.Key())], nil }, release, nil
}

// fits checks free space before anything is begun.
func fits(where string, free int64, sizes []int64, hint string) error {
	var need int64
	for _, n := range sizes {
		need += n
	}
	if need <= free {
		return nil
	}
	err := failure.New(failure.NoSpace, "%s: %d bytes are needed, %d are free beyond the reserve", where, need, max(0, free))
	return failure.Hint(err, "%s", hint)
}

func inUse(c Copy) error {
	err := failure.New(failure.Conflict, "%s: is open, or may be, and is not removed", c)
	return failure.Hint(err, "stop what uses it (`lsof %s`), then try again", c.Path)
}

// SetOwner gives the node of a placement to uid and gid, following no link
// that is not ours.
func (s *Service) SetOwner(_ context.Context, p Placement, uid, gid int) error {
	if err := os.Chown(p.Node, uid, gid); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disk %s: owner: %w", p.Target, err)
	}
	return nil
}

// lookTimeout bounds every look at a source: its storage may hang, and hooks
// wait for the answer.
const lookTimeout = 15 * time.Second

// Inspect looks at the headers of the source of d, as a copy would. Storage
// that does not answer is a failure.Temporary after 15 seconds at most. Of an
// image of a storage repository it asks the repository.
func (s *Service) Inspect(ctx context.Context, d Disk) (imagecheck.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if d.From != nil {
		info, _, err := s.lookUp(ctx, d)
		return info, err
	}
	return s.checker(d).Chain(ctx, d.Source)
}

// checker looks at the headers of the source of d, as the user who may read it.
func (s *Service) checker(d Disk) imagecheck.Checker {
	return imagecheck.Checker{Allowed: s.allowed(d), User: s.reader(d)}
}
