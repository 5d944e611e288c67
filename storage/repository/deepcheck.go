// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository/format"
)

// DeepCheckStorageRepository is CheckStorageRepository that also opens the volumes: whether
// they are as large as they should be, whether their headers name what they lie on,
// and what `qemu-img check` finds. It takes no lock either. Volumes in use,
// and those that somebody works on, are left out and counted in Report.Skipped.
func (s *Service) DeepCheckStorageRepository(ctx context.Context, repoID string) (Report, error) {
	return s.check(ctx, repoID, true)
}

// missing finds volumes whose documents promise data that is not there.
func (c *checking) missing(ctx context.Context) error {
	there := make(map[format.Data]bool, len(c.view.data))
	for _, d := range c.view.data {
		there[d] = true
	}
	for _, id := range sorted(c.view.volumes) {
		v := c.view.volumes[id]
		if !v.Complete || there[format.Data{ID: id, Kind: v.Format}] {
			continue
		}
		// It may have been made, or given up, since the data was listed.
		if now, err := c.repo.volume(ctx, id); errors.Is(err, fs.ErrNotExist) || err == nil && !now.Complete {
			continue
		}
		err := c.repo.openVolumes(ctx, chain{v}, false)
		switch {
		case errors.Is(err, ErrBroken):
			c.damaged(id, "its data is not there")
		case err != nil:
			return err
		}
	}
	return nil
}

// damaged is a problem of a volume; it names the images that it takes with it.
func (c *checking) damaged(id, what string) {
	c.bad[id] = true
	var lost []string
	for _, imageID := range sorted(c.view.images) {
		img := c.view.images[imageID]
		if volumes, err := c.view.chain(img.Volume); err == nil && !img.Weak && volumes.has(id) {
			lost = append(lost, imageID)
		}
	}
	text := fmt.Sprintf("volume %s: %s", id, what)
	if len(lost) > 0 {
		text += "; it holds data of " + strings.Join(lost, ", ") + ": bring it back, or remove what lies on it and copy it from elsewhere"
	}
	c.report.Problems = append(c.report.Problems, text)
}

// deep looks into every volume that is complete, there and not in use, and first into those
// that others lie on: damage is told once, of where it is.
func (c *checking) deep(ctx context.Context) error {
	used, err := c.used(ctx)
	if err != nil {
		return err
	}
	chains := make(map[string]chain, len(c.view.volumes))
	for id := range c.view.volumes {
		if volumes, err := c.view.chain(id); err == nil { // else it is being made, or told of already
			chains[id] = volumes
		}
	}
	ids := sorted(chains)
	slices.SortStableFunc(ids, func(a, b string) int { return len(chains[a]) - len(chains[b]) })
	for _, id := range ids {
		v, volumes := c.view.volumes[id], chains[id]
		if slices.ContainsFunc(volumes, func(v *volume) bool { return c.bad[v.ID] }) {
			continue
		}
		busy, err := step(ctx, c.repo, "look at a lock", func(ctx context.Context) (bool, error) { return c.repo.place.Held(ctx, volumeLock(id)) })
		if err != nil {
			return err
		}
		if used[id] || busy {
			c.report.Skipped++
			continue
		}
		if err := c.look(ctx, v, volumes); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// look examines one volume with those below it.
func (c *checking) look(ctx context.Context, v *volume, volumes chain) error {
	if err := c.repo.openVolumes(ctx, volumes, false); err != nil {
		return c.gone(ctx, v, err)
	}
	opened, err := c.repo.inspect(ctx, volumes)
	if err != nil {
		return c.gone(ctx, v, err)
	}
	opened.Close()
	if v.Format != imagecheck.QCOW2 {
		return nil
	}
	found, err := c.Images.Check(ctx, c.repo.place.Path(v.ID, v.Format))
	switch {
	case err != nil:
		return c.gone(ctx, v, err)
	case found.Corruptions+found.CheckErrors > 0:
		c.damaged(v.ID, fmt.Sprintf("`qemu-img check` finds %d corruptions and %d errors", found.Corruptions, found.CheckErrors))
	case found.Leaks > 0:
		c.leaked(v, found.Leaks)
	}
	return nil
}

// exclusive says that who has a volume open for writing is alone with it, whatever becomes of
// his locks: there is one host, or the storage sees to it.
func (r *repo) exclusive() bool {
	can := r.place.Capabilities()
	return !can.Shared || can.Stale
}

// gone is what is wrong with a volume, unless it has changed since the scan: then a
// later check tells.
func (c *checking) gone(ctx context.Context, v *volume, why error) error {
	now, err := c.repo.volume(ctx, v.ID)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(why, ErrUnreachable), errors.Is(why, failure.Temporary):
		return why
	case errors.Is(err, fs.ErrNotExist), err == nil && now.Gen != v.Gen:
		return nil
	case err != nil:
		return err
	}
	c.damaged(v.ID, failure.Line(why))
	return nil
}

// used are the volumes of images that somebody uses or works on.
func (c *checking) used(ctx context.Context) (map[string]bool, error) {
	used := map[string]bool{}
	for id, img := range c.view.images {
		if c.view.pins[id] == nil && img.Plan == nil && !slices.Contains(c.view.lost[format.Pin], id) {
			continue
		}
		holders, err := c.holders(ctx, c.repo, id)
		if err != nil && !unreadable(err) {
			return nil, err
		}
		if err == nil && len(holders) == 0 && img.Plan == nil {
			continue
		}
		volumes, _ := c.view.chain(img.Volume) // a broken one is used by nobody
		for _, v := range volumes {
			used[v.ID] = true
		}
	}
	return used, nil
}

func (c chain) has(id string) bool {
	for _, v := range c {
		if v.ID == id {
			return true
		}
	}
	return false
}
