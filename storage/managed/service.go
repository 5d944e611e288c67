// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/lock"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Service attaches and detaches. All fields but Active are needed. It keeps no state
// between calls and may be used from any goroutine.
type Service struct {
	Layout host.Layout
	// Database is the path of the database; VDSM's own is one.
	Database string
	Host     *connector.Host
	Log      *slog.Logger
	// Boot identifies this boot (random(4)).
	Boot func() (string, error)
	// Active has the UUIDs of the domains that run. Reconcile alone asks; nil:
	// nobody knows.
	Active func(context.Context) (map[string]bool, error)
}

// New returns the service of this host. The root of the layout moves what
// diskhook keeps, and nothing of the kernel's.
func New(layout host.Layout, config host.Managed, log *slog.Logger) *Service {
	return &Service{
		Layout: layout, Database: config.Database, Log: log, Boot: layout.BootID,
		Host: &connector.Host{
			Run: command.System{}, Log: log, Root: "/", Find: command.Find,
			Private: filepath.Join(layout.Run(), "managed"), Mounts: filepath.Join(layout.Run(), "mounts"),
			Adapters: config.Adapters, InUse: blockdev.InUse, Opened: blockdev.Opened,
		},
	}
}

// undoTime bounds what is undone after the caller's time has run out.
const undoTime = 5 * time.Minute

// ConnectorInfo is what the storage side needs to know of this host.
func (s *Service) ConnectorInfo(ctx context.Context) (connector.Properties, error) {
	return s.Host.Properties(ctx)
}

// lockVolume keeps others away from one volume until unlock is called.
func (s *Service) lockVolume(ctx context.Context, id string) (unlock func(), err error) {
	return s.locks(ctx, volumeLock(id))
}

func volumeLock(id string) string { return "managed-volume-" + id }

// lockShared keeps others away from the targets, subsystems and mounts that a
// volume has in common with others: what is the last one to go, and what is
// there already, must not change while somebody acts on it. Lock files are
// never removed, so they are of a fixed number. Every caller takes them in
// the same order, after its volume's.
func (s *Service) lockShared(ctx context.Context, c connector.Connector) (unlock func(), err error) {
	var names []string
	for _, what := range c.Shares() {
		const buckets = 64
		names = append(names, fmt.Sprintf("managed-shared-%02d", sha256.Sum256([]byte(what))[0]%buckets))
	}
	slices.Sort(names)
	return s.locks(ctx, slices.Compact(names)...)
}

func (s *Service) locks(ctx context.Context, names ...string) (func(), error) {
	if err := atomicfile.MkdirAll(s.Layout.Locks(), 0o755); err != nil {
		return nil, err
	}
	var held []*lock.Lock
	unlock := func() {
		for _, l := range held {
			l.Release()
		}
	}
	for _, name := range names {
		l, err := lock.Acquire(ctx, s.Layout.Locks(), name)
		if err != nil {
			unlock()
			return nil, err // it names the lock
		}
		held = append(held, l)
	}
	return unlock, nil
}

// withDatabase opens the database for one piece of work: VDSM may replace the
// file between two.
func (s *Service) withDatabase(ctx context.Context, work func(*database.DB) error) error {
	db, err := database.Open(ctx, s.Database)
	if err != nil {
		return err
	}
	return errors.Join(work(db), db.Close())
}

// reading is withDatabase for work that changes nothing, and is left out where
// there is no database yet.
func (s *Service) reading(ctx context.Context, work func(*database.DB) error) error {
	if _, err := os.Stat(s.Database); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.withDatabase(ctx, work)
}

func (s *Service) update(ctx context.Context, change func(*database.Tx) error) error {
	return s.withDatabase(ctx, func(db *database.DB) error { return db.Update(ctx, change) })
}

// row returns the volume's row, or nil.
func (s *Service) row(ctx context.Context, id string) (*database.Volume, error) {
	var rows []database.Volume
	err := s.reading(ctx, func(db *database.DB) (err error) {
		rows, err = db.Volumes(ctx, id)
		return err
	})
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	return &rows[0], nil
}

// lookTime is how long storage may take to say whether a path leads somewhere.
const lookTime = 10 * time.Second

// here says whether the path leads somewhere. A dead server may never answer;
// that is command.ErrNoAnswer.
func here(ctx context.Context, path string) (bool, error) {
	if path == "" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return command.Abandon(ctx, func() (bool, error) {
		_, err := os.Stat(path)
		return err == nil, nil
	})
}

// atOnce looks at n things, some at a time, since each may wait for storage that
// does not answer. The error is that of the first in order.
func atOnce(n int, look func(int) error) error {
	const some = 16
	failed := make([]error, n)
	turns := make(chan struct{}, some)
	var all sync.WaitGroup
	for i := range n {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			failed[i] = look(i)
		})
	}
	all.Wait()
	return cmp.Or(failed...)
}

// Links is the directory of the stable paths, Link one of them: what a domain
// names, whatever the device is called.
func (s *Service) Links() string { return filepath.Join(s.Layout.Run(), "volumes") }

// Link is the stable path of a volume.
func (s *Service) Link(id string) string { return filepath.Join(s.Links(), id) }

// link makes the stable path lead to where the volume is, in one step.
func (s *Service) link(id, to string) error {
	if now, err := os.Readlink(s.Link(id)); err == nil && now == to {
		return nil
	}
	if err := atomicfile.MkdirAll(s.Links(), 0o755); err != nil {
		return err
	}
	// A name that is no id, so that nobody takes it for a volume's.
	temporary := filepath.Join(s.Links(), ".new-"+id)
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	if err := os.Symlink(to, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, s.Link(id))
}

// unlink removes the stable path, and the rule of Own with it.
func (s *Service) unlink(ctx context.Context, id string) error {
	err := s.Host.Disown(ctx, id)
	if gone := os.Remove(s.Link(id)); gone != nil && !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// Own gives an attached volume to a user and a group until it is detached,
// whatever udev does with its node meanwhile.
func (s *Service) Own(ctx context.Context, id string, uid, gid int) error {
	if err := CheckID(id); err != nil {
		return err
	}
	unlock, err := s.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.Host.Own(ctx, id, s.Link(id), uid, gid); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}
