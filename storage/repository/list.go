// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sort"
	"syscall"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// Info is what is known of an image.
type Info struct {
	ID       string          `json:"id"`
	Kind     Kind            `json:"kind"`
	Size     int64           `json:"size"`
	Strategy Strategy        `json:"strategy"`
	Base     string          `json:"base,omitempty"` // the snapshot it was made of
	UserData json.RawMessage `json:"userData,omitempty"`
	Created  time.Time       `json:"created"`
	// Chain is how many volumes it consists of.
	Chain   int      `json:"chain"`
	Holders []string `json:"holders,omitempty"` // who uses it: "NAME on HOST"
	Status
}

// GetImage says what is known of an image; ErrNoImage.
func (s *Service) GetImage(ctx context.Context, repoID, imageID string) (Info, error) {
	if err := checkImageID(imageID); err != nil {
		return Info{}, err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return Info{}, err
	}
	defer r.close()
	img, err := r.visible(ctx, imageID)
	if err != nil {
		return Info{}, err
	}
	return s.info(ctx, r, img)
}

func (s *Service) info(ctx context.Context, r *repo, img *image) (Info, error) {
	st, c, err := s.status(ctx, r, img)
	if err != nil {
		return Info{}, err
	}
	holders, err := s.holders(ctx, r, img.ID)
	if unreadable(err) {
		st.LastError, err = "who uses it is not known: "+failure.Line(err), nil
	}
	if err != nil {
		return Info{}, err
	}
	info := Info{
		ID: img.ID, Kind: img.Kind, Size: img.Size, Strategy: img.Strategy, Base: img.Base,
		UserData: img.UserData, Created: img.Created, Chain: len(c), Status: st,
	}
	for _, h := range holders {
		info.Holders = append(info.Holders, h.Name+" on "+h.Host)
	}
	return info, nil
}

// Filter says which images are wanted; the zero value is all of them.
type Filter struct {
	Kind  Kind
	State State
	Base  string
	// After is the id behind which the page begins (Page.Next), Limit how many
	// images it has; 0 is DefaultLimit.
	After string
	Limit int
}

// Page is a part of a list, by id.
type Page struct {
	Images []Info `json:"images"`
	// Next is Filter.After of the next page; "" is the end.
	Next string `json:"next,omitempty"`
}

// The lengths of pages.
const (
	DefaultLimit = 1000
	maxLimit     = 10000
)

func (f *Filter) check() error {
	switch {
	case f.Kind != "" && f.Kind != Disk && f.Kind != Snapshot:
		return failure.New(failure.Usage, "kind %q: disk or snapshot", clip(string(f.Kind)))
	case f.State != "" && !slices.Contains([]State{Optimized, Degraded, Broken}, f.State):
		return failure.New(failure.Usage, "state %q: optimized, degraded or broken", clip(string(f.State)))
	case f.Limit < 0 || f.Limit > maxLimit:
		return failure.New(failure.Usage, "limit %d: 1 to %d", f.Limit, maxLimit)
	}
	if f.Limit == 0 {
		f.Limit = DefaultLimit
	}
	for _, id := range []string{f.After, f.Base} {
		if id != "" {
			if err := checkImageID(id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *Filter) fits(i Info) bool {
	return (f.Kind == "" || i.Kind == f.Kind) && (f.State == "" || i.State == f.State) && (f.Base == "" || i.Base == f.Base)
}

// ListImages lists images, a page at a time, without those that were removed.
func (s *Service) ListImages(ctx context.Context, repoID string, f Filter) (Page, error) {
	if err := f.check(); err != nil {
		return Page{}, err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return Page{}, err
	}
	defer r.close()
	ids, err := r.list(ctx, format.Image)
	if err != nil {
		return Page{}, err
	}
	ids = ids[sort.SearchStrings(ids, f.After):]
	if len(ids) > 0 && ids[0] == f.After {
		ids = ids[1:]
	}
	page := Page{Images: []Info{}}
	for i, id := range ids {
		info, err := s.listed(ctx, r, id)
		if errors.Is(err, ErrNoImage) {
			continue
		}
		if err != nil {
			return Page{}, err
		}
		if !f.fits(info) {
			continue
		}
		if page.Images = append(page.Images, info); len(page.Images) == f.Limit && i < len(ids)-1 {
			page.Next = id
			break
		}
	}
	return page, nil
}

// listed is info of an image; of one whose document is damaged as much as is
// known.
func (s *Service) listed(ctx context.Context, r *repo, id string) (Info, error) {
	img, err := r.visible(ctx, id)
	if unreadable(err) {
		return Info{ID: id, Status: Status{State: Broken, PercentComplete: -1, LastError: failure.Line(err)}}, nil
	}
	if err != nil {
		return Info{}, err
	}
	return s.info(ctx, r, img)
}

// unreadable says that it is one document that cannot be read: others can.
func unreadable(err error) bool {
	return errors.Is(err, failure.Problems) || errors.Is(err, ErrVersion) || errors.Is(err, syscall.EIO)
}

// Capacity is how much a repository holds.
func (s *Service) Capacity(ctx context.Context, repoID string) (format.Capacity, error) {
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return format.Capacity{}, err
	}
	defer r.close()
	return step(ctx, r, "ask for its capacity", r.place.Capacity)
}

// Capabilities are what a repository can do on this host.
func (s *Service) Capabilities(ctx context.Context, repoID string) (format.Capabilities, error) {
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return format.Capabilities{}, err
	}
	defer r.close()
	return step(ctx, r, "ask for its capabilities", func(context.Context) (format.Capabilities, error) {
		return r.place.Capabilities(), nil
	})
}
