// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// Copies are made where [local] dir and vg say, and stay there when these say
// something else. Of a complete copy the receipt tells where it is; of one that
// was interrupted, and of templates, nothing else would. So each home is noted,
// durably, before anything is made in it, and who looks for what there is looks
// into all of them. A note goes when nothing is left there. Of a home that is
// away, as that of a file system that is not mounted, nobody says that it is
// empty; where one would be mounted there is another directory meanwhile.

// home is a note.
type home struct {
	Schema string `json:"schema"` // "diskhook.home/v1"
	Home   string `json:"home"`   // volume group, directory, or thin:CLUSTER
	Inode  uint64 `json:"inode,omitempty"`
}

const homeSchema = "diskhook.home/v1"

// place is where copies are, or may be.
type place struct {
	home   string
	kind   string // of a backend that finds all that is there
	note   string // its path; "" is that nothing was made there
	inode  uint64 // of the directory, when it was noted
	former bool   // no copies go there any more
}

// String names it in messages.
func (p place) String() string {
	switch sortOf(p.home) {
	case "dir":
		return "dir " + p.home
	case thinBackend:
		return "thin cluster " + strings.TrimPrefix(p.home, thinHome)
	}
	return "vg " + p.home
}

// sortOf is a backend that finds all copies of a home: dir, thin, or lvm for both of
// LVM's.
func sortOf(home string) string {
	switch {
	case filepath.IsAbs(home):
		return "dir"
	case strings.HasPrefix(home, thinHome):
		return thinBackend
	}
	return "lvm"
}

// at is the service as if copies went to that home.
func (s *Service) at(home string) *Service {
	there := *s
	switch sortOf(home) {
	case "dir":
		there.Config.Local.Dir = home
	case thinBackend:
		there.Config.Thin.Cluster = strings.TrimPrefix(home, thinHome)
	default:
		there.Config.Local.VG = home
	}
	return &there
}

// noteHome is called before anything is made in a home.
func (s *Service) noteHome(in string) error {
	path, note := filepath.Join(s.Layout.Homes(), homeID(in)+".json"), home{Schema: homeSchema, Home: in}
	if filepath.IsAbs(in) {
		if err := atomicfile.MkdirAll(in, 0o711); err != nil {
			return fmt.Errorf("dir %s: %w", in, err)
		}
		var err error
		if note.Inode, err = inodeOf(in); err != nil {
			return fmt.Errorf("dir %w", err)
		}
	}
	if noted, err := readHome(path); err == nil && noted == note {
		return nil
	}
	if err := atomicfile.MkdirAll(s.Layout.Homes(), 0o711); err != nil {
		return fmt.Errorf("homes: %w", err)
	}
	if err := atomicfile.WriteJSON(path, note, 0o644); err != nil {
		return fmt.Errorf("home %w", err)
	}
	return failpoint.Hit("home.noted")
}

// places are those where copies go now, of which kinds of volumes share one, and
// those that are noted. A thin cluster is one only if it is: to look at it costs
// its disk's answer, also where no copy was ever made there.
func (s *Service) places() ([]place, error) {
	var all []place
	index := func(home string) int {
		return slices.IndexFunc(all, func(p place) bool { return p.home == home })
	}
	for _, kind := range Backends() {
		if home := backends()[kind](s).home(); index(home) < 0 && kind != thinBackend {
			all = append(all, place{home: home, kind: kind})
		}
	}
	notes, err := os.ReadDir(s.Layout.Homes())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = failure.Wrap(failure.Precondition, fmt.Errorf("homes: %w", err))
		return nil, failure.Hint(err, "run this as root")
	}
	for _, e := range notes {
		path := filepath.Join(s.Layout.Homes(), e.Name())
		noted, err := readHome(path)
		if errors.Is(err, fs.ErrNotExist) || filepath.Ext(path) != ".json" {
			continue // gone, or none of ours
		}
		if err != nil {
			return nil, err
		}
		if i := index(noted.Home); i >= 0 {
			all[i].note, all[i].inode = path, noted.Inode
			continue
		}
		p := place{home: noted.Home, kind: sortOf(noted.Home), note: path, inode: noted.Inode}
		p.former = p.home != backends()[p.kind](s).home()
		all = append(all, p)
	}
	return all, nil
}

// readHome reads a note. In one that is not understood there may have been the
// only word of a place with copies.
func readHome(path string) (noted home, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return noted, err
	}
	if err == nil {
		err = json.Unmarshal(text, &noted)
	}
	if err == nil && (noted.Schema != homeSchema || homeID(noted.Home)+".json" != filepath.Base(path)) {
		err = fmt.Errorf("schema %.64q, home %.64q", noted.Schema, noted.Home)
	}
	if err != nil {
		err = failure.New(failure.Precondition, "%s: it tells where copies were made, and is not understood: %w", path, err)
		err = failure.Hint(err, "see what is in it, then forget that place with `rm %s`", path)
	}
	return noted, err
}

func inodeOf(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return st.Ino, nil
}

// in finds what there is in a place. One that is noted and away is a
// failure.Precondition, as is a volume group that is not there; one that does not
// answer before ctx ends is a command.ErrNoAnswer.
func (s *Service) in(ctx context.Context, p place) (map[string]Copy, error) {
	copies, err := command.Abandon(ctx, func() (map[string]Copy, error) {
		return s.backend(Disk{Backend: p.kind, Home: p.home}).find(ctx)
	})
	if errors.Is(err, command.ErrNoAnswer) {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if err != nil || len(copies) > 0 || p.note == "" || !filepath.IsAbs(p.home) {
		return copies, err
	}
	switch inode, err := inodeOf(p.home); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, failure.New(failure.Precondition, "%s: copies were made there, and it is not there now", p)
	case err != nil:
		return nil, err
	case inode != p.inode:
		return nil, failure.New(failure.Precondition, "%s: copies were made there, and another directory is in its place now", p)
	}
	return copies, nil
}

// Away are the places, one line each, where copies were made and into which
// nobody can look now, so that List does not tell of them.
func (s *Service) Away(ctx context.Context) ([]string, error) {
	places, err := s.places()
	if err != nil {
		return nil, err
	}
	var away []string
	for _, p := range places {
		if p.note == "" || !p.former && p.kind == "lvm" {
			continue
		}
		if _, err := s.in(ctx, p); err != nil {
			away = append(away, failure.OneLine(err.Error()))
		}
	}
	return away, nil
}

// leftBehind looks for the copy of a disk where copies went before. It has no
// receipt, or its receipt would say where it is. None is made beside it: it is
// gone on with where it is, or removed.
func (s *Service) leftBehind(ctx context.Context, o *Observed) error {
	places, err := s.places()
	if err != nil {
		return err
	}
	for _, p := range places {
		d := o.Disk
		if d.Home = p.home; !p.former || p.kind != sortOf(s.backend(o.Disk).home()) {
			continue
		}
		if _, err := s.in(ctx, p); errors.Is(err, failure.Precondition) {
			s.Log.Warn("whether an unfinished copy was left there is not known", "disk", d.String(), "place", p.String(), "err", err)
			continue
		}
		all, err := s.look(ctx, []Disk{d})
		if err != nil {
			return err
		}
		if all.copy(p.home, d.CopyName()).State != Absent {
			o.Disk, o.Former = d, true
			s.seen(o, all)
			return nil
		}
	}
	return nil
}
