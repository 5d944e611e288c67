// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/repository/format"
)

// maxOrder bounds the opaque data of a fix, in bytes.
const maxOrder = 64 << 10

// seal renders an order, with a digest that tells a changed one; id is short.
func (o order) seal() (data, id string) {
	b, err := json.Marshal(o)
	if err != nil {
		return "", "" // it has nothing that could fail
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(append(sum[:8], b...)), hex.EncodeToString(sum[:6])
}

// unseal reads what seal made.
func unseal(data string) (order, error) {
	var o order
	wrong := failure.New(failure.Usage, "fix: its data is not as CheckStorageRepository gave it")
	if len(data) > maxOrder {
		return o, wrong
	}
	b, err := base64.RawURLEncoding.DecodeString(data)
	if err != nil || len(b) < 8 {
		return o, wrong
	}
	sum := sha256.Sum256(b[8:])
	if string(sum[:8]) != string(b[:8]) || json.Unmarshal(b[8:], &o) != nil || o.V != documentVersion {
		return o, wrong
	}
	ids := slices.Concat(sorted(o.Images), sorted(o.Volumes), o.Entries)
	for _, d := range o.Data {
		ids = append(ids, d.ID)
	}
	if slices.ContainsFunc(ids, func(id string) bool { return !host.IsUUID(id) }) {
		return o, wrong
	}
	return o, nil
}

// FixStorageRepository begins a fix that CheckStorageRepository found; with
// NoAutoFix one that copies is committed and left to Run. What it is about is
// looked at anew, under the repository's lock. ErrStaleFix: it has changed, check
// again. ErrInUse: an image in use is left alone. ErrBusy: somebody is at it.
func (s *Service) FixStorageRepository(ctx context.Context, repoID string, fix Fix, o Options) error {
	about, err := unseal(fix.Data)
	if err != nil {
		return err
	}
	r, err := s.target(ctx, repoID, o)
	if err != nil {
		return err
	}
	defer r.close()
	if about.Nonce != r.about.Nonce {
		return failure.New(failure.Usage, "fix: it is of another repository than %s", repoID)
	}
	f := &fixing{Service: s, repo: r, about: about}
	if about.Kind == orderClean || about.Kind == orderStrays {
		f.repo = r.freeing()
	}
	switch about.Kind {
	case orderGoOn:
		return f.goOn(ctx)
	case orderOptimize:
		return f.begin(ctx, o, f.optimize)
	case orderMerge:
		v, err := r.scan(ctx)
		if err != nil {
			return err
		}
		return f.begin(ctx, o, func(ctx context.Context, u *update) (*image, *plan, error) { return f.merge(ctx, u, v) })
	case orderClean:
		return f.clean(ctx)
	case orderStrays:
		return f.strays(ctx)
	case orderLeaks:
		if about.Into != "" {
			return f.begin(ctx, o, f.repair)
		}
		return f.leaks(ctx)
	case orderDescribe:
		return f.describe(ctx, o)
	case orderAside, orderForget, orderWreck, orderUnused:
		return f.giveUp(ctx, o)
	}
	return failure.New(failure.Usage, "fix: kind %q: %w", clip(about.Kind), ErrVersion)
}

type fixing struct {
	*Service
	repo  *repo
	about order
}

func (f *fixing) stale(what, id string) error {
	err := fmt.Errorf("%s %s/%s: %w", what, f.repo.id, id, ErrStaleFix)
	return failure.Hint(err, "`diskhook repo check %s` again", f.repo.id)
}

// fresh reads an image that the fix is about.
func (f *fixing) fresh(ctx context.Context, id string) (*image, error) {
	img, err := f.repo.image(ctx, id)
	if errors.Is(err, ErrNoImage) || err == nil && img.Gen != f.about.Images[id] {
		return nil, f.stale("image", id)
	}
	return img, err
}

// goOn walks an open plan.
func (f *fixing) goOn(ctx context.Context) error {
	for id := range f.about.Images {
		img, err := f.repo.image(ctx, id)
		if errors.Is(err, ErrNoImage) || err == nil && (img.Plan == nil || img.Plan.Nonce != f.about.Plan) {
			return f.stale("image", id)
		}
		if err != nil {
			return err
		}
		if f.Start != nil {
			return f.Start(ctx, f.repo.id, id)
		}
		return f.work(ctx, f.repo, id)
	}
	return f.stale("image", "")
}

// begin commits a plan for an image and starts it.
func (f *fixing) begin(ctx context.Context, o Options, plan func(context.Context, *update) (*image, *plan, error)) error {
	var id string
	err := f.repo.change(ctx, func(u *update) error {
		img, p, err := plan(ctx, u)
		if err != nil {
			return err
		}
		p.Nonce, id = uuid.NewString(), img.ID
		return u.begin(ctx, img, p)
	})
	if err != nil || o.NoAutoFix {
		return err
	}
	if f.Start != nil {
		return f.Start(ctx, f.repo.id, id)
	}
	return f.work(ctx, f.repo, id)
}

// optimize plans to copy an image whole.
func (f *fixing) optimize(ctx context.Context, u *update) (*image, *plan, error) {
	for id := range f.about.Images {
		img, err := f.fresh(ctx, id)
		if err == nil {
			err = f.unused(ctx, u.repo, id)
		}
		if err != nil {
			return nil, nil, err
		}
		c, err := u.chain(ctx, img)
		if cut, cutErr := u.pendingCut(ctx, img); cutErr != nil || cut != "" || img.Weak || img.Plan != nil || stateOf(img, c, err) != Degraded {
			return nil, nil, errors.Join(f.stale("image", id), cutErr)
		}
		if err := (&found{u.repo, img}).roomToCopy(ctx, u.repo); err != nil {
			return nil, nil, err
		}
		p := &plan{Verb: verbOptimize, Volume: uuid.NewString(), Size: img.Size, From: id, Here: true}
		p.copies()
		p.Stages = append(p.Stages, stageSweep)
		return img, p, nil
	}
	return nil, nil, f.stale("image", "")
}

// merge plans to read a removed image's volume into the one above it. v is what a
// scan found.
func (f *fixing) merge(ctx context.Context, u *update, v *view) (*image, *plan, error) {
	for id := range f.about.Images {
		if _, err := f.fresh(ctx, id); err != nil {
			return nil, nil, err
		}
	}
	if err := u.refresh(ctx, v, sorted(f.about.Images), nil); err != nil {
		return nil, nil, err
	}
	for _, m := range v.mergeable() {
		if _, ours := f.about.Images[m.removed.ID]; !ours || m.into.ID != f.about.Into || len(v.damaged) > 0 {
			continue
		}
		if cut, err := u.pendingCut(ctx, m.into); err != nil || cut != "" {
			return nil, nil, errors.Join(err, f.stale("image", m.into.ID))
		}
		if err := f.unusedVolume(ctx, u, m.into.Volume); err != nil {
			return nil, nil, err
		}
		p := &plan{Verb: verbMerge, From: m.removed.ID, Here: true}
		if _, sink := u.mergeCost(ctx, v, m); sink {
			p.Stages, p.Old = []string{stageSink, stageSweep}, []string{m.into.Volume}
		} else {
			p.Stages, p.Old = []string{stageFlatten, stageRelink, stageSweep}, []string{m.removed.Volume}
		}
		return m.into, p, nil
	}
	return nil, nil, f.stale("image", f.about.Into)
}

// clean removes what still is garbage, all of it or nothing.
func (f *fixing) clean(ctx context.Context) error {
	v, err := f.repo.scan(ctx)
	if err != nil {
		return err
	}
	images, volumes := v.garbage("") // in the order in which they may go
	images, err = f.wanted("image", images, f.about.Images)
	if err == nil {
		volumes, err = f.wanted("volume", volumes, f.about.Volumes)
	}
	if err != nil {
		return err
	}
	defer f.letGo(ctx, f.repo)
	var left leftovers
	err = f.repo.change(ctx, func(u *update) error {
		if err := u.refresh(ctx, v, images, volumes); err != nil {
			return err
		}
		if len(v.damaged) > 0 {
			return fmt.Errorf("repository %s: %w", f.repo.id, errors.Join(v.damaged...))
		}
		for _, id := range images {
			if img := v.images[id]; img == nil || img.Gen != f.about.Images[id] {
				return f.stale("image", id)
			}
		}
		for _, id := range volumes {
			if vol := v.volumes[id]; vol == nil || vol.Gen != f.about.Volumes[id] {
				return f.stale("volume", id)
			}
		}
		if what, id := v.needed(images, volumes, ""); id != "" {
			return f.stale(what, id) // another fix has to be done before
		}
		left, err = u.discard(ctx, v, images, volumes)
		return err
	})
	return errors.Join(err, f.repo.clear(ctx, left, nil))
}

// wanted keeps of the garbage what the fix is about; all of that has to be in it.
func (f *fixing) wanted(what string, garbage []string, about map[string]int64) ([]string, error) {
	ours := slices.DeleteFunc(garbage, func(id string) bool { _, ok := about[id]; return !ok })
	for id := range about {
		if !slices.Contains(ours, id) {
			return nil, f.stale(what, id)
		}
	}
	return ours, nil
}

// strays deletes data without a document, and entries of plans that are done.
func (f *fixing) strays(ctx context.Context) error {
	err := f.repo.change(ctx, func(u *update) error {
		aside, err := u.list(ctx, format.Aside)
		if err != nil {
			return err
		}
		for _, d := range f.about.Data {
			if len(aside) > 0 {
				return f.stale("volume", d.ID)
			}
			v, err := u.volume(ctx, d.ID)
			if err == nil && v.Format == d.Kind {
				return f.stale("volume", d.ID)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for _, id := range f.about.Entries {
			img, err := u.image(ctx, id)
			if err == nil && img.Plan != nil {
				return f.stale("image", id)
			}
			if err != nil && !errors.Is(err, ErrNoImage) {
				return err
			}
			if err := errors.Join(u.drop(ctx, format.Stop, id), u.drop(ctx, format.Operation, id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.repo.free(ctx, f.about.Data)
}
