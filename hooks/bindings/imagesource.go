// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/repository"
	"diskhook/xmlrewrite"
)

// A local copy can be made of an image of a repository:
//
//	local=lvmthin,image=ID,repo=REPO
//
// The metadata say so in <dh:origin>, beside what the disk was.

// ImagesOf hands out the images of storage repositories to copies.
func ImagesOf(open func() (Images, error)) localdisk.Images { return imageSource{open} }

type imageSource struct{ open func() (Images, error) }

func (s imageSource) Look(ctx context.Context, f localdisk.From) (localdisk.Held, error) {
	images, err := s.open()
	if err != nil {
		return localdisk.Held{}, err
	}
	at, err := images.PreviewImage(ctx, f.Repo, f.ID, repository.Preparing{})
	return held(at.Prepared), err
}

func (s imageSource) Hold(ctx context.Context, f localdisk.From, holder string) (localdisk.Held, error) {
	images, err := s.open()
	if err != nil {
		return localdisk.Held{}, err
	}
	at, err := images.PrepareImage(ctx, f.Repo, f.ID, repository.Preparing{Holder: holder})
	return held(at), err
}

func (s imageSource) Drop(ctx context.Context, f localdisk.From, holder string) error {
	images, err := s.open()
	if err != nil {
		return err
	}
	return images.ReleaseImage(ctx, f.Repo, f.ID, holder)
}

func held(p repository.Prepared) localdisk.Held {
	return localdisk.Held{Layers: p.Layers, Size: p.Size, Version: p.Version}
}

// from is the image that a local copy is made of; nil: none.
func (b Binding) from() *localdisk.From {
	if b.Options["image"] == "" {
		return nil
	}
	return &localdisk.From{Repo: b.Options["repo"], ID: b.Options["image"]}
}

// checkFrom refuses what is no image that a copy can be made of.
func (b Binding) checkFrom() error {
	f := b.from()
	switch {
	case f == nil && b.Options["repo"] == "":
		return nil
	case f == nil || f.Repo == "":
		err := failure.New(failure.Usage, "local: image and repo belong together")
		return failure.Hint(err, "write them like vda:local=lvmthin,image=ID,repo=REPO with an image of `diskhook image list REPO`")
	case b.From == Property:
		err := failure.New(failure.Usage, "image= is not for VMs of oVirt, whose disks VDSM makes")
		return failure.Hint(err, "leave image and repo out of the property")
	case b.Options["fill"] == fillInstant:
		err := failure.New(failure.Usage, "fill=instant and image cannot be had together: the copy would lie on an image that its repository moves")
		return failure.Hint(err, "use fill=start")
	case !b.Named() && b.From != Rule:
		err := failure.New(failure.Usage, "image=%s: one image is not what every disk of a domain is copied from", clip(f.ID))
		return failure.Hint(err, "name the disk, as in vda:local=%s,image=%s,repo=%s", clip(b.Value), clip(f.ID), clip(f.Repo))
	}
	return failure.Hint(repository.CheckImage(f.Repo, f.ID), "see `diskhook repo list`, and `diskhook image list REPO`")
}

// originImage is what the metadata say of where a copy is made from.
func (b Binding) originImage() *xmlrewrite.Image {
	f := b.from()
	if f == nil {
		return nil
	}
	return &xmlrewrite.Image{Repo: f.Repo, ID: f.ID}
}
