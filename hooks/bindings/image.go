// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/repository"
	"diskhook/xmlrewrite"
)

// image binds disks to images of storage repositories (package repository):
//
//	image=ID,repo=REPO
//
// Which file or volume holds an image changes while no domain uses it: a snapshot
// of it lets it go on in another one. So the disk names a path of its own that
// leads to it, which only a fulfil makes; see imagelink.go. What libvirt opens
// the path as it takes from the definition alone: where that has changed the
// start is refused, and `domain apply --refresh` writes it anew.
//
// A fulfil prepares the image for the domain, by its UUID, and a release gives it
// back. Meanwhile nobody else writes to it, and the repository leaves it as it is.
type image struct{}

// Images is what bindings need of storage repositories: repository.Service.
type Images interface {
	PreviewImage(ctx context.Context, repoID, imageID string, p repository.Preparing) (repository.Preview, error)
	PrepareImage(ctx context.Context, repoID, imageID string, p repository.Preparing) (repository.Prepared, error)
	ReleaseImage(ctx context.Context, repoID, imageID, holder string) error
}

func (image) Name() string { return "image" }

// Migrate refuses: whoever writes to an image has it alone, and the host that the
// domain comes to would have to prepare it while the other still writes.
func (image) Migrate() Migration { return Refuse }

func (image) Offline(_ Domain, b Bound) string {
	return fmt.Sprintf("shut the domain down; connect repository %s on the other host with `diskhook repo connect`, as `diskhook repo list` has it here, and define and start the domain there", b.Binding.Options["repo"])
}

func (image) Check(b Binding) error {
	repo := b.Options["repo"]
	var err error
	switch {
	case b.From == Property:
		err = failure.New(failure.Usage, "image is not for VMs of oVirt: VDSM manages their images itself")
		return failure.Hint(err, "take it out of the property")
	case b.Value == "" || repo == "":
		err = failure.New(failure.Usage, "image: which one, and in which repository, is missing")
		return failure.Hint(err, "write it like vda:image=ID,repo=REPO with an image of `diskhook image list REPO`")
	case len(b.Options) > 1:
		return failure.New(failure.Usage, "image has no option but repo")
	case !b.Named() && b.From != Rule:
		err = failure.New(failure.Usage, "image=%s: one image cannot be every disk of a domain", clip(b.Value))
		return failure.Hint(err, "name the disk, as in vda:image=%s,repo=%s", clip(b.Value), clip(repo))
	}
	return failure.Hint(repository.CheckImage(repo, b.Value), "see `diskhook repo list`, and `diskhook image list REPO`")
}

const isReadOnly = "it is read-only"

// Unfit takes a disk that is read-only as well, and prepares its image for that.
func (image) Unfit(d Disk) string {
	if d.Unfit == isReadOnly {
		return ""
	}
	return d.Unfit
}

func (image) kept(b Binding) string { return "image " + imageOf(b) }

// imageOf names an image as commands take it.
func imageOf(b Binding) string { return clip(b.Options["repo"]) + "/" + clip(b.Value) }

// images opens the repositories.
func (h *Host) images() (Images, error) {
	if h.Images == nil {
		return nil, failure.New(failure.Precondition, "there are no storage repositories here")
	}
	return h.Images()
}

// preparing is how a domain uses the image of a disk.
func preparing(d Domain, disk Disk) repository.Preparing {
	return repository.Preparing{Holder: d.UUID, Write: !disk.ReadOnly}
}

// ask calls a repository, and comes back when ctx ends: its storage may hang.
func ask[T any](ctx context.Context, h *Host, call func(context.Context, Images) (T, error)) (T, error) {
	images, err := h.images()
	if err != nil {
		var none T
		return none, err
	}
	return command.Abandon(ctx, func() (T, error) { return call(ctx, images) })
}

func preview(ctx context.Context, h *Host, b Binding, p repository.Preparing) (repository.Preview, error) {
	return ask(ctx, h, func(ctx context.Context, i Images) (repository.Preview, error) {
		return i.PreviewImage(ctx, b.Options["repo"], b.Value, p)
	})
}

