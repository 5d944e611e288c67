// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"os"
	"sync"

	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// attached are the volumes that were opened on this host while a repository is in use.
type attached struct {
	mu  sync.Mutex
	all map[format.Data]bool
}

func (a *attached) add(d format.Data) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all = map[format.Data]bool{}
	}
	a.all[d] = true
}

func (a *attached) take() map[format.Data]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.all
	a.all = nil
	if all == nil {
		all = map[format.Data]bool{}
	}
	return all
}

// letGo closes on this host what work has opened, and what work that was killed has
// left open, but for what somebody here uses: as long as this host has a volume of a
// shared group no other one may write it. That it fails takes nothing back; the volume
// stays, and whoever wants it is told.
func (s *Service) letGo(ctx context.Context, r *repo) {
	if err := s.giveUp(context.WithoutCancel(ctx), r); err != nil {
		s.Log.Warn("volumes stay open on this host", "repository", r.id, "error", err)
	}
}

// LetGo closes on this host all volumes that nobody here uses: those that a process
// which was killed had open.
func (s *Service) LetGo(ctx context.Context, repoID string) error {
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return err
	}
	defer r.close()
	return s.giveUp(ctx, r)
}

func (s *Service) giveUp(ctx context.Context, r *repo) error {
	mine := r.attached.take()
	if c := r.place.Capabilities(); !c.Stale || c.ReadOnly {
		return nil
	}
	open, err := step(ctx, r, "list open volumes", r.place.Opened)
	if err != nil {
		return err
	}
	if len(open) == 0 && len(mine) == 0 {
		return nil
	}
	for _, d := range open {
		mine[d] = true
	}
	return r.change(ctx, func(u *update) error {
		used, err := s.usedHere(ctx, u)
		if err != nil {
			return err
		}
		for d := range mine {
			if !used[d.ID] {
				err = errors.Join(err, u.closeVolume(ctx, d))
			}
		}
		return err
	})
}

func (r *repo) closeVolume(ctx context.Context, d format.Data) error {
	_, err := step(ctx, r, "close a volume", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.place.CloseVolume(ctx, d.ID, d.Kind)
	})
	return err
}

// usedHere are the volumes of images that somebody on this host uses.
func (s *Service) usedHere(ctx context.Context, u *update) (map[string]bool, error) {
	pinned, err := u.list(ctx, format.Pin)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, imageID := range pinned {
		holders, err := s.holders(ctx, u.repo, imageID)
		if err != nil {
			return nil, err
		}
		here := false
		for _, h := range holders {
			here = here || h.Host == s.HostID
		}
		if !here {
			continue
		}
		img, err := u.image(ctx, imageID)
		if errors.Is(err, failure.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c, err := u.chain(ctx, img)
		if err != nil && !errors.Is(err, ErrBroken) {
			return nil, err
		}
		for _, v := range c {
			used[v.ID] = true
		}
	}
	return used, nil
}

// blank makes a volume read zero that holds what an earlier owner left. It takes as
// long as it takes, and begins anew when it was stopped.
func (w *worker) blank(ctx context.Context, v *volume) error {
	f, err := os.OpenFile(w.repo.place.Path(v.ID, v.Format), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	const chunk = 256 << 20
	for at := int64(0); err == nil && at < v.Size; at += chunk {
		if err = w.lock.Check(); err == nil {
			err = blockdev.ZeroRange(ctx, f, at, min(chunk, v.Size-at))
		}
		w.progress(at, v.Size)
	}
	return errors.Join(err, f.Close())
}

// leave ends the use of a source in another repository.
func (w *worker) leave(ctx context.Context, from *found) {
	if from.repo.place == w.repo.place {
		return // the worker lets go of it in the end
	}
	w.letGo(ctx, from.repo)
	from.close()
}
