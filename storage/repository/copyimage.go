// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// CopyImage brings an image, wherever it is connected, into a repository. A snapshot
// keeps its id: if it is there already nothing is done. A disk gets a new one.
//
// With baseImageID, a snapshot that the image descends from, only what differs from
// that is copied, and the copy is laid over the base in the target; as long as that
// is not there the copy is broken. ErrNotAncestor: the image does not descend from
// it.
func (s *Service) CopyImage(ctx context.Context, targetRepoID, imageID, baseImageID string, userData json.RawMessage, o Options) (string, error) {
	userData, err := checkUserData(userData)
	if err != nil {
		return "", err
	}
	r, err := s.target(ctx, targetRepoID, o)
	if err != nil {
		return "", err
	}
	defer r.close()
	from, err := s.search(ctx, r, imageID, o)
	if err != nil {
		return "", err
	}
	defer from.closeUnless(r)
	if from.repo == r && from.image.Kind == Snapshot {
		return imageID, nil
	}
	a := asked{
		id: imageID, kind: from.image.Kind, size: from.image.Size, base: from.image.Base,
		strategy: o.strategy(), userData: userData,
		digest: o.digest(verbCopy, imageID, baseImageID, string(userData)),
	}
	if a.kind == Disk {
		a.id, a.size = o.newID(r.about.Nonce), r.diskSize(a.size)
	}
	if a.kind == Disk { // a snapshot is asked for by its own id, which says all
		if done, err := r.repeated(ctx, a); err != nil || done {
			if !done {
				return "", err // the image of that id was not asked for
			}
			return a.id, s.goOn(ctx, r, a.id, o)
		}
	}
	a.plan = &plan{Verb: verbCopy, Size: a.size, From: imageID, Here: from.repo == r}
	if err := s.planCopy(ctx, r, from, baseImageID, a.plan); err != nil {
		return "", err
	}
	err = r.change(ctx, func(u *update) error {
		if a.kind == Snapshot {
			if there, err := u.thereAlready(ctx, a); there || err != nil {
				return err
			}
		}
		_, err := s.commit(ctx, u, a)
		return err
	})
	if err != nil {
		return "", err
	}
	s.proceed(ctx, r, a.id, o)
	return a.id, nil
}

// planCopy says how: whole, or the volumes above the base's.
func (s *Service) planCopy(ctx context.Context, target *repo, from *found, baseID string, p *plan) error {
	c, err := from.chain(ctx, from.image)
	if err != nil {
		return err
	}
	if err := s.readableNow(ctx, from); err != nil {
		return err
	}
	p.Volume = uuid.NewString()
	if baseID == "" {
		p.copies()
		return from.roomToCopy(ctx, target)
	}
	if err := checkImageID(baseID); err != nil {
		return err
	}
	base, err := from.repo.image(ctx, baseID)
	if errors.Is(err, ErrNoImage) {
		return fmt.Errorf("base %s: %w of %s: it is not in repository %s", baseID, ErrNotAncestor, from.image.ID, from.id)
	}
	if err != nil {
		return err
	}
	if base.Kind != Snapshot {
		return notSnapshot(from.id, baseID)
	}
	if ok, err := from.descends(ctx, from.image, baseID); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("base %s: %w of %s", baseID, ErrNotAncestor, from.image.ID))
	}
	p.Base = baseID
	if target.place.Capabilities().Stale || from.place.Capabilities().Stale {
		c = nil // where volumes end with what an earlier owner left they are not copied as they are
	}
	for i, v := range c {
		if v.ID == base.Volume && len(p.Parts) > 0 {
			p.Volume, p.Stages = p.Parts[0].Copy, []string{stageParts, stageLink, stagePublish}
			return target.room(ctx, from.allocatedAll(ctx, c[:i]), "what image "+from.image.ID+" has above its base")
		}
		p.Parts = append(p.Parts, part{Of: v.ID, Copy: uuid.NewString()})
	}
	// Its data does not lie on the base's: it shares blocks, or was copied.
	p.Parts, p.Format, p.Stages = nil, imagecheck.QCOW2, []string{stageDiffer, stagePublish}
	return target.room(ctx, target.empty(p.Format, p.Size), "the difference") // how large it is nobody knows yet
}

