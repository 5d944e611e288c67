// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
)

// worker walks the plan of one image. It has the lock of the image's work.
type worker struct {
	*Service
	repo    *repo // which it changes only with the lock
	lock    *holding
	id      string     // the image's
	img     *image     // as it was written or read last; not the watcher's
	also    []*os.File // of the volume that is changed in place
	percent atomic.Int64

	mu sync.Mutex // of op, which the watcher writes as well
	op operation
}

// stages are what each stage does. One that is done already passes.
func (w *worker) stages() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		stageAllocate: w.allocate, stageOverlay: w.overlay, stageCopy: w.copy,
		stageFreeze: w.freeze, stageSwitch: w.switchOver, stageParts: w.parts, stageLink: w.link, stageDiffer: w.differ,
		stageFlatten: w.flatten, stageRelink: w.relink, stageSink: w.sink, stageGrow: w.grow, stageLeaks: w.freeLeaks,
		stagePublish: w.publish, stageErase: w.erase, stageSweep: w.sweep,
	}
}

// Run walks the plan of an image to its end, here and now. Without a plan there
// is nothing to do. ErrBusy: somebody does already; ErrStopped: StopTask; any other error
// leaves the plan for the next Run, on whatever host.
func (s *Service) Run(ctx context.Context, repoID, imageID string) error {
	if err := checkImageID(imageID); err != nil {
		return err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return err
	}
	defer r.close()
	return s.work(ctx, r, imageID)
}

func (s *Service) work(ctx context.Context, r *repo, imageID string) error {
	l, err := step(ctx, r, "lock", func(ctx context.Context) (format.Lock, error) {
		return r.place.TryLock(ctx, workLock(imageID))
	})
	if errors.Is(err, lock.ErrHeld) {
		l, err = s.after(ctx, r, imageID)
	}
	if err != nil {
		return err
	}
	h := hold(l)
	defer s.letGo(ctx, r)
	defer h.done()
	w := &worker{Service: s, repo: r.guarded(h), lock: h, id: imageID}
	if err := w.run(ctx); err != nil {
		return fmt.Errorf("image %s/%s: %w", r.id, imageID, err)
	}
	h.discard = true
	return nil
}

// after waits for whoever works on an image that was removed, as he was asked to
// stop; on any other ErrBusy.
func (s *Service) after(ctx context.Context, r *repo, imageID string) (format.Lock, error) {
	img, err := r.image(ctx, imageID)
	if err != nil || img.Plan == nil || img.Plan.Verb != verbRemove {
		return nil, s.busy(ctx, r, imageID)
	}
	l, err := step(ctx, r, "lock", func(ctx context.Context) (format.Lock, error) { return r.place.Lock(ctx, workLock(imageID)) })
	if errors.Is(err, lock.ErrHeld) || errors.Is(err, ErrUnreachable) {
		return nil, s.busy(ctx, r, imageID)
	}
	return l, err
}

// busy names the host that works.
func (s *Service) busy(ctx context.Context, r *repo, imageID string) error {
	by := "another process"
	if op, err := get[operation](ctx, r, format.Operation, imageID); err == nil && op.Host != "" {
		by = "host " + op.Host
	}
	err := fmt.Errorf("image %s/%s: %w: %s", r.id, imageID, ErrBusy, by)
	return failure.Hint(err, "see `diskhook image status %s/%s`", r.id, imageID)
}

func (w *worker) run(ctx context.Context) (err error) {
	w.img, err = w.repo.image(ctx, w.id)
	if err != nil && !errors.Is(err, ErrNoImage) {
		return err
	}
	if err != nil || w.img.Plan == nil {
		return w.forget(ctx)
	}
	if w.img.Plan.Verb == verbRemove {
		w.repo = w.repo.freeing()
	}
	if w.lock.TakenOver() {
		if err := w.startOver(ctx); err != nil {
			return err
		}
	}
	// Whoever runs it wants it to go on, whatever was asked before.
	if err := w.repo.drop(ctx, format.Stop, w.id); err != nil {
		return err
	}
	p := w.img.Plan
	w.op = operation{V: documentVersion, Plan: p.Nonce, record: record{Verb: p.Verb, Host: w.HostID, Boot: w.BootID, Stages: len(p.Stages), Percent: -1}}
	err = w.watched(ctx, w.walk)
	if errors.Is(err, errOldHost) {
		if err := w.startOver(ctx); err != nil {
			return err
		}
		err = w.watched(ctx, w.walk)
	}
	if err != nil {
		w.note(context.WithoutCancel(ctx), func(op *operation) { op.Error, op.Code = failure.Line(err), codeOf(err) })
		return err
	}
	return w.forget(ctx)
}

