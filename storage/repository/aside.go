// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// An image whose document is damaged keeps the repository from being cleaned: what it
// needs nobody can tell. Two fixes are the way out. The first puts the document aside,
// where it is kept and not read; volumes that no other image names may be its own, and
// stay. The second forgets it, and lets these be cleaned. Both give something up, so
// that they want to hear of which image. Where a document has no place of its own, and
// nobody can tell which one is damaged, it is a wreck, and goes the same way. So does one that
// says who uses an image: until somebody says that nobody does, it counts as in use.
// That of a volume can be told anew (describe.go).

// given finds images of which nothing but damaged documents is left.
func (c *checking) given() {
	for _, id := range c.view.readable(format.Image) {
		c.add(Fix{
			Type: Mend, Images: []string{id}, ByName: true,
			Summary: fmt.Sprintf("give image %s up, if its document cannot be brought back: put what is left of that aside, and keep all data that may be its own", id),
		}, order{Kind: orderAside, Images: map[string]int64{id: 0}})
	}
	for _, id := range c.view.readable(format.Pin) {
		c.add(Fix{
			Type: Mend, Images: []string{id}, ByName: true,
			Summary: fmt.Sprintf("say that nobody uses image %s on any host, and put the damaged document aside that said who does; as long as it is there the image counts as in use", id),
		}, order{Kind: orderUnused, Images: map[string]int64{id: 0}})
	}
	for _, w := range c.view.wrecks {
		c.add(Fix{
			Type: Mend, Images: []string{w.ID}, ByName: true,
			Summary: "give the document up that was there, if it cannot be brought back: put what is left aside, and keep all data that may be its own; if it says that an image is in use, nobody knows that any more (" + failure.Line(w.Err) + ")",
		}, order{Kind: orderWreck, Images: map[string]int64{w.ID: 0}})
	}
	if len(c.view.aside) == 0 {
		return
	}
	u, kept := c.view.uses(""), 0
	for id := range c.view.volumes {
		if u.images[id] == 0 {
			kept++
		}
	}
	for _, d := range c.view.data {
		if c.view.volumes[d.ID] == nil {
			kept++
		}
	}
	for _, id := range c.view.aside {
		c.report.Problems = append(c.report.Problems, fmt.Sprintf(
			"%s: %s was put aside, and %d volumes that no image names are kept; copy an image that is missing here from elsewhere if it is wanted, and have the rest cleaned by the fix that forgets it", id, c.view.asideOf(id), kept))
		c.add(Fix{
			Type: Clean, Images: []string{id}, ByName: true, Bytes: -1,
			Summary: fmt.Sprintf("forget the damaged document %s that was put aside; what it alone may have needed can be cleaned then", id),
		}, order{Kind: orderForget, Images: map[string]int64{id: 0}})
	}
}

// asideOf says what was put aside under an id.
func (v *view) asideOf(id string) string {
	for image := range v.images {
		if usersAside(image) == id {
			return "what said who uses image " + image
		}
	}
	if v.volumes[id] != nil {
		return "an earlier description of the volume"
	}
	return "a damaged document"
}

// giveUp does one of these fixes, once it is confirmed.
func (f *fixing) giveUp(ctx context.Context, o Options) error {
	id, err := f.confirmed(o)
	if err != nil {
		return err
	}
	do := map[string]func(context.Context, *update, string) error{
		orderAside: f.putAside, orderForget: f.forgetAside, orderWreck: f.clearWreck, orderUnused: f.nobodyUses,
	}[f.about.Kind]
	f.repo = f.repo.freeing()
	return f.repo.change(ctx, func(u *update) error { return do(ctx, u, id) })
}

// confirmed is what a fix gives up, once somebody says that he means that.
func (f *fixing) confirmed(o Options) (id string, err error) {
	for id := range f.about.Images {
		if o.Confirm != id {
			err := failure.New(failure.Usage, "fix: it gives %s/%s up, which was not confirmed", f.repo.id, id)
			return "", failure.Hint(err, "name the fix: `diskhook repo fix %s FIX`", f.repo.id)
		}
		return id, nil
	}
	return "", f.stale("image", "")
}

