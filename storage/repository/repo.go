// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
)

// repo is a connected repository while a verb works with it.
type repo struct {
	id       string
	about    descriptor
	place    format.Place
	deadline time.Duration
	locks    []*holding // without which nothing is changed
	attached *attached
	frees    bool // documents may be written to what is kept for when there is no room
	// rehearsal: nothing is changed; nil: it is
	rehearsal *rehearsal
}

// freeing is the repository for who is about to free room in it, or tells that there is
// none: that works where there is none.
func (r *repo) freeing() *repo {
	f := *r
	f.frees = true
	return &f
}

// step does what may hang with the storage, within the repository's deadline.
func step[T any](ctx context.Context, r *repo, what string, do func(context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeout(ctx, r.deadline)
	defer cancel()
	v, err := command.Abandon(limited, func() (T, error) { return do(limited) })
	if errors.Is(err, command.ErrNoAnswer) && ctx.Err() == nil {
		err = fmt.Errorf("repository %s: %s: %w within %v", r.id, what, ErrUnreachable, r.deadline)
		return v, failure.Hint(err, "look after its storage, or `diskhook repo disconnect --force %s`", r.id)
	}
	return v, err
}

// get reads a document; fs.ErrNotExist: there is none.
func get[T any](ctx context.Context, r *repo, kind format.Kind, id string) (*T, error) {
	data, err := step(ctx, r, "read", func(ctx context.Context) ([]byte, error) { return r.place.Read(ctx, kind, id) })
	if errors.Is(err, format.ErrNoFile) {
		return nil, fmt.Errorf("repository %s: %s %s: %w: %w", r.id, kind, id, ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := decode(data, id, v); err != nil {
		return nil, fmt.Errorf("repository %s: %s %s: %w", r.id, kind, id, err)
	}
	return v, nil
}

// put writes a document.
func (r *repo) put(ctx context.Context, kind format.Kind, id string, v any) error {
	write := r.place.Write
	if r.frees {
		write = r.place.WriteReserved
	}
	data, err := encode(v)
	if err == nil {
		err = r.alter(ctx, "write", func(ctx context.Context, fence format.Fence) error {
			return write(ctx, kind, id, data, fence)
		})
	}
	if err != nil {
		return fmt.Errorf("repository %s: %s %s: %w", r.id, kind, id, err)
	}
	return nil
}

func (r *repo) drop(ctx context.Context, kind format.Kind, id string) error {
	err := r.alter(ctx, "remove", func(ctx context.Context, fence format.Fence) error {
		return r.place.Remove(ctx, kind, id, fence)
	})
	if err != nil {
		return fmt.Errorf("repository %s: %s %s: %w", r.id, kind, id, err)
	}
	return nil
}

// alter changes a document, fenced: one that is abandoned at the deadline, or by
// who asked for it, or whose locks may be somebody else's, does not happen later.
func (r *repo) alter(ctx context.Context, what string, do func(context.Context, format.Fence) error) error {
	if r.rehearsal != nil {
		r.rehearsal.changes.Store(true)
		return nil
	}
	for _, h := range r.locks {
		h.users.Add(1)
	}
	_, err := step(ctx, r, what, func(ctx context.Context) (struct{}, error) {
		fence := func() error {
			err := context.Cause(ctx)
			for _, h := range r.locks {
				err = errors.Join(err, h.Check())
			}
			return err
		}
		err := do(ctx, fence)
		for _, h := range r.locks {
			h.done()
		}
		return struct{}{}, err
	})
	return err
}

// image reads an image that may be weak; ErrNoImage.
func (r *repo) image(ctx context.Context, id string) (*image, error) {
	img, err := get[image](ctx, r, format.Image, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, r.noImage(id)
	}
	if errors.Is(err, ErrDamaged) {
		return nil, failure.Hint(err, "`diskhook repo check %s` shows the way out", r.id)
	}
	return img, err
}

func (r *repo) noImage(id string) error {
	return failure.Hint(fmt.Errorf("image %s/%s: %w", r.id, id, ErrNoImage), "see `diskhook image list %s`", r.id)
}

// visible reads an image that callers may know of; ErrNoImage.
func (r *repo) visible(ctx context.Context, id string) (*image, error) {
	img, err := r.image(ctx, id)
	if err == nil && img.Weak {
		return nil, r.noImage(id)
	}
	return img, err
}

func (r *repo) volume(ctx context.Context, id string) (*volume, error) {
	return get[volume](ctx, r, format.Volume, id)
}

// saveVolume writes a volume's document.
func (r *repo) saveVolume(ctx context.Context, v *volume) error {
	v.V, v.Gen = documentVersion, v.Gen+1
	return r.put(ctx, format.Volume, v.ID, v)
}

// The names of locks.
const repoLock = "repository"

func workLock(image string) string    { return "work-" + image }
func volumeLock(volume string) string { return "volume-" + volume }

// holding is a lock that is held as long as somebody uses it: who took it, and
// the writes under it, also one that was abandoned in the middle of its last step. Nobody
// else gets the lock before that has come back.
type holding struct {
	format.Lock
	users   atomic.Int32
	discard bool // nobody needs it soon again
}

// hold has one user; he calls done.
func hold(l format.Lock) *holding {
	h := &holding{Lock: l}
	h.users.Add(1)
	return h
}

func (h *holding) done() {
	switch {
	case h.users.Add(-1) > 0:
	case h.discard:
		h.Discard()
	default:
		h.Release()
	}
}

// guarded is the repository for who changes it only as long as he has a lock.
func (r *repo) guarded(h *holding) *repo {
	g := *r
	g.locks = append(slices.Clip(r.locks), h)
	return &g
}

// update is the repository while its lock is held: what was read is still so
// when it is written.
type update struct{ *repo }

// change holds the repository's lock while do decides and writes. It waits for
// the lock until the deadline. A rehearsal has none, unless it would be refused: that leaves a
// trace on the storage.
func (r *repo) change(ctx context.Context, do func(*update) error) error {
	if r.rehearsal != nil && !r.place.Capabilities().ReadOnly {
		return do(&update{r})
	}
	waiting, cancel := context.WithTimeout(ctx, r.deadline)
	defer cancel()
	l, err := command.Abandon(waiting, func() (format.Lock, error) { return r.place.Lock(waiting, repoLock) })
	if err != nil {
		return r.notLocked(ctx, err)
	}
	h := hold(l)
	defer h.done()
	return do(&update{r.guarded(h)})
}

func (r *repo) notLocked(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return err
	case errors.Is(err, lock.ErrHeld):
		return failure.New(failure.Temporary, "repository %s: others keep it locked: %w", r.id, err)
	case errors.Is(err, command.ErrNoAnswer):
		return fmt.Errorf("repository %s: lock: %w within %v", r.id, ErrUnreachable, r.deadline)
	}
	return fmt.Errorf("repository %s: %w", r.id, err)
}

// saveImage is a point of no return: what it writes is committed.
func (u *update) saveImage(ctx context.Context, img *image) error {
	img.V, img.Gen = documentVersion, img.Gen+1
	return u.put(ctx, format.Image, img.ID, img)
}

// begin commits a plan: its entry in the index first, then the image with it.
func (u *update) begin(ctx context.Context, img *image, p *plan) error {
	op := &operation{V: documentVersion, Plan: p.Nonce, record: record{Verb: p.Verb, Stages: len(p.Stages), Percent: -1, Updated: now()}}
	if err := u.put(ctx, format.Operation, img.ID, op); err != nil {
		return err
	}
	if err := failpoint.Hit("repository." + p.Verb + ".index"); err != nil {
		return err
	}
	img.Plan = p
	if err := u.saveImage(ctx, img); err != nil {
		return err
	}
	return failpoint.Hit("repository." + p.Verb + ".commit")
}

// now is for display only: nothing is decided by it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
