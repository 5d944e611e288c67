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

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// Copies are made where [local] dir and vg say, and stay there when these say
// something else. Of a complete copy the receipt tells where it is; of one that
// was interrupted, and of templates, nothing else would. So each home is noted,
// durably, before anything is made in it, and who looks for what there is looks
// into all of them. A note goes when nothing is left there. Of a home that is
// away, as that of a file system that is not mounted, nobody says that it is
// empty.

// home is a note.
type home struct {
	Schema string `json:"schema"` // "diskhook.home/v1"
	Home   string `json:"home"`   // volume group, or directory
}

const homeSchema = "diskhook.home/v1"

// place is where copies are, or may be.
type place struct {
	home   string
	kind   string // of a backend that finds all that is there
	note   string // its path; "" is that nothing was made there
	former bool   // no copies go there any more
}

// String names it in messages.
func (p place) String() string {
	if filepath.IsAbs(p.home) {
		return "dir " + p.home
	}
	return "vg " + p.home
}

// at is the service as if copies went to that home.
func (s *Service) at(home string) *Service {
	there := *s
	if filepath.IsAbs(home) {
		there.Config.Local.Dir = home
	} else {
		there.Config.Local.VG = home
	}
	return &there
}

// noteHome is called before anything is made in a home.
func (s *Service) noteHome(in string) error {
	path := filepath.Join(s.Layout.Homes(), homeID(in)+".json")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := atomicfile.MkdirAll(s.Layout.Homes(), 0o711); err != nil {
		return fmt.Errorf("homes: %w", err)
	}
	if err := atomicfile.WriteJSON(path, home{homeSchema, in}, 0o644); err != nil {
		return fmt.Errorf("home %w", err)
	}
	return failpoint.Hit("home.noted")
}

// places are those where copies go now, of which kinds of volumes share one, and
// those that are noted.
func (s *Service) places() ([]place, error) {
	var all []place
	index := func(home string) int {
		return slices.IndexFunc(all, func(p place) bool { return p.home == home })
	}
	for _, kind := range Backends() {
		if home := backends()[kind](s).home(); index(home) < 0 {
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
		in, err := readHome(path)
		if errors.Is(err, fs.ErrNotExist) || filepath.Ext(path) != ".json" {
			continue // gone, or none of ours
		}
		if err != nil {
			return nil, err
		}
		if i := index(in); i >= 0 {
			all[i].note = path
			continue
		}
		p := place{home: in, kind: "lvm", note: path, former: true}
		if filepath.IsAbs(in) {
			p.kind = "dir"
		}
		all = append(all, p)
	}
	return all, nil
}

// readHome reads a note. In one that is not understood there may have been the
// only word of a place with copies.
func readHome(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var noted home
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
	return noted.Home, err
}

// in finds what there is in a place. One that is noted and away is a
// failure.Precondition, as is a volume group that is not there.
func (s *Service) in(ctx context.Context, p place) (map[string]Copy, error) {
	if p.note != "" && filepath.IsAbs(p.home) {
		if _, err := os.Stat(p.home); errors.Is(err, fs.ErrNotExist) {
			return nil, failure.New(failure.Precondition, "%s: copies were made there, and it is not there now", p)
		}
	}
	return s.backend(Disk{Backend: p.kind, Home: p.home}).find(ctx)
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
		if p.note == "" || !p.former && !filepath.IsAbs(p.home) {
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
		if d.Home = p.home; !p.former || filepath.IsAbs(p.home) != (d.Backend == "dir") {
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
