// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
)

// Wipe is what happens to the data of a copy before its space is given to
// others. What diskhook makes is written from end to end, so nothing of it
// shows in a copy of diskhook's; other users of a volume group see what lay there.
type Wipe string

// The ways to wipe.
const (
	WipeNone    Wipe = "none"    // leave the data, the space is reused as it is
	WipeZero    Wipe = "zero"    // write zeros, by the disk's own command where it has one
	WipeDiscard Wipe = "discard" // tell the disk that the blocks are free
)

// ParseWipe reads what an operator wrote; "" is WipeNone.
func ParseWipe(text string) (Wipe, error) {
	switch w := Wipe(text); w {
	case "":
		return WipeNone, nil
	case WipeNone, WipeZero, WipeDiscard:
		return w, nil
	}
	return "", failure.Hint(failure.New(failure.Usage, "wipe %q: no such way", text), "use none, zero or discard")
}

// wipe makes the data of a copy that is going to be removed unreadable, as w
// says. It is called under the lock of its disk, of a copy that is not open.
func (s *Service) wipe(ctx context.Context, f foundCopy, w Wipe) error {
	if w == WipeNone || !f.Copy.file() && f.Copy.Size == 0 { // there is only the word of it
		return nil
	}
	if err := s.mayWipe(ctx, f, w); err != nil {
		return err
	}
	b := s.backend(f.disk())
	if err := b.activate(ctx, []Copy{f.Copy}); err != nil {
		return err
	}
	if err := f.Copy.awaitNode(ctx); err != nil {
		return err
	}
	return wipePath(ctx, f.Copy.Path, w)
}

// mayWipe refuses a way that is not one for such a copy.
func (s *Service) mayWipe(ctx context.Context, f foundCopy, w Wipe) error {
	thin, is := s.backend(f.disk()).(interface {
		mayZero(context.Context, Copy) error
	})
	if !is || w != WipeZero {
		return nil
	}
	return thin.mayZero(ctx, f.Copy)
}

// wipePath refuses a node that anybody has open.
func wipePath(ctx context.Context, path string, w Wipe) (err error) {
	file, err := blockdev.OpenExclusive(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	size, err := blockdev.Size(file)
	if err != nil {
		return err
	}
	overwrite := blockdev.ZeroRange
	if w == WipeDiscard {
		overwrite = blockdev.DiscardRange
	}
	if err := overwrite(ctx, file, 0, size); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	return blockdev.Flush(file)
}

// mayZero refuses a thin volume: zeros map every block of it, which may be more
// than the pool has.
func (b *volumes) mayZero(ctx context.Context, c Copy) error {
	report, err := b.report(ctx)
	if err != nil {
		return err
	}
	if lv, ok := report.LV(c.Name); !ok || lv.Pool == "" {
		return nil
	}
	return zerosTake(c)
}

// zerosTake refuses to have zeros written to a thin volume.
func zerosTake(c Copy) error {
	err := failure.New(failure.Precondition, "wipe: it is thin, and zeros would take all of its %d bytes from the pool", c.Size)
	return failure.Hint(err, "use discard, or none: the pool hands out no block before it has zeroed it")
}