// raw reads a document as it is.
func (r *repo) raw(ctx context.Context, kind format.Kind, id string) ([]byte, error) {
	return step(ctx, r, "read", func(ctx context.Context) ([]byte, error) { return r.place.Read(ctx, kind, id) })
}

func (f *fixing) putAside(ctx context.Context, u *update, id string) error {
	data, err := u.raw(ctx, format.Image, id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !errors.Is(decode(data, id, new(image)), ErrDamaged) {
		return f.stale("image", id)
	}
	if err != nil {
		return err
	}
	if err := keepAside(ctx, u, id, data); err != nil {
		return err
	}
	return u.drop(ctx, format.Image, id)
}

// usersAside is where the document is kept that said who uses an image: its own may be kept
// as well.
func usersAside(imageID string) string {
	return uuid.NewSHA1(uuid.MustParse(imageID), []byte(format.Pin)).String()
}

// nobodyUses takes the caller's word that nobody uses an image. A program that is seen to
// have it open keeps it.
func (f *fixing) nobodyUses(ctx context.Context, u *update, id string) error {
	data, err := u.raw(ctx, format.Pin, id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !errors.Is(decode(data, id, new(pins)), ErrDamaged) {
		return f.stale("image", id)
	}
	if err != nil {
		return err
	}
	img, err := u.image(ctx, id)
	if err == nil {
		err = u.unopened(ctx, img, true)
	}
	// Of an image that is broken, or gone, nobody has anything open that could be seen.
	if err != nil && !errors.Is(err, ErrBroken) && !errors.Is(err, ErrNoImage) && !errors.Is(err, ErrDamaged) {
		return err
	}
	if err := keepAside(ctx, u, usersAside(id), data); err != nil {
		return err
	}
	return u.drop(ctx, format.Pin, id)
}

// clearWreck puts aside what nobody can tell what it was.
func (f *fixing) clearWreck(ctx context.Context, u *update, id string) error {
	all, err := step(ctx, u.repo, "look for damage", u.place.Wrecks)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(w format.Wreck) bool { return w.ID == id })
	if i < 0 {
		return f.stale("document", id)
	}
	if err := keepAside(ctx, u, id, all[i].Data); err != nil {
		return err
	}
	return u.alter(ctx, "clear", func(ctx context.Context, fence format.Fence) error { return u.place.ClearWreck(ctx, id, fence) })
}

// keepAside keeps what was found in the place of a document.
func keepAside(ctx context.Context, u *update, id string, data []byte) error {
	data = data[:min(len(data), format.MaxDocument)] // no document is any longer
	kept, err := u.raw(ctx, format.Aside, id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = u.alter(ctx, "write", func(ctx context.Context, fence format.Fence) error {
			return u.place.WriteReserved(ctx, format.Aside, id, data, fence)
		})
	case err == nil && !bytes.Equal(kept, data):
		err = failure.New(failure.Conflict, "%s/%s: an earlier document of it was put aside already", u.id, id)
		err = failure.Hint(err, "have that forgotten first: `diskhook repo check %s` names the fix", u.id)
	}
	if err == nil {
		err = failpoint.Hit("repository.aside.kept")
	}
	return err
}

func (f *fixing) forgetAside(ctx context.Context, u *update, id string) error {
	_, err := u.raw(ctx, format.Aside, id)
	if errors.Is(err, fs.ErrNotExist) {
		return f.stale("image", id)
	}
	if err != nil {
		return err
	}
	if _, err := u.image(ctx, id); errors.Is(err, ErrNoImage) {
		// Who prepared it before goes on using what it had.
		if err := f.unused(ctx, u.repo, id); err != nil {
			return err
		}
		if err := u.drop(ctx, format.Pin, id); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return u.drop(ctx, format.Aside, id)
}
