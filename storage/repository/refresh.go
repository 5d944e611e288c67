// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"maps"
	"slices"

	"diskhook/storage/repository/format"
)

// refresh makes a view that a scan took without the lock say under it who needs the
// images and volumes that are named. It reads them, what is new, and what may have
// begun to need something else meanwhile: a scan of a large repository takes
// seconds, this takes three directories and a few documents.
//
// It rests on how things begin to need others, and on the order of the scan: volumes,
// then the list of operations, then images. An image's pointer changes only while a
// plan is open, which has its entry among the operations, and only to a volume that
// the plan made, or, when it is merged, one further down its own chain. The plan
// that made a volume of the scan was open before the operations were listed: either it is
// in that list, or it ended before the images were read. A plan that began later
// lets old volumes be needed only by an image or a volume that is new: these are
// found by their names, and not looked into as to whether anybody needs them. So what is
// not read again needs no less than the view says.
func (u *update) refresh(ctx context.Context, v *view, images, volumes []string) error {
	if err := u.wrecked(ctx, v); err != nil {
		return err
	}
	operations, err := u.list(ctx, format.Operation)
	if err != nil {
		return err
	}
	newImages, err := listed(ctx, u.repo, format.Image, v.images)
	if err != nil {
		return err
	}
	newVolumes, err := listed(ctx, u.repo, format.Volume, v.volumes)
	if err != nil {
		return err
	}
	v.newer = map[string]bool{}
	for _, id := range newVolumes {
		v.newer[id] = true
	}
	again := slices.Concat(images, operations, v.operations, newImages)
	var others, made []string // what the plans touch, as they were and as they are
	note := func() {
		for _, id := range again {
			if img := v.images[id]; img != nil && img.Plan != nil {
				others = append(others, img.Plan.Disk, img.Plan.From)
				made = append(made, img.Plan.makes()...)
			}
		}
	}
	note()
	if err := reread(ctx, u.repo, format.Image, again, v.images, v); err != nil {
		return err
	}
	note()
	v.operations = operations
	return errors.Join(
		reread(ctx, u.repo, format.Image, others, v.images, v),
		reread(ctx, u.repo, format.Volume, slices.Concat(volumes, newVolumes, made), v.volumes, v),
		reread(ctx, u.repo, format.Pin, images, v.pins, v))
}

// listed forgets the documents that have gone and returns the ids of those that are new.
func listed[T any](ctx context.Context, r *repo, kind format.Kind, known map[string]*T) ([]string, error) {
	ids, err := r.list(ctx, kind) // in order
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(known, func(id string, _ *T) bool {
		_, there := slices.BinarySearch(ids, id)
		return !there
	})
	return slices.DeleteFunc(ids, func(id string) bool { return known[id] != nil }), nil
}

// reread replaces documents by what they are now.
func reread[T any](ctx context.Context, r *repo, kind format.Kind, ids []string, known map[string]*T, v *view) error {
	ids = slices.Sorted(slices.Values(ids))
	ids = slices.DeleteFunc(slices.Compact(ids), func(id string) bool { return id == "" })
	now, err := read[T](ctx, r, kind, ids, v)
	for _, id := range ids {
		delete(known, id)
	}
	maps.Copy(known, now)
	return err
}

// needed names an image or a volume of those that are to go that somebody needs who
// stays; an image is also needed while a volume lies on its own, and no other image is
// there for both to be merged. The plan of the image called finished needs nothing.
func (v *view) needed(images, volumes []string, finished string) (what, id string) {
	goes, frees, theirs := setOf(images), setOf(volumes), map[string]bool{}
	for _, id := range images {
		img := v.images[id]
		if img != nil && (!img.Weak || v.pins[id] != nil || img.Plan != nil && id != finished && img.Plan.Verb != verbRemove) {
			return "image", id
		}
		if img != nil && img.Volume != "" {
			theirs[img.Volume] = true
		}
	}
	shared, above := map[string]bool{}, map[string]bool{}
	for id, img := range v.images {
		if goes[id] {
			continue
		}
		if frees[img.Volume] {
			return "volume", img.Volume
		}
		if theirs[img.Volume] {
			shared[img.Volume] = true
		}
		if img.Plan == nil || id == finished {
			continue
		}
		for _, made := range img.Plan.makes() {
			if frees[made] {
				return "volume", made
			}
		}
		for _, source := range []string{img.Plan.From, img.Plan.Base} {
			if goes[source] {
				return "image", source
			}
		}
	}
	for id, vol := range v.volumes {
		switch {
		case frees[id] && v.newer[id]:
			return "volume", id
		case frees[id]:
		case frees[vol.Below]:
			return "volume", vol.Below
		case theirs[vol.Below]:
			above[vol.Below] = true
		}
	}
	for _, id := range images {
		if img := v.images[id]; img != nil && !frees[img.Volume] && !shared[img.Volume] && above[img.Volume] {
			return "image", id
		}
	}
	return "", ""
}

// unneeded keeps of what was to go what is still there and nobody needs.
func (v *view) unneeded(images, volumes []string, finished string) (i, vols []string) {
	images = slices.DeleteFunc(images, func(id string) bool { return v.images[id] == nil })
	volumes = slices.DeleteFunc(volumes, func(id string) bool { return v.volumes[id] == nil })
	for {
		what, needed := v.needed(images, volumes, finished)
		is := func(id string) bool { return id == needed }
		switch what {
		case "image":
			images = slices.DeleteFunc(images, is)
		case "volume":
			volumes = slices.DeleteFunc(volumes, is)
		default:
			return images, volumes
		}
	}
}

func setOf(ids []string) map[string]bool {
	set := make(map[string]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}
