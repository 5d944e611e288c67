// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// A copy can be made of an image of a storage repository. Which files or volumes
// hold that image is the repository's business, and changes: a merge moves the
// content elsewhere and leaves it what it was. So such a disk names the image and
// no source; where the image is says the repository, and what its content is
// worth says the image's version and not the fingerprint of files.
//
// The copy process holds the image while it reads it: until then and from then
// on the repository may do with it what it likes.

// From names an image of a storage repository.
type From struct {
	Repo string `json:"repo"`
	ID   string `json:"id"`
}

func (f From) String() string { return f.Repo + "/" + f.ID }

// Held is where the content of an image is, and what content it is.
type Held struct {
	Layers  []imagecheck.Layer // top first, each named in full
	Size    int64              // bytes
	Version string             // another one where the content may be another
}

// Images hands out images of storage repositories.
type Images interface {
	// Look says where an image is right now. It keeps nobody from moving it.
	Look(context.Context, From) (Held, error)
	// Hold makes it readable and keeps it as it is for holder, until Drop or the
	// host's end. The same again is fine.
	Hold(ctx context.Context, f From, holder string) (Held, error)
	Drop(ctx context.Context, f From, holder string) error
}

// maxHeldTarget bounds the target of a disk whose name becomes part of a holder's.
const maxHeldTarget = 16

// holder is who holds the image that a copy is made of: never the domain itself,
// which may use the image as one of its disks.
func (d Disk) holder() string { return d.Domain + "/" + d.Target }

func (s *Service) images(d Disk) (Images, error) {
	if s.Images == nil {
		return nil, failure.New(failure.Precondition, "%s: image %s: there are no storage repositories here", d, d.From)
	}
	return s.Images, nil
}

// fingerprint identifies the content of an image: its id and its version. The
// repository is none of it, since a snapshot is the same in all of them.
func (h Held) fingerprint(f From) string { return "image " + f.ID + " " + h.Version }

// lookUp is Inspect of an image. No header is read: the image may not be open.
func (s *Service) lookUp(ctx context.Context, d Disk) (imagecheck.Info, []imagecheck.Layer, error) {
	images, err := s.images(d)
	if err != nil {
		return imagecheck.Info{}, nil, err
	}
	held, err := images.Look(ctx, *d.From)
	if err != nil {
		return imagecheck.Info{}, nil, err
	}
	return imagecheck.Info{VirtualSize: held.Size, Layers: held.Layers, Fingerprint: held.fingerprint(*d.From)}, held.Layers, nil
}

// shareableImage is Shareable of an image, as far as that is known before it is
// held.
func (s *Service) shareableImage(ctx context.Context, d Disk) error {
	_, layers, err := s.lookUp(ctx, d)
	if err != nil {
		return unreadable(d, err)
	}
	if len(layers) < 2 {
		return unshared(d, "its source is one image")
	}
	return nil
}

// dropTimeout bounds how long a copy that is done waits for the repository.
const dropTimeout = time.Minute

// hold keeps the image that d is to be copied from, if it is one, and says where
// it is. drop lets go of it; that it fails harms nobody but who wants to write to
// the image: the next copy of the disk lets go of it, or a reboot.
func (s *Service) hold(ctx context.Context, d Disk) (_ Disk, drop func(), err error) {
	if d.From == nil {
		return d, func() {}, nil
	}
	images, err := s.images(d)
	if err != nil {
		return d, nil, err
	}
	limited, cancel := context.WithTimeout(ctx, dropTimeout)
	defer cancel()
	held, err := images.Hold(limited, *d.From, d.holder())
	if err != nil {
		return d, nil, err
	}
	d.Source, d.held = held.Layers, held.fingerprint(*d.From)
	return d, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
		defer cancel()
		if err := images.Drop(ctx, *d.From, d.holder()); err != nil {
			s.Log.Warn("the image that was copied is still held", "disk", d.String(), "image", d.From.String(), "holder", d.holder(), "err", err)
		}
	}, nil
}

// allowed bounds what is read for d: files below the configured roots, and those
// of an image that is held, wherever its repository is.
func (s *Service) allowed(d Disk) imagecheck.Allowed {
	if d.held == "" {
		return s.Config.Paths.Allowed
	}
	return func(path string) (string, error) {
		if !slices.ContainsFunc(d.Source, func(l imagecheck.Layer) bool { return l.Path == path }) {
			return "", failure.New(failure.Precondition, "%s: not of image %s", path, d.From)
		}
		return filepath.EvalSymlinks(path)
	}
}