// refused says why a disk does not get its image, always with a way out.
func (image) refused(d Domain, b Bound, err error) error {
	repo := b.Binding.Options["repo"]
	switch {
	case errors.Is(err, repository.ErrNotDisk):
		err = fmt.Errorf("image %s: it is a snapshot, which nobody may write to", imageOf(b.Binding))
		err = failure.Hint(failure.Wrap(failure.Usage, err), "make a disk of it with `diskhook image create --base %s %s` and bind that, or add <readonly/> to the disk with `virsh edit %s`", b.Binding.Value, repo, d.NameArg())
	case errors.Is(err, command.ErrNoAnswer):
		err = fmt.Errorf("image %s: %w", imageOf(b.Binding), err)
		err = failure.Hint(err, "look after the storage of repository %s (`diskhook repo stat %s` answers when it does), then start again", repo, repo)
	case failure.HintOf(err) == "":
		err = failure.Hint(err, "see `diskhook image status %s`", imageOf(b.Binding))
	}
	return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
}

func (k image) Plan(ctx context.Context, h *Host, d Domain, bound []Bound) ([]Step, error) {
	if err := apart(d, bound); err != nil {
		return nil, err
	}
	var steps []Step
	for _, b := range bound {
		step := Step{Target: b.Disk.Target, Kind: k.Name()}
		what, link := "prepare it", imageLink(h.Layout, d.UUID, b.Disk.Target)
		at, err := preview(ctx, h, b.Binding, preparing(d, b.Disk))
		if err == nil {
			err = k.suits(d, b, link, at.Prepared)
		}
		switch {
		case err != nil:
			what, step.Err = "it cannot be prepared", k.refused(d, b, err)
		case at.Held:
			what = "it is prepared"
		default:
			step.Commands = []string{"prepare image " + imageOf(b.Binding) + " for " + d.UUID, "link " + link + " to " + at.Path}
		}
		step.What = fmt.Sprintf("disk %s: image %s: %s", b.Disk.Target, imageOf(b.Binding), what)
		steps = append(steps, step)
	}
	return steps, nil
}

// suits refuses an image that is not what the definition has libvirt open, or what
// a snapshot on top of it takes it for: its guest would see the image of a disk
// in place of the disk, or the other way round.
func (image) suits(d Domain, b Bound, link string, p repository.Prepared) error {
	kind := sourceType(isDevice(p.Path))
	if b.Disk.Path == link {
		if b.Disk.Format == p.Format && b.Disk.Type == kind {
			return nil
		}
		err := fmt.Errorf("image %s is %s on a %s now %w, and the definition says %s on a %s",
			imageOf(b.Binding), p.Format, kind, errOutdated, b.Disk.Format, b.Disk.Type)
		return failure.Hint(err, "run `diskhook domain apply --refresh %s`, which corrects the definition; no data changes", d.NameArg())
	}
	if b.Recorded == nil || b.Recorded.Image == nil || b.Recorded.Image.Format == p.Format {
		return nil
	}
	err := failure.New(failure.Conflict, "image %s is %s now, and %s on top of it takes it for %s", imageOf(b.Binding), p.Format, describe(b.Disk), b.Recorded.Image.Format)
	return failure.Hint(err, "let it be merged: `diskhook repo fix %s`; or tell the snapshot with `qemu-img rebase -u -f qcow2 -F %s -b %s %s`, and the metadata in <dh:image format=…> with `virsh edit %s`",
		b.Binding.Options["repo"], p.Format, link, describe(b.Disk), d.NameArg())
}

var errOutdated = failure.Wrap(failure.Conflict, errors.New("(a snapshot or a merge did that)"))

func sourceType(block bool) string {
	if block {
		return "block"
	}
	return "file"
}

// Restorable asks no more than that the image can be prepared as it is defined:
// as the saved memory has it, which `domain apply` does not change.
func (k image) Restorable(ctx context.Context, h *Host, d Domain, bound []Bound) error {
	steps, err := k.Plan(ctx, h, d, bound)
	for _, s := range steps {
		if errors.Is(s.Err, errOutdated) {
			s.Err = failure.Hint(s.Err, "set that in the disk's <driver> with `virsh managedsave-edit %s`, or `virsh save-image-edit FILE` for memory in a file, then start again", d.NameArg())
		}
		err = errors.Join(err, s.Err)
	}
	return err
}

