// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// asked is what a verb that makes an image was asked for, and what it decided.
type asked struct {
	id       string
	digest   string // with a request id
	kind     Kind
	size     int64
	base     string // the snapshot it descends from
	strategy Strategy
	userData json.RawMessage
	volume   string // what it points to at once; a snapshot's
	plan     *plan
}

// commit writes the image with its plan, the moment from which it exists. One that
// is there already is the answer to a request that was made before, if it is the same.
func (s *Service) commit(ctx context.Context, u *update, a asked) (*image, error) {
	var gen int64
	old, err := u.image(ctx, a.id)
	switch {
	case errors.Is(err, ErrNoImage):
	case err != nil:
		return nil, err
	case old.Weak && old.Kind == Snapshot && a.kind == Snapshot && old.Volume == "" && old.Plan == nil:
		gen = old.Gen // only its name is left, for which a copy waits: it has the same content
	case !old.Weak && a.digest != "" && old.Request == a.digest:
		return old, nil // by the same request, in the meantime
	case old.Weak:
		err := failure.New(failure.Conflict, "image %s/%s: it was removed, and its data is still needed", u.id, a.id)
		return nil, failure.Hint(err, "take another request id, or first `diskhook repo fix --all --wait %s`", u.id)
	default:
		return nil, failure.New(failure.Conflict, "image %s/%s: there is another one", u.id, a.id)
	}
	if err := u.fits(ctx, a.plan.Format, a.plan.Size); err != nil {
		return nil, err
	}
	img := &image{
		ID: a.id, Gen: gen, Kind: a.kind, Size: a.size, Strategy: a.strategy, Base: a.base, Volume: a.volume,
		UserData: a.userData, Created: now(), Request: a.digest,
	}
	a.plan.Nonce = uuid.NewString()
	return img, u.begin(ctx, img, a.plan)
}

// make commits what does not depend on what else is in the repository.
func (s *Service) make(ctx context.Context, r *repo, a asked) error {
	return r.change(ctx, func(u *update) error {
		_, err := s.commit(ctx, u, a)
		return err
	})
}

// repeated says that a request was made before, and its image is there.
func (r *repo) repeated(ctx context.Context, a asked) (bool, error) {
	if a.digest == "" {
		return false, nil
	}
	old, err := r.image(ctx, a.id)
	switch {
	case errors.Is(err, ErrNoImage):
		return false, nil
	case err != nil:
		return false, err
	case old.Weak:
		return false, nil
	case old.Request != a.digest:
		err := failure.New(failure.Conflict, "image %s/%s: the same request id was for something else", r.id, a.id)
		return false, failure.Hint(err, "take a new request id")
	}
	return true, nil
}

// making begins a verb that makes an image of a new id in a repository, which the
// caller closes; about is what it was asked for. Without a repository the verb has ended: with
// an error, or since the request was made before.
func (s *Service) making(ctx context.Context, repoID string, kind Kind, userData json.RawMessage, o Options, verb string, about ...any) (*repo, asked, error) {
	userData, err := checkUserData(userData)
	if err != nil {
		return nil, asked{}, err
	}
	r, err := s.target(ctx, repoID, o)
	if err != nil {
		return nil, asked{}, err
	}
	a := asked{
		id: o.newID(r.about.Nonce), kind: kind, strategy: o.strategy(), userData: userData,
		digest: o.digest(verb, append(about, string(userData))...),
	}
	if done, err := r.repeated(ctx, a); done || err != nil {
		if done {
			err = s.goOn(ctx, r, a.id, o)
		} else {
			a.id = "" // of an image that was not asked for
		}
		r.close()
		return nil, a, err
	}
	return r, a, nil
}

// goOn starts the work on an image that a request had made before, if nobody is at it: who
// made it may have died before he started it.
func (s *Service) goOn(ctx context.Context, r *repo, imageID string, o Options) error {
	img, err := r.image(ctx, imageID)
	if err != nil || img.Plan == nil {
		return err
	}
	held, err := step(ctx, r, "look at a lock", func(ctx context.Context) (bool, error) { return r.place.Held(ctx, workLock(imageID)) })
	if err == nil && !held {
		s.proceed(ctx, r, imageID, o)
	}
	return err
}

