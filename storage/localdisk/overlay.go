// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
)

// Overlay is what a receipt says of a copy that is a qcow2 image on top of its
// source: it was ready at once, and has of the source what was read into it
// since.
type Overlay struct {
	// Settled is when the copy had all of it, durably. Until then, which is the
	// zero time, the source is a part of the disk: the same chain must be there
	// at every start. From then on nobody looks at it any more.
	Settled time.Time `json:"settled,omitzero"`
	// Template is what the copy lies on for good, if that is a template. Such a
	// copy never takes anything from its source: it is settled from the beginning.
	Template *TemplateRef `json:"template,omitempty"`
	// Source is what can be told of the images of the source, top first, as they
	// were when the copy was made or accepted last. Older receipts do not say.
	Source []imagecheck.Identity `json:"source,omitempty"`
	// Accepted is when an operator last said that they are what they were.
	Accepted time.Time `json:"accepted,omitzero"`
}

// Unsettled says that a part of the disk is in its source.
func (r *Receipt) Unsettled() bool {
	return r != nil && !r.Discarding && r.Overlay != nil && r.Overlay.Settled.IsZero()
}

// Format is that of the copy.
func (r Receipt) Format() string {
	if r.Overlay != nil {
		return imagecheck.QCOW2
	}
	return imagecheck.Raw
}

// layers is the chain that the disk is read from, top first.
func (r Receipt) layers(c Copy) []imagecheck.Layer {
	chain := []imagecheck.Layer{{Path: c.Path, Format: r.Format()}}
	return append(chain, r.Below()...)
}

// OnTemplate says that the copy lies on a template.
func (r *Receipt) OnTemplate() bool {
	return r != nil && r.Overlay != nil && r.Overlay.Template != nil
}

// Below is the chain that the copy lies on; nil for one that lies on nothing.
func (r Receipt) Below() []imagecheck.Layer {
	switch {
	case r.Unsettled():
		return r.Source
	case r.OnTemplate():
		return []imagecheck.Layer{{Path: r.Overlay.Template.Path, Format: imagecheck.Raw}}
	}
	return nil
}

// overlay makes the copy of a disk as a qcow2 image that has nothing yet and
// lies on the source. It goes through the states of any copy.
func (s *Service) overlay(ctx context.Context, o Observed, status *progress.Writer) (err error) {
	o.Disk.Home = "" // a new copy goes where it is configured to go
	d, b := o.Disk, s.backend(o.Disk)
	info, err := s.Inspect(ctx, d)
	if err != nil {
		return unreadable(d, err)
	}
	size := takes(d, info)
	defer func() {
		if err != nil {
			s.clean(d)
		}
	}()
	status.Set(progress.Copying)
	o.Copy, err = s.reserve(ctx, b, d,
		func() error { return b.room(ctx, []int64{size}) },
		func() (Copy, error) { return b.create(ctx, d, size) })
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	if err := failpoint.Hit("overlay.created"); err != nil {
		return err
	}
	if err := s.format(ctx, o, info.VirtualSize, size); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	return s.complete(ctx, o, info)
}

// format makes the image, reserves its room and flushes it.
func (s *Service) format(ctx context.Context, o Observed, virtual, size int64) error {
	if err := o.Copy.awaitNode(ctx); err != nil {
		return err
	}
	img := qemuimg.QemuImg{Run: s.Run}
	if err := img.Format(ctx, o.Copy.Path, virtual, o.Disk.Source[0]); err != nil {
		return err
	}
	if err := failpoint.Hit("overlay.formatted"); err != nil {
		return err
	}
	if o.Copy.file() && !s.Config.Local.Sparse {
		if err := o.Copy.keepRoom(size); err != nil {
			return err
		}
	}
	if err := o.Copy.flush(); err != nil {
		return err
	}
	return failpoint.Hit("overlay.flushed")
}

// keepRoom reserves the blocks of a file beyond its end, into which the image
// grows: neither the guest nor who settles the disk meets a full file system.
func (c Copy) keepRoom(size int64) error {
	f, err := c.open()
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return failure.Wrap(failure.NoSpace, err)
	}
	return err
}

// takes is how many bytes the copy of a disk may come to take up.
func takes(d Disk, info imagecheck.Info) int64 {
	if d.overlaid() {
		return qemuimg.FullSize(info.VirtualSize)
	}
	return info.VirtualSize
}

// lookBelow looks whether the sources of overlays that are not settled are
// what they were. One that no guest has used yet is stale if they are not. A
// running domain, which has its copy and all below it open, is left alone.
// That a copy is open does not say so: somebody may read it for a backup.
func (s *Service) lookBelow(ctx context.Context, observed []Observed) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	for i := range observed {
		o := &observed[i]
		r := o.Receipt
		if o.Copy.State != Ready || !r.Unsettled() || o.Copy.UUID != r.Copy {
			continue
		}
		if c := s.asFileOpen(o.Copy); c.Open != nil && *c.Open && s.linked(*r) {
			continue
		}
		info, err := s.Inspect(ctx, r.Disk())
		switch {
		case err != nil:
			o.Below = sourceGone(o.Disk, *r, err)
		case info.Fingerprint == r.Fingerprint:
		case !r.Used:
			o.Stale = true
		default:
			o.Below = sourceChanged(o.Disk, *r, info)
		}
	}
}