// descends says whether an image was made of a snapshot, or of one that was.
func (r *repo) descends(ctx context.Context, img *image, baseID string) (bool, error) {
	for range imagecheck.MaxLayers {
		if img.Base == baseID {
			return true, nil
		}
		if img.Base == "" {
			return false, nil
		}
		var err error
		if img, err = r.image(ctx, img.Base); errors.Is(err, ErrNoImage) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, nil
}

// readableNow refuses a disk that somebody writes.
func (s *Service) readableNow(ctx context.Context, from *found) error {
	if from.image.Kind != Disk {
		return nil
	}
	holders, err := s.holders(ctx, from.repo, from.image.ID)
	if err != nil {
		return err
	}
	for _, h := range holders {
		if h.Write {
			return from.inUse(from.image.ID, holders)
		}
	}
	return nil
}

// thereAlready finds a snapshot in the target that is being copied there, or that
// was removed and whose data is still here: it has the id of what is asked for, so
// it has its content, and is made visible again.
func (u *update) thereAlready(ctx context.Context, a asked) (bool, error) {
	old, err := u.image(ctx, a.id)
	if errors.Is(err, ErrNoImage) {
		return false, nil
	}
	if err != nil || !old.Weak {
		return err == nil && old.Kind == Snapshot, err
	}
	if _, err := u.chain(ctx, old); err != nil || old.Kind != Snapshot {
		return false, nil //nolint:nilerr // what it had is of no use: commit refuses it
	}
	old.Weak, old.Plan, old.UserData, old.Strategy, old.Request = false, nil, a.userData, a.strategy, a.digest
	if err := u.saveImage(ctx, old); err != nil {
		return true, err
	}
	top, err := u.volume(ctx, old.Volume)
	if err != nil || top.Erase == nil {
		return true, err
	}
	top.Erase = nil // that was asked for the one that was removed
	return true, u.saveVolume(ctx, top)
}

// ImportImage makes an image of a chain that is in no repository, top first. Every
// header is inspected first; see package imagecheck for what is refused.
func (s *Service) ImportImage(ctx context.Context, targetRepoID string, layers []imagecheck.Layer, kind Kind, userData json.RawMessage, o Options) (string, error) {
	if kind != Disk && kind != Snapshot {
		return "", failure.New(failure.Usage, "kind %q: disk or snapshot", clip(string(kind)))
	}
	r, a, err := s.making(ctx, targetRepoID, kind, userData, o, verbImport, layers, kind)
	if r == nil {
		return a.id, err
	}
	defer r.close()
	bytes, err := s.sound(ctx, layers)
	if err != nil {
		return "", err
	}
	if a.size, err = checkSize(bytes); err != nil {
		return "", err
	}
	if kind == Disk {
		a.size = r.diskSize(a.size)
	}
	a.plan = &plan{Verb: verbImport, Volume: uuid.NewString(), Size: a.size, Layers: layers}
	a.plan.copies()
	if err := r.room(ctx, r.whole(allocatedBelow(layers, a.size), a.size), "the imported image"); err != nil {
		return "", err
	}
	if err := s.make(ctx, r, a); err != nil {
		return "", err
	}
	s.proceed(ctx, r, a.id, o)
	return a.id, nil
}

// sound refuses a chain that could not be copied, before anything is promised of it, and
// says how large a disk it is.
func (s *Service) sound(ctx context.Context, layers []imagecheck.Layer) (bytes int64, err error) {
	opened, err := imagecheck.Checker{Allowed: s.Allowed}.Open(ctx, layers)
	if err != nil {
		return 0, err
	}
	defer opened.Close()
	_, err = command.Abandon(ctx, func() (struct{}, error) { return struct{}{}, transfer.CheckTables(opened) })
	return opened.VirtualSize, err
}
