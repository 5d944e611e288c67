// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/xmlrewrite"
)

// What verbs on definitions have to know of images of storage repositories.

// imagesFit refuses an image that another domain is bound to, unless both only
// read it, and to put one in the place of a disk that is something else: nobody
// knows whether the image holds what that holds. The latter goes for copies of
// images, too.
func (s *Service) imagesFit(ctx context.Context, d Domain, bound []bindings.Bound, others []Facts) error {
	for _, b := range bound {
		isImage := b.Binding.Kind == "image"
		if !isImage && b.Binding.Option("image", "") == "" {
			continue
		}
		if isImage {
			if err := notImageOf(d, b, others); err != nil {
				return err
			}
		}
		same, err := s.isImage(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
		if !same && !b.Disk.ReadOnly {
			return s.notImage(d, b, isImage)
		}
	}
	return nil
}

// notImage refuses a disk that has data of its own.
func (s *Service) notImage(d Domain, b bindings.Bound, isImage bool) error {
	if isImage {
		err := failure.New(failure.Conflict, "%s: disk %s is %s, and nobody knows whether %s holds what that holds", d, b.Disk.Target, describeSource(b), b.Kept())
		return failure.Hint(err, "take it in with `diskhook image import --wait --kind disk --format %s %s %s`, or go without it; then set the disk's source to %s with `virsh edit %s`, and run this again with the image that the import named",
			b.Disk.Format, b.Binding.Option("repo", "REPO"), describeSource(b), s.Host.ImageLink(d.Domain, b.Disk.Target), d.NameArg())
	}
	err := failure.New(failure.Conflict, "%s: disk %s is %s, and its copy would be made of image %s/%s", d, b.Disk.Target, describeSource(b), b.Binding.Option("repo", ""), b.Binding.Option("image", ""))
	return failure.Hint(err, "leave the image out, and the copy is made of the disk; or go without it: set the disk's source to a path at which nothing is with `virsh edit %s`, then run this again", d.NameArg())
}

// isImage says whether the disk is the image by another name, or nothing that
// could hold data.
func (s *Service) isImage(ctx context.Context, b bindings.Bound) (bool, error) {
	at, err := withPatience(ctx, func() (string, error) { return s.Host.ImageAt(ctx, b) })
	if err != nil || b.Disk.Path == "" {
		return b.Disk.Socket == "", err
	}
	return withPatience(ctx, func() (bool, error) {
		now, err := os.Stat(b.Disk.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		image, err := os.Stat(at)
		return err == nil && os.SameFile(now, image), nil
	})
}

// outgrown says what the definition will have to be told of the images that it
// binds.
func outgrown(p *Plan) []string {
	metadata, err := p.After.Metadata()
	if err != nil {
		return nil // it was written just now
	}
	var notes []string
	for _, b := range p.binds {
		if e, ok := metadata.Disk(b.Disk.Target); ok && e.Image != nil && e.Image.Format == imagecheck.Raw && !b.Disk.ReadOnly {
			notes = append(notes, fmt.Sprintf("disk %s: %s is raw; once a snapshot of it has made it qcow2, run `diskhook domain apply --refresh %s` before the next start", b.Disk.Target, b.Kept(), p.Domain.NameArg()))
		}
	}
	return notes
}

// notImageOf refuses an image that another domain of the host is bound to. Where
// it is used on other hosts only its repository knows.
func notImageOf(d Domain, b bindings.Bound, others []Facts) error {
	for _, other := range others {
		doc, err := xmlrewrite.Parse([]byte(other.XML))
		if other.UUID == d.UUID || err != nil {
			continue // libvirt's own output, of a domain that is not ours to judge
		}
		metadata, err := doc.Metadata()
		if err != nil || metadata == nil || metadata.Domain != other.UUID {
			continue
		}
		for _, e := range metadata.Disks {
			theirs, there := doc.Disk(e.Target)
			reads := b.Disk.ReadOnly && there && theirs.ReadOnly
			if e.Image == nil || bindings.KeptBy(e) != b.Kept() || reads {
				continue
			}
			err := failure.New(failure.Conflict, "%s: disk %s: %s is disk %s of domain %s", d, b.Disk.Target, b.Kept(), failure.OneLine(e.Target), failure.OneLine(other.Name))
			return failure.Hint(err, "give one of both an image of its own, as `diskhook image snapshot %s/%s` and `diskhook image create --base SNAPSHOT %s` make it",
				b.Binding.Option("repo", ""), b.Binding.Value, b.Binding.Option("repo", ""))
		}
	}
	return nil
}