// proceed starts the work of a plan that was committed, unless that is not wanted.
// That it fails takes nothing back: the plan is there, and GetImageStatus says what
// became of it.
func (s *Service) proceed(ctx context.Context, r *repo, imageID string, o Options) {
	if o.NoAutoFix {
		return
	}
	if r.rehearsal != nil {
		r.rehearsal.changes.Store(true)
		return
	}
	start := s.Start
	if start == nil {
		start = func(ctx context.Context, _, imageID string) error { return s.work(ctx, r, imageID) }
	}
	if err := start(ctx, r.id, imageID); err != nil {
		s.Log.Warn("the work goes on later", "repository", r.id, "image", imageID, "error", err)
	}
}

// target opens the repository that a verb is about, once its options are right.
func (s *Service) target(ctx context.Context, repoID string, o Options) (*repo, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	r, err := s.connected(ctx, repoID)
	if err == nil {
		r.rehearsal = o.rehearsal
	}
	return r, err
}

// CreateVirtualDisk makes a disk of size bytes, rounded up, that reads zero, or as
// the snapshot base does and zero behind it; then size 0 is the snapshot's. It returns
// the disk's id once the plan is committed.
// ErrNotSnapshot: base is a disk. A disk smaller than its base is a failure.Usage.
func (s *Service) CreateVirtualDisk(ctx context.Context, targetRepoID string, size int64, baseSnapshotID string, userData json.RawMessage, o Options) (string, error) {
	r, a, err := s.making(ctx, targetRepoID, Disk, userData, o, verbCreate, size, baseSnapshotID)
	if r == nil {
		return a.id, err
	}
	defer r.close()
	if baseSnapshotID == "" {
		if a.size, err = checkSize(size); err != nil {
			return "", err
		}
		a.size = r.diskSize(a.size)
		a.plan = &plan{Verb: verbCreate, Stages: []string{stageAllocate, stagePublish}, Volume: uuid.NewString(), Format: imagecheck.Raw, Size: a.size}
		if err := r.room(ctx, r.empty(imagecheck.Raw, a.size), "a virtual disk"); err != nil {
			return "", err
		}
		err = s.make(ctx, r, a)
	} else {
		err = s.createOn(ctx, r, &a, size, baseSnapshotID, o)
	}
	if err != nil {
		return "", err
	}
	s.proceed(ctx, r, a.id, o)
	return a.id, nil
}

// createOn commits a disk on a snapshot. It is laid over the snapshot's volume where
// that is in the same repository and copying costs something; else its content is copied.
func (s *Service) createOn(ctx context.Context, r *repo, a *asked, size int64, baseID string, o Options) error {
	base, err := s.search(ctx, r, baseID, o)
	if err != nil {
		return err
	}
	defer base.closeUnless(r)
	if base.image.Kind != Snapshot {
		return notSnapshot(base.id, baseID)
	}
	if a.size = base.image.Size; size != 0 {
		if a.size, err = checkSize(size); err != nil {
			return err
		}
	}
	a.size = r.diskSize(a.size)
	if a.size < base.image.Size {
		err := failure.New(failure.Usage, "size %d: its base %s has %d bytes, and it cannot have less", a.size, baseID, base.image.Size)
		return failure.Hint(err, "leave the size out")
	}
	a.base = baseID
	a.plan = &plan{Verb: verbCreate, Volume: uuid.NewString(), Size: a.size, From: baseID, Here: base.repo == r}
	commit := func(u *update) error {
		if !a.plan.Here {
			a.plan.copies()
			if err := base.roomToCopy(ctx, r); err != nil {
				return err
			}
			_, err := s.commit(ctx, u, *a)
			return err
		}
		now, err := u.visible(ctx, baseID)
		if err != nil {
			return err
		}
		c, err := u.chain(ctx, now)
		if err == nil && now.Plan.creates() {
			err = fmt.Errorf("base %s/%s: %w yet", u.id, baseID, ErrBroken)
		}
		if err != nil {
			return err
		}
		if a.strategy == Performance || u.place.Capabilities().Clones && len(c) == 1 && c[0].Format == imagecheck.Raw {
			a.plan.copies()
			err = base.roomToCopy(ctx, r)
		} else {
			a.plan.Stages, a.plan.Format = []string{stageOverlay, stagePublish}, imagecheck.QCOW2
			err = r.room(ctx, r.empty(imagecheck.QCOW2, a.size), "a disk on it")
		}
		if err != nil {
			return err
		}
		_, err = s.commit(ctx, u, *a)
		return err
	}
	return r.change(ctx, commit)
}

