// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"diskhook/storage/blockdev"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository/format"
)

// What the document of a volume says is said elsewhere as well, but for whether its data is
// to be overwritten one day: that it is complete by an image that points to it, or a complete
// volume that lies on it; its format by the name of its data; its size and what it lies on
// by the header. So one that is damaged, or was lost with the slot that it was in, is
// described anew. For one that nobody needs there is no more to do than to put it aside:
// work that was making it makes it anew.

// undescribed finds volumes whose documents are damaged, or missing though they are needed.
func (c *checking) undescribed(ctx context.Context) error {
	for _, id := range c.view.readable(format.Volume) {
		summary := fmt.Sprintf("put the damaged document of volume %s aside, which no image has; its data is kept", id)
		if c.view.vouched(id) && c.view.dataOf(id) != nil {
			summary = fmt.Sprintf("describe volume %s anew, as its data says, and put its damaged document aside; that its data was to be overwritten when it is deleted is not known then", id)
		}
		c.add(Fix{Type: Mend, Images: []string{id}, ByName: true, Summary: summary, Bytes: -1}, order{Kind: orderDescribe, Images: map[string]int64{id: 0}})
	}
	for _, d := range c.view.data {
		if c.view.volumes[d.ID] != nil || slices.Contains(c.view.lost[format.Volume], d.ID) || !c.view.vouched(d.ID) {
			continue
		}
		// It may have been made since the volumes were read; and where a slot is damaged
		// it may be that.
		if _, err := c.repo.volume(ctx, d.ID); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		c.add(Fix{
			Type: Mend, Images: []string{d.ID}, ByName: true, Bytes: -1,
			Summary: fmt.Sprintf("describe volume %s, whose document was lost, as its data says", d.ID),
		}, order{Kind: orderDescribe, Images: map[string]int64{d.ID: 0}})
	}
	return ctx.Err()
}

// vouched says that somebody has a volume who only has one that is complete.
func (v *view) vouched(id string) bool {
	for _, img := range v.images {
		if img.Volume == id {
			return true
		}
	}
	for _, above := range v.volumes {
		if above.Below == id && above.Complete {
			return true
		}
	}
	return false
}

// dataOf is a volume's data; nil: there is none.
func (v *view) dataOf(id string) *format.Data {
	if i := slices.IndexFunc(v.data, func(d format.Data) bool { return d.ID == id }); i >= 0 {
		return &v.data[i]
	}
	return nil
}

// describe does the fix, while nobody changes the volume in place.
func (f *fixing) describe(ctx context.Context, o Options) error {
	id, err := f.confirmed(o)
	if err != nil {
		return err
	}
	defer f.letGo(ctx, f.repo)
	l, err := f.repo.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer l.Release()
	v, err := f.repo.scan(ctx)
	if err != nil {
		return err
	}
	var anew *volume
	if d := v.dataOf(id); d != nil && v.vouched(id) {
		if anew, err = f.repo.described(ctx, v, *d); err != nil {
			return fmt.Errorf("volume %s/%s: %w", f.repo.id, id, err)
		}
	}
	f.repo = f.repo.freeing()
	return f.repo.change(ctx, func(u *update) error {
		was, err := u.raw(ctx, format.Volume, id)
		switch missing := errors.Is(err, fs.ErrNotExist); {
		case err != nil && !missing:
			return err
		case missing && anew == nil, !missing && !errors.Is(decode(was, id, new(volume)), ErrDamaged):
			return f.stale("volume", id)
		case !missing:
			if err := keepAside(ctx, u, id, was); err != nil {
				return err
			}
		}
		if anew == nil {
			return u.drop(ctx, format.Volume, id)
		}
		return errors.Join(u.saveVolume(ctx, anew), failpoint.Hit("repository.described"))
	})
}

// described is what the data of a complete volume says of it.
func (r *repo) described(ctx context.Context, v *view, d format.Data) (*volume, error) {
	// Who has seen an earlier version finds that this is another one.
	anew := &volume{ID: d.ID, Gen: time.Now().Unix(), Format: d.Kind, Complete: true}
	if err := r.openVolumes(ctx, chain{anew}, false); err != nil {
		return nil, err
	}
	head, err := step(ctx, r, "read a header", func(context.Context) (*imagecheck.Header, error) {
		return header(r.place.Path(d.ID, d.Kind), d.Kind)
	})
	if err != nil {
		return nil, err
	}
	anew.Size = head.VirtualSize
	for _, img := range v.images {
		if img.Volume == d.ID && d.Kind == imagecheck.Raw && img.Size < anew.Size {
			anew.Size = img.Size // the rest of the last extent is not its own
		}
	}
	if head.BackingFile == "" {
		return anew, nil
	}
	for _, lower := range v.data {
		if r.place.Backing(lower.ID, lower.Kind) == head.BackingFile && lower.ID != d.ID {
			anew.Below = lower.ID
			return anew, nil
		}
	}
	err = failure.New(failure.Precondition, "its header says that it lies on %q, which is no volume of this repository", clip(head.BackingFile))
	return nil, failure.Hint(err, "bring that back, or its document from a backup")
}

// header reads that of a volume; one that has none is only as large as it is.
func header(path, kind string) (*imagecheck.Header, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	size, err := blockdev.Size(file)
	if err != nil {
		return nil, err
	}
	if kind == imagecheck.Raw {
		return &imagecheck.Header{VirtualSize: size}, nil
	}
	return imagecheck.ReadHeader(file, size, maxSize)
}
