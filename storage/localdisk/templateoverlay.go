// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
)

// Where a copy cannot be a clone, on linear volumes and on file systems that
// share no blocks, it can be an overlay on the template, with the disk's own
// images in it: the base is copied once per host there, too. It is asked for by
// the binding, as the format of a copy is written into the domain's definition.
//
// Unlike a clone it needs its template as long as it is there. That is noted
// three times: in its tags from the moment it exists, in its header, and in its
// receipt. A template to which any of them leads does not go; see overlaysOn.
//
// A file has room for all but what the template holds, as a clone has. A volume
// does not grow by itself, so it has the size of all of the disk: there it is
// time that is saved, and not room.

// TemplateRef says in a receipt which template a copy lies on.
type TemplateRef struct {
	Name string `json:"name"`
	Copy string `json:"copy"` // UUID of volume or file
	Path string `json:"path"`
	Size int64  `json:"size,omitempty"` // bytes; 0 is that an older version wrote it
	// Written is when the data of the file was written last. Whoever writes to it
	// changes every disk on it.
	Written time.Time `json:"written,omitzero"`
}

func (c Copy) ref() *TemplateRef {
	return &TemplateRef{Name: c.Name, Copy: c.UUID, Path: c.Path, Size: c.Size, Written: c.Written.UTC()}
}

// lowest is the name of the template that the disk's copy lies on; "" is none.
// The receipt is what counts where there is one.
func (o Observed) lowest() string {
	if r := o.Receipt; r != nil && !r.Discarding && r.Overlay != nil {
		if r.OnTemplate() {
			return r.Overlay.Template.Name
		}
		return ""
	}
	if o.Copy.Format == imagecheck.QCOW2 {
		return o.Copy.Origin
	}
	return ""
}

// unlikeTemplate is why what an overlay lies on is not what its receipt says.
func unlikeTemplate(o Observed) error {
	r := o.Receipt
	if !r.OnTemplate() || r.Discarding || o.Copy.State != Ready {
		return nil
	}
	ref, t := r.Overlay.Template, o.Template
	var what string
	switch {
	case t.State == Absent:
		what = "is gone"
	case t.Sick != "":
		what = "cannot be used: " + t.Sick
	case t.State != Ready || t.UUID != ref.Copy || t.Path != ref.Path:
		what = "is another one now"
	case t.Size < ref.Size:
		what = fmt.Sprintf("was cut off: it has %d bytes, and had %d", t.Size, ref.Size)
	case !t.Written.Equal(ref.Written):
		what = fmt.Sprintf("was written to at %s; the guest would see a mix of both", t.Written.UTC().Format(time.DateTime))
	default:
		return nil
	}
	err := failure.New(failure.Conflict, "%s: it lies on the template %s, which %s", o.Disk, ref.Path, what)
	return failure.Hint(err, "restore that from a backup, with its time, or give up what the guest wrote with `diskhook local recreate --discard-guest-data %s`", o.Disk.args())
}

// overlayOnTemplate makes the copy of a disk as a qcow2 image with the disk's
// own images on the template of its base. While it is updating it lies on the
// source, out of which what it lacks is read. What is interrupted is made anew:
// a disk's own images are small beside its base, which has a cursor.
func (s *Service) overlayOnTemplate(ctx context.Context, o Observed, held *lock.Lock, status *progress.Writer) (err error) {
	o.Disk.Home = "" // a new copy goes where it is configured to go
	d := o.Disk
	source, err := s.open(ctx, d)
	if err != nil {
		return unreadable(d, err)
	}
	defer source.Close()
	defer func() {
		if err != nil {
			s.clean(d)
		}
	}()
	if o.Copy, err = s.create(ctx, d, source, held, status); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	if o.Template, err = s.templateBelow(ctx, d, o.Copy.Origin); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	if err := failpoint.Hit("overlay.created"); err != nil {
		return err
	}
	if err := s.fillOverlay(ctx, o, source, held, status); err != nil {
		if errors.Is(err, failure.NoSpace) {
			err = failure.Hint(err, "%s", s.backend(d).moreRoom())
		}
		return fmt.Errorf("%s: %w", d, err)
	}
	return s.complete(ctx, o, source.Info)
}

