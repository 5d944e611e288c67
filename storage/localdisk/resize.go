// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"diskhook/storage/blockdev"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// Growth is a resize that has begun. The new part is [From, To) of the
// copy; until it is zeroed it may hold another guest's data.
type Growth struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Resize grows a copy to at least size bytes and zeroes the new part. It may
// be called while the domain runs, which sees the new size only after a block
// resize of its own. Smaller is refused, as is a copy that is not ready. A
// crash in between is finished by the next start or the next call.
func (s *Service) Resize(ctx context.Context, domain, key string, size int64) (Placement, error) {
	l, err := s.lockOne(ctx, domain, key)
	if err != nil {
		return Placement{}, err
	}
	defer l.Release()
	r, err := ReadReceipt(s.Layout, domain, key)
	if err != nil {
		return Placement{}, err
	}
	if r == nil {
		return Placement{}, failure.New(failure.NotFound, "%s: no local copy", s.known(domain, key))
	}
	c, err := s.copyOf(ctx, *r)
	if err != nil {
		return Placement{}, err
	}
	d := r.Disk()
	switch {
	case c.State != Ready:
		err := failure.New(failure.Conflict, "%s: %s is %s", d, c, c.State)
		return Placement{}, failure.Hint(err, "see `diskhook local status %s`", d.NameArg())
	case c.UUID != r.Copy:
		return Placement{}, foreign(Observed{Disk: d, Copy: c, Receipt: r})
	case Saved(s.Layout, domain):
		return Placement{}, s.MayGiveUp(*r, GiveUp{})
	case r.Overlay != nil:
		err := failure.New(failure.Precondition, "%s: %s is a qcow2 image, which is not grown", d, c)
		return Placement{}, failure.Hint(err, "make it raw with `diskhook local settle --raw %s`, then run this again", d.args())
	case size < r.Size:
		err := failure.New(failure.Usage, "%s: it has %d bytes, %d would cut it off", d, r.Size, size)
		return Placement{}, failure.Hint(err, "name a size of at least %d bytes", r.Size)
	}
	if r.Growing != nil { // an earlier call crashed
		if c, err = s.finishGrowing(ctx, r, c); err != nil {
			return Placement{}, err
		}
	}
	if size > r.Size {
		if c, err = s.grow(ctx, r, c, size); err != nil {
			return Placement{}, err
		}
	}
	return s.checkNode(Observed{Disk: d, Copy: c})
}

// grow writes the intent, then does it.
func (s *Service) grow(ctx context.Context, r *Receipt, c Copy, size int64) (Copy, error) {
	if err := s.backend(r.Disk()).room(ctx, []int64{max(0, size-c.Size)}); err != nil {
		return c, fmt.Errorf("%s: %w", r.Disk(), err)
	}
	r.Growing = &Growth{From: c.Size, To: size}
	if err := r.write(s.Layout, r.Key()); err != nil {
		return c, err
	}
	if err := failpoint.Hit("resize.intent"); err != nil {
		return c, err
	}
	return s.finishGrowing(ctx, r, c)
}

// finishGrowing extends the copy as far as the receipt intends, zeroes what is
// new and writes the outcome.
func (s *Service) finishGrowing(ctx context.Context, r *Receipt, c Copy) (Copy, error) {
	b, d := s.backend(r.Disk()), r.Disk()
	c, err := b.extend(ctx, c, r.Growing.To)
	if err != nil {
		return c, fmt.Errorf("%s: %w", d, err)
	}
	if err := failpoint.Hit("resize.extended"); err != nil {
		return c, err
	}
	if err := b.activate(ctx, []Copy{c}); err != nil {
		return c, fmt.Errorf("%s: %w", d, err)
	}
	if err := zero(ctx, c, r.Growing.From); err != nil {
		return c, fmt.Errorf("%s: zero its new part: %w", d, err)
	}
	if err := failpoint.Hit("resize.zeroed"); err != nil {
		return c, err
	}
	r.Size, r.Growing = max(r.Size, r.Growing.To), nil
	return c, r.write(s.Layout, r.Key())
}

// zero makes the node read zero from offset from to its end, and flushes. What
// reads zero already is left alone: the new part of a file or of a thin volume
// mostly does, and zeros written there would only take space.
func zero(ctx context.Context, c Copy, from int64) error {
	if err := c.awaitNode(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(c.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := blockdev.Size(f)
	if err != nil {
		return err
	}
	const piece = 4 << 20
	buf := make([]byte, piece)
	for at := from; at < size; at += piece {
		n := min(piece, size-at)
		if _, err := f.ReadAt(buf[:n], at); err != nil {
			return err
		}
		if len(bytes.TrimLeft(buf[:n], "\x00")) == 0 {
			continue
		}
		if err := blockdev.ZeroRange(ctx, f, at, n); err != nil {
			return err
		}
	}
	return blockdev.Flush(f)
}
