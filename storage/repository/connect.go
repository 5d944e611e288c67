// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
)

// Connection is a repository that this host knows, by the name it has here.
type Connection struct {
	Schema     string            `json:"schema"`
	RepoID     string            `json:"repoId"`
	Format     string            `json:"repoFormat"`
	Parameters map[string]string `json:"connectionParameters"`
	Nonce      string            `json:"nonce"` // of the repository's descriptor
}

const connectionSchema = "diskhook.repository/v1"

// Disconnect says how.
type Disconnect struct {
	// Force disconnects though tasks of this host run, it uses images, or the storage
	// hangs. The tasks are asked to stop, if that can be done.
	Force bool
}

// CreateStorageRepository makes an empty repository. One that is there already,
// of that format, is left as it is.
func (s *Service) CreateStorageRepository(ctx context.Context, repoFormat string, parameters map[string]string) error {
	f, err := s.format(repoFormat)
	if err != nil {
		return err
	}
	r := &repo{id: "(new)", deadline: s.Deadline, attached: &attached{}}
	if _, err = step(ctx, r, "create", func(ctx context.Context) (struct{}, error) { return struct{}{}, f.Create(ctx, parameters) }); err != nil {
		return err
	}
	if r.place, err = step(ctx, r, "open", func(ctx context.Context) (format.Place, error) { return f.Open(ctx, parameters) }); err != nil {
		return err
	}
	defer r.close()
	return r.change(ctx, func(u *update) error {
		about, err := get[descriptor](ctx, r, format.Repository, format.Descriptor)
		if err == nil && about.Format != repoFormat {
			return failure.New(failure.Conflict, "there is a repository of format %s already", about.Format)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return u.put(ctx, format.Repository, format.Descriptor,
			descriptor{V: documentVersion, Format: repoFormat, Nonce: uuid.NewString(), Created: now()})
	})
}

// PreviewCreate refuses what CreateStorageRepository would refuse now, and makes nothing.
func (s *Service) PreviewCreate(ctx context.Context, repoFormat string, parameters map[string]string) error {
	f, err := s.format(repoFormat)
	if err != nil {
		return err
	}
	r := &repo{id: "(new)", deadline: s.Deadline, attached: &attached{}}
	_, err = step(ctx, r, "look", func(ctx context.Context) (struct{}, error) { return struct{}{}, f.CanCreate(ctx, parameters) })
	return err
}

// ConnectStorageRepository lets this host use a repository under the name
// repoID, until DisconnectStorageRepository, over reboots. The same again is fine.
// ErrRepoIDInUse: the name is another repository's, or the repository has another name.
func (s *Service) ConnectStorageRepository(ctx context.Context, repoID, repoFormat string, connectionParameters map[string]string) error {
	unlock, err := s.lockConnections(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	c, already, err := s.connection(ctx, repoID, repoFormat, connectionParameters)
	if err != nil || already {
		return err
	}
	if err := atomicfile.MkdirAll(s.connections(), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(s.connectionPath(repoID), c, 0o600)
}

// PreviewConnect refuses what ConnectStorageRepository would refuse, and says whether there
// is nothing to do.
func (s *Service) PreviewConnect(ctx context.Context, repoID, repoFormat string, connectionParameters map[string]string) (already bool, err error) {
	_, already, err = s.connection(ctx, repoID, repoFormat, connectionParameters)
	return already, err
}

// CheckRepositoryID refuses a name that another repository has, whether what the parameters
// say is there or not; ErrRepoIDInUse. It says whether it is connected as these say.
func (s *Service) CheckRepositoryID(repoID, repoFormat string, connectionParameters map[string]string) (same bool, err error) {
	c, err := s.Connection(repoID)
	switch {
	case errors.Is(err, ErrNotConnected):
		return false, nil
	case err == nil && !(c.Format == repoFormat && maps.Equal(c.Parameters, connectionParameters)):
		return false, otherRepository(c)
	}
	return err == nil, err
}

func otherRepository(c Connection) error {
	err := fmt.Errorf("repository %s: %w: %s is connected with other parameters", c.RepoID, ErrRepoIDInUse, c.Format)
	return failure.Hint(err, "take another id, or `diskhook repo disconnect %s`", c.RepoID)
}

// connection is what would be remembered of a repository, or is already.
func (s *Service) connection(ctx context.Context, repoID, repoFormat string, parameters map[string]string) (c Connection, already bool, err error) {
	if err := checkRepoID(repoID); err != nil {
		return c, false, err
	}
	all, err := s.Connections()
	if err != nil {
		return c, false, err
	}
	c = Connection{Schema: connectionSchema, RepoID: repoID, Format: repoFormat, Parameters: parameters}
	r, err := s.open(ctx, c)
	if err != nil {
		return c, false, err
	}
	defer r.close()
	c.Nonce = r.about.Nonce
	for _, other := range all {
		same := other.Format == c.Format && other.Nonce == c.Nonce && maps.Equal(other.Parameters, c.Parameters)
		switch {
		case other.RepoID == repoID && same:
			return c, true, nil
		case other.RepoID == repoID:
			return c, false, otherRepository(other)
		case other.Nonce == c.Nonce:
			err := fmt.Errorf("repository %s: %w: it is connected as %s already", repoID, ErrRepoIDInUse, other.RepoID)
			return c, false, failure.Hint(err, "use that, or `diskhook repo disconnect %s`", other.RepoID)
		}
	}
	return c, false, nil
}

// DisconnectStorageRepository forgets a repository and changes nothing in it; with
// Force also one of which this host's own note is damaged.
// ErrBusy: tasks of this host run there. ErrInUse: this host uses an image of it.
func (s *Service) DisconnectStorageRepository(ctx context.Context, repoID string, how Disconnect) error {
	c, err := s.Connection(repoID)
	if damaged := errors.Is(err, failure.Precondition); err != nil && !(damaged && how.Force) {
		return err
	}
	unlock, err := s.lockConnections(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	tasks, away := s.ListTasks(ctx, repoID)
	if away != nil && !how.Force {
		return failure.Hint(away, "`diskhook repo disconnect --force %s`", repoID)
	}
	for _, t := range tasks {
		if !t.Running || t.HostID != s.HostID {
			continue
		}
		if !how.Force {
			err := fmt.Errorf("repository %s: image %s: %s: %w", repoID, t.ImageID, t.Verb, ErrBusy)
			return failure.Hint(err, "wait for it, or `diskhook repo disconnect --force %s`, which stops it so that any host may go on with it", repoID)
		}
		if err := s.StopTask(ctx, repoID, t.ImageID); err != nil {
			s.Log.Warn("stop", "repository", repoID, "image", t.ImageID, "error", err)
		}
	}
	if !how.Force {
		alone, err := s.nobodyPrepares(ctx, repoID)
		if err != nil {
			return err
		}
		defer alone.Release()
		if err := s.unusedHere(ctx, repoID); err != nil {
			return err
		}
	}
	if err := atomicfile.Remove(s.connectionPath(repoID)); err != nil || away != nil {
		return err
	}
	if err := s.leave(ctx, c); err != nil {
		s.Log.Warn("leave", "repository", repoID, "error", err)
	}
	return nil
}

// leave has nothing of a repository stay active here for its own sake.
func (s *Service) leave(ctx context.Context, c Connection) error {
	r, err := s.open(ctx, c)
	if err != nil {
		return err
	}
	_, err = step(ctx, r, "leave", func(ctx context.Context) (struct{}, error) { return struct{}{}, r.place.Leave(ctx) })
	return err
}

// unusedHere refuses a repository of which this host uses an image; ErrInUse.
func (s *Service) unusedHere(ctx context.Context, repoID string) error {
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return failure.Hint(err, "`diskhook repo disconnect --force %s`", repoID)
	}
	defer r.close()
	pinned, err := r.list(ctx, format.Pin)
	if err != nil {
		return err
	}
	for _, imageID := range pinned {
		holders, err := s.holders(ctx, r, imageID)
		if err != nil {
			return failure.Hint(err, "`diskhook repo disconnect --force %s`, if no guest here uses an image of it", repoID)
		}
		here := slices.DeleteFunc(holders, func(h holder) bool { return h.Host != s.HostID })
		if len(here) > 0 {
			err := r.inUse(imageID, here)
			return failure.Hint(err, "shut it down, or `diskhook image release --holder %s %s/%s` if it has ended; "+
				"`diskhook repo disconnect --force %s` leaves it noted as in use", here[0].Name, repoID, imageID, repoID)
		}
	}
	return nil
}

func (s *Service) connections() string { return s.Layout.Definitions("repos") }

func (s *Service) connectionPath(repoID string) string {
	return filepath.Join(s.connections(), repoID+".json")
}

// lockConnections keeps two from connecting one repository under two names.
func (s *Service) lockConnections(ctx context.Context) (func(), error) {
	if err := atomicfile.MkdirAll(s.Layout.Locks(), 0o755); err != nil {
		return nil, err
	}
	l, err := lock.Acquire(ctx, s.Layout.Locks(), "repositories")
	if err != nil {
		return nil, err
	}
	return l.Release, nil
}

// Connections lists what is connected, by repository id.
func (s *Service) Connections() ([]Connection, error) {
	ids, err := s.connectionIDs()
	if err != nil {
		return nil, err
	}
	var all []Connection
	for _, id := range ids {
		c, err := s.Connection(id)
		if errors.Is(err, ErrNotConnected) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// connectionIDs are the ids of what is connected, in order, also of what cannot be read.
func (s *Service) connectionIDs() ([]string, error) {
	entries, err := os.ReadDir(s.connections())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failure.Denied(fmt.Errorf("repositories: %w", err))
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && checkRepoID(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// maxConnection bounds what is read of a connection, in bytes.
const maxConnection = 64 << 10

// Connection reads one; ErrNotConnected.
func (s *Service) Connection(repoID string) (Connection, error) {
	if err := checkRepoID(repoID); err != nil {
		return Connection{}, err
	}
	path := s.connectionPath(repoID)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err := fmt.Errorf("repository %s: %w", repoID, ErrNotConnected)
		return Connection{}, failure.Hint(err, "`diskhook repo connect`; `diskhook repo list` shows what is")
	}
	var data []byte
	if err == nil && st.Size() <= maxConnection {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return Connection{}, failure.Denied(fmt.Errorf("repository %s: %w", repoID, err))
	}
	var c Connection
	if err := json.Unmarshal(data, &c); err != nil || c.Schema != connectionSchema || c.RepoID != repoID {
		err := failure.New(failure.Precondition, "repository %s: %s is damaged: %w", repoID, path, err)
		return Connection{}, failure.Hint(err, "`diskhook repo disconnect --force %s`, then connect it again", repoID)
	}
	return c, nil
}

func (s *Service) format(name string) (format.Format, error) {
	var known []string
	for _, f := range s.Formats {
		if f.Name() == name {
			return f, nil
		}
		known = append(known, f.Name())
	}
	return nil, failure.New(failure.Usage, "format %q: %w: there are %s", clip(name), ErrVersion, strings.Join(known, ", "))
}

// connected opens a connected repository; the caller closes it.
func (s *Service) connected(ctx context.Context, repoID string) (*repo, error) {
	c, err := s.Connection(repoID)
	if err != nil {
		return nil, err
	}
	r, err := s.open(ctx, c)
	if err == nil && r.about.Nonce != c.Nonce {
		r.close()
		err := failure.New(failure.Precondition, "repository %s: another repository is where it was connected", repoID)
		return nil, failure.Hint(err, "put it back, or `diskhook repo disconnect %s`", repoID)
	}
	return r, err
}

func (s *Service) open(ctx context.Context, c Connection) (*repo, error) {
	f, err := s.format(c.Format)
	if err != nil {
		return nil, err
	}
	r := &repo{id: c.RepoID, deadline: s.Deadline, attached: &attached{}}
	r.place, err = step(ctx, r, "open", func(ctx context.Context) (format.Place, error) { return f.Open(ctx, c.Parameters) })
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", c.RepoID, err)
	}
	r.deadline = max(r.deadline, r.place.Capabilities().Takeover)
	about, err := get[descriptor](ctx, r, format.Repository, format.Descriptor)
	switch {
	case errors.Is(err, ErrDamaged):
		err = failure.Hint(err, "bring it back; where it is a file, it can be moved away as well, and `diskhook repo create` run again: the images stay, but hosts that have the repository connected have to connect it anew")
	case errors.Is(err, fs.ErrNotExist):
		err = failure.New(failure.NotFound, "repository %s: it was never made to its end", c.RepoID)
		err = failure.Hint(err, "run `diskhook repo create` again")
	case err == nil && (about.Format != c.Format || uuid.Validate(about.Nonce) != nil):
		err = fmt.Errorf("repository %s: format %q: %w, or not %s", c.RepoID, clip(about.Format), ErrVersion, c.Format)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	r.about = *about
	return r, nil
}

func (r *repo) close() { _ = r.place.Close() }