// Rewrite points the disk at its link, as the image is now.
func (k image) Rewrite(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error) {
	if d.OVirt {
		_, err := k.Place(h, d, b)
		return nil, xmlrewrite.BoundDisk{}, err
	}
	at, err := k.now(h, b.Binding, preparing(d, b.Disk))
	if err != nil {
		return nil, xmlrewrite.BoundDisk{}, k.refused(d, b, err)
	}
	entry := xmlrewrite.BoundDisk{
		Target: b.Disk.Target, Serial: b.Disk.Serial, Source: imageLink(h.Layout, d.UUID, b.Disk.Target),
		Image: &xmlrewrite.Image{Repo: b.Binding.Options["repo"], ID: b.Binding.Value, Format: at.Format},
	}
	return asImage(entry, at, b.Disk.ReadOnly), entry, checkLinked(d.UUID, b.Disk.Target)
}

// now is a preview for who rewrites a definition; each step is bounded by the
// repository's own deadline.
func (image) now(h *Host, b Binding, p repository.Preparing) (repository.Preview, error) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	return preview(ctx, h, b, p)
}

func asImage(entry xmlrewrite.BoundDisk, at repository.Preview, readOnly bool) xmlrewrite.Rewriter {
	return xmlrewrite.VolumeDisk{Target: entry.Target, Path: entry.Source, Block: isDevice(at.Path), Format: at.Format, Discard: !readOnly}
}

// Place refuses: see Check.
func (k image) Place(_ *Host, d Domain, b Bound) (xmlrewrite.Rewriter, error) {
	b.Binding.From = Property
	return nil, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, k.Check(b.Binding))
}

// Recorded reads the entry of a disk that is an image.
func (image) Recorded(r xmlrewrite.BoundDisk) (Binding, bool) {
	if r.Image == nil {
		return Binding{}, false
	}
	return Binding{Value: r.Image.ID, Options: map[string]string{"repo": r.Image.Repo}}, true
}

// Source is the link.
func (image) Source(h *Host, d Domain, r xmlrewrite.BoundDisk) (string, error) {
	return imageLink(h.Layout, d.UUID, r.Target), nil
}

// Point points the disk at its link as the image is now.
func (k image) Point(h *Host, d Domain, r xmlrewrite.BoundDisk) (xmlrewrite.Rewriter, error) {
	b, _ := k.Recorded(r)
	at, err := k.now(h, b, repository.Preparing{})
	disk, _ := d.Disk(r.Target)
	if err != nil {
		return nil, k.refused(d, Bound{Disk: disk, Binding: b}, err)
	}
	r.Source = imageLink(h.Layout, d.UUID, r.Target)
	return asImage(r, at, disk.ReadOnly), nil
}

// refresh records what the image is now. outdated says that the definition has
// libvirt open something else.
func (k image) refresh(h *Host, d Domain, disk Disk, r *xmlrewrite.BoundDisk) (outdated bool, err error) {
	b, _ := k.Recorded(*r)
	at, err := k.now(h, b, repository.Preparing{})
	if err != nil {
		return false, k.refused(d, Bound{Disk: disk, Binding: b}, err)
	}
	i := *r.Image
	i.Format = at.Format
	r.Image = &i
	return disk.Format != at.Format || disk.Type != sourceType(isDevice(at.Path)), nil
}

// ImageAt is where the image is that a disk is bound to, or copied from.
func (h *Host) ImageAt(ctx context.Context, b Bound) (string, error) {
	if f := b.Binding.from(); f != nil {
		b.Binding = Binding{Value: f.ID, Options: map[string]string{"repo": f.Repo}}
	}
	at, err := preview(ctx, h, b.Binding, repository.Preparing{})
	return at.Path, err
}

// ImageLink is the path by which a disk that is an image names it.
func (h *Host) ImageLink(d Domain, target string) string { return imageLink(h.Layout, d.UUID, target) }

// Reassign refuses: two domains that write to one image would destroy it.
func (image) Reassign(_ *Host, d Domain, r *xmlrewrite.BoundDisk) error {
	err := failure.New(failure.Conflict, "its image %s/%s is that of the domain which this is a clone of", clip(r.Image.Repo), clip(r.Image.ID))
	return failure.Hint(err, "run `diskhook domain unbind %s`, make an image of its own with `diskhook image snapshot %s/%s` and `diskhook image create --base SNAPSHOT %s`, then bind it with `diskhook domain apply --image %s=%s/IMAGE %s`",
		d.NameArg(), clip(r.Image.Repo), clip(r.Image.ID), clip(r.Image.Repo), r.Target, clip(r.Image.Repo), d.NameArg())
}
