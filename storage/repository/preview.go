// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
)

// Preview is an image as PrepareImage would hand it out now. Until somebody
// prepares it, it may go elsewhere.
type Preview struct {
	Prepared
	Kind Kind
	// Held says that the holder has it on this host already.
	Held bool
}

// PreviewImage refuses what PrepareImage would refuse (but for what only the
// volumes show), and changes nothing: no volume is opened, so that its path need
// not be there. With a holder that has the image, it says where that one has it.
// Without a holder it says where the image is, whoever uses it.
func (s *Service) PreviewImage(ctx context.Context, repoID, imageID string, p Preparing) (Preview, error) {
	if err := CheckImage(repoID, imageID); err != nil {
		return Preview{}, err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return Preview{}, err
	}
	defer r.close()
	img, err := r.visible(ctx, imageID)
	if err != nil {
		return Preview{}, err
	}
	holders, err := s.holders(ctx, r, imageID)
	if err != nil {
		return Preview{}, err
	}
	if p.Holder != "" {
		if err := s.admissible(ctx, r, img, holders, p); err != nil {
			return Preview{}, err
		}
	}
	c, err := r.chain(ctx, img)
	if err != nil {
		return Preview{}, err
	}
	layers := r.layers(c)
	return Preview{
		Prepared: Prepared{Path: layers[0].Path, Format: layers[0].Format, Size: img.Size, Layers: layers, Version: img.version()},
		Kind:     img.Kind, Held: slices.ContainsFunc(holders, s.me(p).same),
	}, nil
}

func (s *Service) admissible(ctx context.Context, r *repo, img *image, holders []holder, p Preparing) error {
	if err := checkHolder(p.Holder); err != nil {
		return err
	}
	if p.Write && img.Kind != Disk {
		return fmt.Errorf("image %s/%s: %w", r.id, img.ID, ErrNotDisk)
	}
	if err := r.unchanging(ctx, img, p.Write); err != nil {
		return err
	}
	_, err := s.admit(&update{repo: r}, img, holders, p)
	return err
}

// PreviewResize is what ResizeVirtualDisk would do now: it refuses what that would refuse,
// and says how large the disk is and would be then, which is the same where there is nothing to do.
func (s *Service) PreviewResize(ctx context.Context, repoID, diskID string, size int64) (from, to int64, err error) {
	if err := CheckImage(repoID, diskID); err != nil {
		return 0, 0, err
	}
	if size, err = checkSize(size); err != nil {
		return 0, 0, err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return 0, 0, err
	}
	defer r.close()
	r.rehearsal = &rehearsal{}
	err = r.change(ctx, func(u *update) error {
		var disk *image
		if disk, to, err = s.resizable(ctx, u, diskID, size); err == nil {
			from = disk.Size
		}
		return err
	})
	return from, to, err
}

// PreviewRemove refuses what RemoveImage would refuse now, and changes nothing.
func (s *Service) PreviewRemove(ctx context.Context, repoID, imageID string, o Options) error {
	o.rehearsal = &rehearsal{}
	return s.RemoveImage(ctx, repoID, imageID, o)
}

// PreviewUserData refuses what SetUserData would refuse now, and changes nothing.
func (s *Service) PreviewUserData(ctx context.Context, repoID, imageID string, userData json.RawMessage) error {
	return s.annotate(ctx, repoID, imageID, userData, &rehearsal{})
}

// version is Prepared.Version: each preparation for writing saves the document.
func (i *image) version() string {
	if i.Kind == Snapshot {
		return "snapshot"
	}
	return fmt.Sprintf("generation-%d", i.Gen)
}

// CheckImage refuses what cannot be the ids of a repository and an image; a
// failure.Usage.
func CheckImage(repoID, imageID string) error {
	if err := checkRepoID(repoID); err != nil {
		return err
	}
	return checkImageID(imageID)
}
