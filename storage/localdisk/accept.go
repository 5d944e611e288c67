// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// An image that was restored from a backup, or moved away and back, is another
// file, be its data the same; so an overlay that is not settled refuses to start
// on it. That it is the same is for an operator to say. What can be looked at is
// what was noted of each image when the overlay was made. No digest of its data
// was: to read all of it is what an overlay spares a start. Nor does the overlay
// tell: where it has something of its own, nobody knows what the guest wrote.
//
// A file that has its size, its header or first bytes and the time at which it
// was written last is one that a backup put back; to say so is enough. One of
// another time may have any data. A raw image of another size, or with other
// first bytes, has another data for sure, and so has any of another virtual size.

// Likeness is in what the images of a source are not what they were.
type Likeness struct {
	Wrong  []string // its data is not the same
	Doubts []string // its data may not be the same
	Moved  []string // is another file
}

// String is what counts of it, in one line.
func (l Likeness) String() string {
	if all := slices.Concat(l.Wrong, l.Doubts); len(all) > 0 {
		return strings.Join(all, ", ")
	}
	return strings.Join(l.Moved, ", ")
}

// likeness compares the source of an overlay with what it was.
func (r Receipt) likeness(info imagecheck.Info) (l Likeness) {
	was, is := r.Overlay.Source, info.Identities
	if info.VirtualSize != r.Size {
		l.Wrong = append(l.Wrong, fmt.Sprintf("it has %d bytes for the guest, and the disk has %d", info.VirtualSize, r.Size))
	}
	if len(was) != len(is) {
		l.Doubts = append(l.Doubts, "what it was is not known, as an older version made the overlay")
		return l
	}
	for i, layer := range r.Source {
		l.compare(failure.OneLine(layer.Path), was[i], is[i])
	}
	return l
}

// compare notes in what one image is not what it was. A qcow2 image may have the
// same data in another order, in a file of another size, with another header.
func (l *Likeness) compare(image string, was, is imagecheck.Identity) {
	against := &l.Doubts
	if is.Format == imagecheck.Raw {
		against = &l.Wrong
	}
	note := func(to *[]string, differs bool, format string, args ...any) {
		if differs {
			*to = append(*to, image+" "+fmt.Sprintf(format, args...))
		}
	}
	note(against, is.Size != was.Size, "has %d bytes, and had %d", is.Size, was.Size)
	note(against, is.Head != was.Head, "begins with other data")
	note(&l.Doubts, is.Block != was.Block, "is a file and was a block device, or the reverse")
	note(&l.Moved, is.Inode != was.Inode, "is another file")
	note(&l.Doubts, !is.Block && is.Written != was.Written, "was written to at %s", time.Unix(0, is.Written).UTC().Format(time.DateTime))
}

// AcceptSource takes an operator's word that the source of an overlay, which is
// not settled, is what it was, though it is another file. What cannot be the
// same is a failure.Conflict; so is what cannot be proven, unless it is accepted
// unproven. The domain must not run.
func (s *Service) AcceptSource(ctx context.Context, domain, key string, unproven bool) error {
	l, err := s.lockOne(ctx, domain, key)
	if err != nil {
		return err
	}
	defer l.Release()
	r, info, err := s.acceptable(ctx, domain, key, unproven)
	if err != nil || info.Fingerprint == r.Fingerprint {
		return err
	}
	s.Log.Warn("the source of an overlay is accepted", "disk", r.Disk().String(), "source", r.Source[0].Path, "differs", r.likeness(info).String())
	r.Fingerprint = info.Fingerprint
	r.Overlay.Source, r.Overlay.Accepted = info.Identities, time.Now().UTC()
	if err := failpoint.Hit("accept.checked"); err != nil {
		return err
	}
	if err := r.write(s.Layout, key); err != nil {
		return fmt.Errorf("%s: %w", r.Disk(), err)
	}
	return failpoint.Hit("accept.written")
}

// Accepting says in what the source is not what it was that AcceptSource would
// accept; nil is that there is nothing to accept. It refuses what that would
// refuse, and changes nothing.
func (s *Service) Accepting(ctx context.Context, domain, key string, unproven bool) (*Likeness, error) {
	if err := s.Idle(ctx, domain, key); err != nil {
		return nil, err
	}
	r, info, err := s.acceptable(ctx, domain, key, unproven)
	if err != nil || info.Fingerprint == r.Fingerprint {
		return nil, err
	}
	l := r.likeness(info)
	return &l, nil
}

// acceptable is the receipt of an overlay with its source as it is now, which may
// be accepted.
func (s *Service) acceptable(ctx context.Context, domain, key string, unproven bool) (r *Receipt, info imagecheck.Info, err error) {
	if r, err = s.unsettled(domain, key); err != nil {
		return nil, info, err
	}
	d := r.Disk()
	if _, err := s.readable(ctx, *r); err != nil {
		return nil, info, err
	}
	if info, err = s.Inspect(ctx, d); err != nil {
		return nil, info, sourceGone(d, *r, err)
	}
	if info.Fingerprint == r.Fingerprint {
		return r, info, nil
	}
	switch l := r.likeness(info); {
	case len(l.Wrong) > 0:
		err = failure.New(failure.Conflict, "%s: its source %s is not what its overlay was made on: %s", d, failure.OneLine(r.Source[0].Path), l)
		err = failure.Hint(err, "put that image back, or give up what the guest wrote with `diskhook local recreate --discard-guest-data %s`", d.args())
	case len(l.Doubts) > 0 && !unproven:
		err = failure.New(failure.Conflict, "%s: that its source %s is what its overlay was made on cannot be proven: %s", d, failure.OneLine(r.Source[0].Path), l)
		err = failure.Hint(err, "restore it with its time (`cp -p`, `rsync -t`); or, if you know that its data is the same, from a checksum for example, say so with `diskhook local accept --unproven %s`: the guest sees a mix of both if it is not", d.args())
	}
	return r, info, err
}