func codeOf(err error) string {
	if kind := failure.KindOf(err); kind != nil {
		return kind.Code
	}
	return ""
}

// walk does one stage after the other.
func (w *worker) walk(ctx context.Context) error {
	p := w.img.Plan
	stages := w.stages()
	for i, name := range p.Stages {
		if w.img.Plan == nil {
			break // it ended early
		}
		do := stages[name]
		if do == nil {
			return fmt.Errorf("stage %s: %w", clip(name), ErrVersion)
		}
		w.percent.Store(-1)
		w.note(ctx, func(op *operation) { op.Stage, op.Name, op.Percent = i+1, name, -1 })
		if err := failpoint.Hit("repository." + p.Verb + "." + name + ".begin"); err != nil {
			return err
		}
		if err := do(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := failpoint.Hit("repository." + p.Verb + "." + name + ".end"); err != nil {
			return err
		}
	}
	if w.img.Plan == nil {
		return nil
	}
	return w.commit(ctx, func(_ *update, img *image) error {
		w.end(img)
		return nil
	})
}

// end drops the plan; the status stays with the image.
func (w *worker) end(img *image) {
	w.mu.Lock()
	last := w.op.record
	w.mu.Unlock()
	last.Stage, last.Percent, last.Error, last.Code, last.Updated = last.Stages, 100, "", "", now()
	img.Plan, img.Last = nil, &last
}

// forget removes what is kept for an open plan, unless the next one has begun: that is
// in the index under the same name.
func (w *worker) forget(ctx context.Context) error {
	if err := failpoint.Hit("repository.forget"); err != nil {
		return err
	}
	return w.repo.change(ctx, func(u *update) error {
		img, err := u.image(ctx, w.id)
		if err == nil && img.Plan != nil {
			return nil
		}
		if err != nil && !errors.Is(err, ErrNoImage) {
			return err
		}
		return errors.Join(u.drop(ctx, format.Stop, w.id), u.drop(ctx, format.Operation, w.id))
	})
}

// commit changes the image under the repository's lock, if its plan still is the
// one that this worker walks.
func (w *worker) commit(ctx context.Context, change func(*update, *image) error) error {
	if err := errors.Join(context.Cause(ctx), w.lock.Check()); err != nil {
		return err
	}
	return w.repo.change(ctx, func(u *update) error {
		img, err := w.current(ctx)
		if err != nil {
			return err
		}
		if err := change(u, img); err != nil {
			return err
		}
		if err := u.saveImage(ctx, img); err != nil {
			return err
		}
		w.img = img
		return nil
	})
}

// current reads the image anew; errSuperseded.
func (w *worker) current(ctx context.Context) (*image, error) {
	img, err := w.repo.image(ctx, w.id)
	if err == nil && (img.Plan == nil || img.Plan.Nonce != w.img.Plan.Nonce) {
		err = errSuperseded
	}
	return img, err
}

// locks are what children that write inherit.
func (w *worker) locks() []*os.File { return slices.Concat(filesOf(w.lock), w.also) }

func filesOf(l format.Lock) []*os.File {
	if f := l.File(); f != nil {
		return []*os.File{f}
	}
	return nil
}

// watchEvery is how often the status is written, and looked whether to stop.
const watchEvery = time.Second

// watched does the work and cancels it when somebody asks for that, or the lock
// is lost.
func (w *worker) watched(ctx context.Context, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if why := w.watch(ctx); why != nil {
				cancel(why)
			}
		}
	})
	err := work(ctx)
	close(done)
	watcher.Wait()
	if why := context.Cause(ctx); err != nil && why != nil {
		return why
	}
	return err
}

func (w *worker) watch(ctx context.Context) error {
	if err := w.lock.Check(); err != nil {
		return err
	}
	w.note(ctx, func(op *operation) { op.Percent = int(w.percent.Load()) })
	stop, err := get[stopRequest](ctx, w.repo, format.Stop, w.id)
	if err == nil && stop.Plan == w.op.Plan {
		return fmt.Errorf("%w from host %s", ErrStopped, stop.Host)
	}
	return nil
}

// progress is a progress.Func.
func (w *worker) progress(done, total int64) {
	if total > 0 {
		w.percent.Store(done * 100 / total)
	}
}

// note writes the status, which decides nothing: that it cannot be written is
// only logged.
func (w *worker) note(ctx context.Context, change func(*operation)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.op.record
	change(&w.op)
	if w.op.record == before {
		return
	}
	w.op.Updated = now()
	r := w.repo
	if w.op.Error != "" {
		r = r.freeing() // that there is no room may be what it says
	}
	if err := r.put(ctx, format.Operation, w.id, w.op); err != nil {
		w.Log.Warn("status", "image", w.id, "error", err)
	}
}