func sourceGone(d Disk, r Receipt, err error) error {
	err = fmt.Errorf("%s: it is not settled: a part of it is in %s still, which cannot be read: %w", d, failure.OneLine(r.Source[0].Path), err)
	if failure.KindOf(err) == nil {
		err = failure.Wrap(failure.Precondition, err)
	}
	return failure.Hint(err, "bring that storage back, then start again and run `diskhook local settle %[1]s`; or give up what the guest wrote with `diskhook local recreate --discard-guest-data %[1]s`", d.args())
}

func sourceChanged(d Disk, r Receipt, now imagecheck.Info) error {
	err := failure.New(failure.Conflict, "%s: it is not settled: a part of it is in %s still, which changed since: %s; the guest might see a mix of both", d, failure.OneLine(r.Source[0].Path), r.likeness(now))
	return failure.Hint(err, "put that image back as it was; if it is, in another file, say so with `diskhook local accept %[1]s`; or give up what the guest wrote with `diskhook local recreate --discard-guest-data %[1]s`", d.args())
}

// header reads the header of an overlay, also of one that is in use.
func (c Copy) header() (*imagecheck.Header, error) {
	f, err := os.OpenFile(c.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := blockdev.Size(f)
	if err != nil {
		return nil, err
	}
	h, err := imagecheck.ReadHeader(f, size, imagecheck.DefaultMaxVirtualSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return h, nil
}

// fit refuses an overlay that is not what its receipt says, before a guest
// gets it. The source, or the template, goes below it again if it has lost
// what it lies on: who read the last of it into the overlay takes it out of the
// header before all of the image's own tables have reached the disk, and a
// crash right then loses some. What they would have said is below. Where both
// have a part, the overlay's is the right one.
func (s *Service) fit(ctx context.Context, o Observed) error {
	r := o.Receipt
	if r == nil || r.Overlay == nil {
		return nil
	}
	h, err := o.Copy.header()
	if err != nil {
		return err
	}
	if h.VirtualSize < r.Size {
		err := failure.New(failure.Precondition, "%s has %d bytes for the guest, its disk %d: it was cut off", o.Copy, h.VirtualSize, r.Size)
		return failure.Hint(err, "restore it from a backup, or run `diskhook local recreate --discard-guest-data %s`", o.Disk.args())
	}
	below := imagecheck.Layer{}
	if chain := r.Below(); len(chain) > 0 {
		below = chain[0]
	}
	if h.BackingFile == below.Path {
		return nil
	}
	if h.BackingFile != "" {
		err := failure.New(failure.Conflict, "%s lies on %q, the receipt says %q", o.Copy, failure.OneLine(h.BackingFile), below.Path)
		return failure.Hint(err, "find out who changed that; `qemu-img rebase -u -f qcow2 -F FORMAT -b FILE %s` puts another image below it", o.Copy.Path)
	}
	if !s.asFileOpen(o.Copy).closed() {
		if s.linked(*r) {
			return nil // the domain that runs on it knows better than its header
		}
		err := failure.New(failure.Temporary, "%s has to be put on its source again, but somebody reads it", o.Copy)
		return failure.Hint(err, "see who does with `lsof %s`, and start again once it is closed", o.Copy.Path)
	}
	return s.putBelow(ctx, o.Copy, below)
}

// putBelow writes into the header of an overlay what it lies on.
func (s *Service) putBelow(ctx context.Context, c Copy, source imagecheck.Layer) error {
	img := qemuimg.QemuImg{Run: s.Run}
	if err := img.SetBacking(ctx, c.Path, source); err != nil {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	return failpoint.Hit("overlay.rebased")
}

// open opens the copy for writing. A volume's node is a link, a file's never.
func (c Copy) open() (*os.File, error) {
	flags := os.O_RDWR
	if c.file() {
		flags |= unix.O_NOFOLLOW
	}
	return os.OpenFile(c.Path, flags, 0)
}

// flush makes sure of what was written to the copy, by whomever.
func (c Copy) flush() error {
	f, err := c.open()
	if err != nil {
		return err
	}
	return errors.Join(blockdev.Flush(f), f.Close())
}

// wrongFormat refuses a definition that would open the copy as what it is not:
// the guest would find no disk in it, or the image's own tables as its disk.
func wrongFormat(o Observed) error {
	d, r := o.Disk, o.Receipt
	is := d.format()
	if r != nil && !r.Discarding {
		is = r.Format()
	}
	if d.Opened == "" || d.Opened == is {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: its definition opens the copy as %s, but it is %s", d, d.Opened, is)
	if r != nil && r.Pivot != nil {
		return failure.Hint(err, "run `diskhook local settle --raw %s`, which was interrupted, then start again", d.args())
	}
	return failure.Hint(err, "set type='%s' in the disk's <driver> with `virsh edit %s`", is, d.NameArg())
}
