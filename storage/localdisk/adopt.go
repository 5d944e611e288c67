// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// Adopt binds a disk, on the operator's word, to the complete copy that bears
// its name: after receipts were lost, or another volume was restored in its
// place, or the sidecar of a file got lost. The copy counts as used by the
// guest. An open or unfinished copy, or one tagged for another domain, is
// refused.
func (s *Service) Adopt(ctx context.Context, d Disk) error {
	if err := d.Validate(); err != nil {
		return err
	}
	l, err := s.lockOne(ctx, d.Domain, d.Key())
	if err != nil {
		return err
	}
	defer l.Release()
	observed, err := s.observe(ctx, []Disk{d}, func(Disk) (bool, error) { return false, nil })
	if err != nil {
		return err
	}
	o := observed[0]
	o.Copy = s.asFileOpen(o.Copy)
	if err := adoptable(o); err != nil {
		return err
	}
	if o.Receipt != nil && o.Receipt.Copy == o.Copy.UUID && !o.Receipt.Discarding {
		return s.finishClaim(ctx, o)
	}
	if o.Copy.nameless() {
		o.Copy.UUID = uuid.NewString()
		if o.Receipt != nil {
			o.Copy.UUID = o.Receipt.Copy
		}
	}
	info, err := s.adopted(ctx, &o)
	if err != nil {
		return err
	}
	return s.claim(ctx, o, info)
}

// nameless says that the copy is a file whose sidecar is lost.
func (c Copy) nameless() bool { return c.State == Ready && c.file() && c.UUID == "" }

// adoptable refuses a copy that Adopt must not take.
func adoptable(o Observed) error {
	d := o.Disk
	switch {
	case o.Copy.State == Absent:
		err := failure.New(failure.NotFound, "%s: %s: no such copy", d, o.Copy)
		return failure.Hint(err, "see `diskhook local list`")
	case o.Copy.State != Ready:
		err := failure.New(failure.Conflict, "%s: %s is unfinished", d, o.Copy)
		return failure.Hint(err, "remove it with `diskhook local remove %s`", d.args())
	case !o.Copy.nameless() && o.Copy.Sick != "":
		err := failure.New(failure.Conflict, "%s: %s: %s", d, o.Copy, o.Copy.Sick)
		return failure.Hint(err, "repair it, then try again")
	case !o.Copy.nameless() && !o.Copy.has(tagVM+d.Domain):
		return failure.New(failure.Conflict, "%s: %s is tagged %v, not %s%s", d, o.Copy, o.Copy.Tags, tagVM, d.Domain)
	case !o.Copy.closed():
		return fmt.Errorf("%s: %w", d, inUse(o.Copy))
	}
	return nil
}

// adopted is what is known of the source of a copy that is taken over on the
// operator's word. Of an overlay it must be there, if it lies on it; so must the
// template, if it lies on that.
func (s *Service) adopted(ctx context.Context, o *Observed) (imagecheck.Info, error) {
	if o.Copy.Format != imagecheck.QCOW2 {
		return imagecheck.Info{VirtualSize: o.Copy.Size}, nil
	}
	if err := s.backend(o.Disk).activate(ctx, []Copy{o.Copy}); err != nil {
		return imagecheck.Info{}, fmt.Errorf("%s: %w", o.Disk, err)
	}
	h, err := o.Copy.header()
	if err != nil {
		return imagecheck.Info{}, fmt.Errorf("%s: %w", o.Disk, err)
	}
	if found, err := s.adoptedBelow(ctx, o, h); found || err != nil {
		return imagecheck.Info{VirtualSize: h.VirtualSize}, err
	}
	if h.BackingFile != "" && (len(o.Disk.Source) == 0 || h.BackingFile != o.Disk.Source[0].Path) {
		err := failure.New(failure.Conflict, "%s: %s lies on %q, which is not the disk's source", o.Disk, o.Copy, failure.OneLine(h.BackingFile))
		return imagecheck.Info{}, failure.Hint(err, "bring the right copy back")
	}
	if h.BackingFile == "" {
		return imagecheck.Info{VirtualSize: h.VirtualSize}, nil
	}
	info, err := s.Inspect(ctx, o.Disk)
	if err != nil {
		return info, fmt.Errorf("%s: %s lies on its source: %w", o.Disk, o.Copy, err)
	}
	info.VirtualSize = h.VirtualSize
	return info, nil
}

// adoptedBelow finds the template that an overlay lies on by its header. One
// whose tags got lost gets the one that says so again.
func (s *Service) adoptedBelow(ctx context.Context, o *Observed, h *imagecheck.Header) (found bool, err error) {
	o.Template = Copy{}
	copies, err := s.backend(o.Disk).find(ctx)
	if err != nil {
		return false, fmt.Errorf("%s: %w", o.Disk, err)
	}
	for _, t := range copies {
		if !isTemplate(t) || t.State != Ready || t.Path != h.BackingFile {
			continue
		}
		if why := t.altered(); why != "" {
			err := failure.New(failure.Conflict, "%s: %s lies on the template %s, which %s", o.Disk, o.Copy, t.Path, why)
			return false, failure.Hint(err, "restore that from a backup, with its time; or give up what the guest wrote with `diskhook local recreate --discard-guest-data %s`", o.Disk.args())
		}
		o.Template = t
		if o.Copy.Origin != t.Name {
			o.Copy.Tags = append(o.Copy.Tags, cloneTag(t.Name))
		}
		return true, nil
	}
	return false, nil
}

// adoptOVirt takes over a volume of oVirt's hook. Its guest may have written
// to it, so the receipt says used before anything else happens.
func (s *Service) adoptOVirt(ctx context.Context, o Observed) error {
	info, err := s.Inspect(ctx, o.Disk)
	if err != nil {
		return fmt.Errorf("%s: adopt %s: its size is not known: %w", o.Disk, o.Copy, err)
	}
	if o.Copy.Size < info.VirtualSize {
		err := failure.New(failure.Conflict, "%s: %s has %d bytes, the volume %d: it is not adopted", o.Disk, o.Copy, o.Copy.Size, info.VirtualSize)
		return failure.Hint(err, "extend it (`lvextend -L %db %s/%s`) and zero the new part, then start again", info.VirtualSize, o.Copy.Home, o.Copy.Name)
	}
	return s.claim(ctx, o, info)
}

// claim writes the receipt, then the tags.
func (s *Service) claim(ctx context.Context, o Observed, info imagecheck.Info) error {
	r := newReceipt(o, info)
	r.Used = true
	if r.Overlay != nil && info.Fingerprint == "" {
		r.Overlay.Settled = r.Filled // it lies on nothing
	}
	if r.Size == 0 {
		r.Size = o.Copy.Size
	}
	if err := r.write(s.Layout, o.Disk.Key()); err != nil {
		return fmt.Errorf("%s: %w", o.Disk, err)
	}
	if err := failpoint.Hit("adopt.receipt"); err != nil {
		return err
	}
	return s.backend(o.Disk).claim(ctx, o.Disk, o.Copy, o.Machine)
}
