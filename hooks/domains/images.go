// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// images are those of storage repositories: disks that are one, and local copies that
// are made of one. Where an image is used on other hosts only its repository knows.
type images struct {
	*Service
	plain
}

func (images) binds(b bindings.Binding) bool { return isImage(b) || b.Option("image", "") != "" }

func isImage(b bindings.Binding) bool { return b.Kind == "image" }

func (images) free(d Domain, b bindings.Bound, other Facts) error {
	target := ""
	if isImage(b.Binding) {
		target = keptFor(d, b, other)
	}
	if target == "" {
		return nil
	}
	repo := b.Binding.Option("repo", "")
	return apart(d, b, b.Kept(), target, other, "give one of both an image of its own, as `diskhook image snapshot %s/%s` and `diskhook image create --base SNAPSHOT %s` make it", repo, b.Binding.Value, repo)
}

func (k images) fits(ctx context.Context, d Domain, b bindings.Bound) error {
	at, err := withPatience(ctx, func() (string, error) { return k.Host.ImageAt(ctx, b) })
	if err != nil {
		return onDisk(d, b, err)
	}
	same, err := isAt(ctx, b.Disk, at)
	switch {
	case err != nil || same || b.Disk.ReadOnly:
		return onDisk(d, b, err)
	case isImage(b.Binding):
		return different(d, b, "take it in with `diskhook image import --wait --kind disk --format %s %s %s`, or go without it; then set the disk's source to %s with `virsh edit %s`, and run this again with the image that the import named",
			b.Disk.Format, b.Binding.Option("repo", "REPO"), describeSource(b), k.Host.ImageLink(d.Domain, b.Disk.Target), d.NameArg())
	}
	err = failure.New(failure.Conflict, "%s: disk %s is %s, and its copy would be made of image %s/%s", d, b.Disk.Target, describeSource(b), b.Binding.Option("repo", ""), b.Binding.Option("image", ""))
	return failure.Hint(err, "leave the image out, and the copy is made of the disk; or go without it: set the disk's source to a path at which nothing is with `virsh edit %s`, then run this again", d.NameArg())
}

// note is what the definition will have to be told of the image.
func (images) note(p *Plan, b bindings.Bound) string {
	metadata, err := p.After.Metadata()
	if err != nil {
		return "" // it was written just now
	}
	e, ok := metadata.Disk(b.Disk.Target)
	if !ok || e.Image == nil || e.Image.Format != imagecheck.Raw || b.Disk.ReadOnly {
		return ""
	}
	return fmt.Sprintf("disk %s: %s is raw; once a snapshot of it has made it qcow2, run `diskhook domain apply --refresh %s` before the next start", b.Disk.Target, b.Kept(), p.Domain.NameArg())
}