func (s *Service) templateBelow(ctx context.Context, d Disk, name string) (Copy, error) {
	copies, err := s.backend(d).find(ctx)
	if err != nil {
		return Copy{}, err
	}
	t, found := copies[name]
	if !found || t.State != Ready || t.altered() != "" {
		return t, failure.New(failure.Conflict, "its template %s went away", name)
	}
	return t, nil
}

// fillOverlay reads the disk's own images into the overlay, and puts it on the
// template then.
func (s *Service) fillOverlay(ctx context.Context, o Observed, source *imagecheck.Opened, held *lock.Lock, status *progress.Writer) error {
	status.Set(progress.Copying)
	size := max(1<<20, takes(o.Disk, source.Info)-o.Template.holds())
	if err := s.format(ctx, o, source.VirtualSize, size); err != nil {
		return err
	}
	img := qemuimg.QemuImg{Run: s.Run}
	own, err := s.ownRanges(ctx, img, source)
	if err != nil {
		return err
	}
	if len(own) > 0 {
		err := img.Flatten(ctx, qemuimg.FlattenOptions{
			Chain: append([]imagecheck.Layer{{Path: o.Copy.Path, Format: imagecheck.QCOW2}}, source.Layers...),
			Size:  source.VirtualSize, Only: own, Rate: int64(s.Config.Local.Rate),
			Progress: status.Advance, Locks: []*os.File{held.File()},
		})
		if err != nil {
			return err
		}
	}
	if err := failpoint.Hit("overlay.filled"); err != nil {
		return err
	}
	below := imagecheck.Layer{Path: o.Template.Path, Format: imagecheck.Raw}
	if err := s.putBelow(ctx, o.Copy, below); err != nil || !o.Disk.Verify {
		return err
	}
	equal, err := img.Compare(ctx, []imagecheck.Layer{{Path: o.Copy.Path, Format: imagecheck.QCOW2}, below}, source.Layers)
	if err == nil && !equal {
		err = failure.New(failure.Problems, "%s: differs from %s", o.Copy.Path, source.Layers[0].Path)
	}
	return differsFrom(o, err)
}

// ownRanges is what of the disk is not decided by its base. Where an image ends
// before the base does, it is zeros from there on, and its own.
func (s *Service) ownRanges(ctx context.Context, img qemuimg.QemuImg, source *imagecheck.Opened) ([]qemuimg.Range, error) {
	extents, err := img.Map(ctx, source.Layers, source.Files)
	if err != nil {
		return nil, err
	}
	var own []qemuimg.Range
	for _, x := range extents {
		if x.Depth >= len(source.Layers)-1 {
			continue
		}
		if last := len(own) - 1; last >= 0 && own[last].Offset+own[last].Length == x.Start {
			own[last].Length += x.Length
			continue
		}
		own = append(own, qemuimg.Range{Offset: x.Start, Length: x.Length})
	}
	return own, nil
}

// holds is how many bytes of a template's file are there; of a volume none, as
// what lies on it has room for all.
func (c Copy) holds() int64 {
	var st unix.Stat_t
	if !c.file() || unix.Stat(c.Path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// unshared refuses a copy that is to lie on a template where there can be none.
func unshared(d Disk, why string) error {
	err := failure.New(failure.Precondition, "%s: its copy cannot lie on a template: %s", d, why)
	return failure.Hint(err, "bind it without template=overlay (`diskhook domain revert %s` first, if it is bound)", d.NameArg())
}

// Shareable refuses disks that are bound with template=overlay, but whose base
// cannot be one that disks share. It reads the headers of their sources.
func (s *Service) Shareable(ctx context.Context, disks []Disk) error {
	for _, d := range disks {
		if !d.Template {
			continue
		}
		if d.From != nil {
			if err := s.shareableImage(ctx, d); err != nil {
				return err
			}
			continue
		}
		source, err := s.open(ctx, d)
		if err != nil {
			return unreadable(d, err)
		}
		base, why, err := s.templateOf(ctx, d, source)
		source.Close()
		if base != nil {
			base.Close()
		}
		if err == nil && base == nil {
			err = unshared(d, why)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
