// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// Task is an open plan.
type Task struct {
	RepoID  string `json:"repoId"`
	ImageID string `json:"imageId"`
	Status
}

// ListTasks lists the open plans of a repository, whether somebody works on them or not.
func (s *Service) ListTasks(ctx context.Context, repoID string) ([]Task, error) {
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return nil, err
	}
	defer r.close()
	ids, err := r.list(ctx, format.Operation)
	if err != nil {
		return nil, err
	}
	var tasks []Task
	for _, id := range ids {
		img, err := r.image(ctx, id)
		if errors.Is(err, ErrNoImage) || err == nil && img.Plan == nil {
			continue
		}
		if unreadable(err) {
			st := Status{State: Broken, PercentComplete: -1, Open: true, LastError: failure.Line(err)}
			tasks = append(tasks, Task{RepoID: repoID, ImageID: id, Status: st})
			continue
		}
		if err != nil {
			return nil, err
		}
		st, _, err := s.status(ctx, r, img)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, Task{RepoID: repoID, ImageID: id, Status: st})
	}
	return tasks, nil
}

// StopTask asks whoever works on an image, on whatever host, to stop, and returns at
// once. The plan stays: Run or FixStorageRepository go on with it, RemoveImage gives it up.
func (s *Service) StopTask(ctx context.Context, repoID, imageID string) error {
	if err := checkImageID(imageID); err != nil {
		return err
	}
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return err
	}
	defer r.close()
	img, err := r.image(ctx, imageID)
	if err != nil {
		return err
	}
	if img.Plan == nil {
		return nil
	}
	return r.freeing().put(ctx, format.Stop, imageID, stopRequest{V: documentVersion, Plan: img.Plan.Nonce, Host: s.HostID})
}

// Resume walks every open plan of a repository on which nobody works, and returns what
// became of those that do not end.
func (s *Service) Resume(ctx context.Context, repoID string) error {
	r, err := s.connected(ctx, repoID)
	if err != nil {
		return err
	}
	defer r.close()
	ids, err := r.list(ctx, format.Operation)
	if err != nil {
		return err
	}
	var failed error
	for _, id := range ids {
		err := s.work(ctx, r, id)
		if errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return errors.Join(failed, err)
		}
		if err != nil && !errors.Is(err, ErrBusy) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// Status is how an image is, and what was last persisted of the work on it.
type Status struct {
	State State `json:"state"`
	// HostID is the last host that tried to make, optimize or mend it.
	HostID string `json:"hostID,omitempty"`
	// Stage is "X/Y", the last persisted one, StageName what it is.
	Stage     string `json:"stage,omitempty"`
	StageName string `json:"stage_name,omitempty"`
	// PercentComplete is that of the stage: 0 to 100, -1 where it is not known.
	PercentComplete int    `json:"percent_complete"`
	LastError       string `json:"last_error,omitempty"`
	// LastErrorCode is the kind of it: the code of a failure.Kind, as no_space.
	LastErrorCode string `json:"last_error_code,omitempty"`
	// Verb is what is or was done; Open says that it is not done, Running that
	// somebody works on it now.
	Verb    string    `json:"verb,omitempty"`
	Open    bool      `json:"open"`
	Running bool      `json:"running"`
	Updated time.Time `json:"updated,omitzero"`
}

// GetImageStatus says how an image is.
func (s *Service) GetImageStatus(ctx context.Context, repoID, imageID string) (Status, error) {
	info, err := s.GetImage(ctx, repoID, imageID)
	return info.Status, err
}

// status derives the state and reads the record; the chain is nil where it is
// broken.
func (s *Service) status(ctx context.Context, r *repo, img *image) (st Status, c chain, err error) {
	c, broken := r.chain(ctx, img)
	if broken != nil && !errors.Is(broken, ErrBroken) && !unreadable(broken) {
		return Status{}, nil, broken
	}
	st = Status{State: stateOf(img, c, broken), PercentComplete: -1, Open: img.Plan != nil}
	last := img.Last
	if img.Plan != nil {
		op, err := get[operation](ctx, r, format.Operation, img.ID)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !unreadable(err) {
			return st, c, err
		}
		if err == nil && op.Plan == img.Plan.Nonce {
			last = &op.record
		}
		held, err := step(ctx, r, "look at a lock", func(ctx context.Context) (bool, error) { return r.place.Held(ctx, workLock(img.ID)) })
		if err != nil {
			return st, c, err
		}
		st.Running = held
	}
	if last != nil {
		st.HostID, st.Verb, st.StageName, st.Updated = last.Host, last.Verb, last.Name, last.Updated
		st.Stage, st.PercentComplete, st.LastError = fmt.Sprintf("%d/%d", last.Stage, last.Stages), last.Percent, last.Error
		st.LastErrorCode = last.Code
	}
	if st.LastError == "" && broken != nil && !st.Open {
		st.LastError = failure.Line(broken)
	}
	return st, c, nil
}