// notSnapshot refuses a disk as a base: it may change below what lies on it.
func notSnapshot(repoID, imageID string) error {
	err := fmt.Errorf("base %s/%s: %w", repoID, imageID, ErrNotSnapshot)
	return failure.Hint(err, "make one of it with `diskhook image snapshot %s/%s`, and name that", repoID, imageID)
}

// copies makes it the plan of an image whose content is copied whole.
func (p *plan) copies() {
	p.Stages, p.Format = []string{stageCopy, stagePublish}, imagecheck.Raw
}

// CreateSnapshot makes an immutable image of what a disk holds now, in the same
// repository. The disk keeps its id. ErrInUse: a disk that is used cannot be
// snapshotted here; ErrNotDisk.
func (s *Service) CreateSnapshot(ctx context.Context, targetRepoID, baseVirtualDiskID string, userData json.RawMessage, o Options) (string, error) {
	if err := checkImageID(baseVirtualDiskID); err != nil {
		return "", err
	}
	r, a, err := s.making(ctx, targetRepoID, Snapshot, userData, o, verbSnapshot, baseVirtualDiskID)
	if r == nil {
		return a.id, err
	}
	defer r.close()
	err = r.change(ctx, func(u *update) error {
		if done, err := u.repeated(ctx, a); done || err != nil {
			return err // in the meantime
		}
		disk, err := s.snapshottable(ctx, u, baseVirtualDiskID)
		if err != nil {
			return err
		}
		a.size, a.base, a.volume = disk.Size, disk.Base, disk.Volume
		a.plan = &plan{Verb: verbSnapshot, Disk: disk.ID, Volume: uuid.NewString(), Size: disk.Size}
		how := stageOverlay
		a.plan.Format = imagecheck.QCOW2
		if top, err := u.volume(ctx, disk.Volume); err == nil && top.Format == imagecheck.Raw && u.place.Capabilities().Clones {
			how, a.plan.Format, a.plan.From, a.plan.Here = stageCopy, imagecheck.Raw, a.id, true
		}
		a.plan.Stages = []string{stageFreeze, how, stageSwitch, stagePublish}
		var needed int64
		if how == stageOverlay {
			needed = r.empty(imagecheck.QCOW2, disk.Size)
		}
		if err := r.room(ctx, needed, "a snapshot"); err != nil {
			return err
		}
		snapshot, err := s.commit(ctx, u, a)
		if err != nil {
			return err
		}
		return s.cut(ctx, u, snapshot)
	})
	if err != nil {
		return "", err
	}
	s.proceed(ctx, r, a.id, o)
	return a.id, nil
}

// snapshottable returns a disk that can be snapshotted now.
func (s *Service) snapshottable(ctx context.Context, u *update, id string) (*image, error) {
	disk, err := u.visible(ctx, id)
	if err != nil {
		return nil, err
	}
	if disk.Kind != Disk {
		return nil, fmt.Errorf("image %s/%s: %w", u.id, id, ErrNotDisk)
	}
	if err := s.unused(ctx, u.repo, id); err != nil {
		return nil, err
	}
	if cut, err := u.pendingCut(ctx, disk); err != nil {
		return nil, err
	} else if cut != "" {
		err := fmt.Errorf("image %s/%s: %w: snapshot %s of it is not done", u.id, id, ErrBusy, cut)
		return nil, failure.Hint(err, "`diskhook image status %s/%s`", u.id, cut)
	}
	if disk.Plan != nil && !disk.Plan.creates() {
		err := fmt.Errorf("image %s/%s: %w: %s is not done", u.id, id, ErrBusy, disk.Plan.Verb)
		return nil, failure.Hint(err, "`diskhook image status %s/%s`", u.id, id)
	}
	return disk, u.undisturbed(ctx, disk)
}
