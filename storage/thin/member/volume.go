// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// Create makes an empty volume of so many bytes, offline.
func (c *Member) Create(ctx context.Context, id uuid.UUID, name string, size uint64) error {
	return c.want(ctx, "create", name, func(s *session) (request.Request, error) {
		if wasDone(s, func(r request.Create) bool { return r.Name == name && r.Size == size }) {
			return nil, nil
		}
		return request.Create{ID: id, Name: name, Size: size}, nil
	})
}

// Delete removes a volume that is offline; one that is gone is a failure.NotFound,
// unless it went by an earlier Delete that gave up before it was told. A local copy of
// this host is a failure.Conflict.
func (c *Member) Delete(ctx context.Context, name string) error {
	return c.want(ctx, "delete", name, func(s *session) (request.Request, error) {
		v, err := s.volume(name)
		if errors.Is(err, failure.NotFound) {
			if was, failed := s.wasDeleted(name); was || failed != nil {
				return nil, failed
			}
		}
		if err == nil {
			err = s.Labels.Labelled(name)
		}
		return request.Delete{Volume: v.Number}, err
	})
}

// DeleteUnused removes a volume that nobody has attached or changed since it was of a
// generation; otherwise that is a failure.Conflict. One that is gone is fine.
func (c *Member) DeleteUnused(ctx context.Context, id uuid.UUID, generation uint64) error {
	return c.want(ctx, "delete", id.String(), func(s *session) (request.Request, error) {
		for _, v := range s.m.Volumes {
			if v.UUID == id {
				return request.Delete{Volume: v.Number, Generation: generation}, nil
			}
		}
		return nil, nil
	})
}

// Clone makes a volume that has what another one has: as it is stored, of one that
// is offline, and by a Snapshot of one that is attached here.
func (c *Member) Clone(ctx context.Context, of string, id uuid.UUID, name string) error {
	attached := false
	err := c.want(ctx, "clone", of, func(s *session) (request.Request, error) {
		v, err := s.volume(of)
		if err != nil {
			return nil, err
		}
		if done, err := s.wasMade(v, name, false); done || err != nil {
			return nil, err
		}
		if attached = v.State == layout.Attached && v.Host == s.header.Number; attached || made(s.m, id, name) {
			return nil, nil
		}
		return request.Clone{Of: v.Number, ID: id, Name: name}, nil
	})
	if err == nil && attached {
		return c.Snapshot(ctx, of, id, name)
	}
	return err
}

// made says whether a map has a volume.
func made(in layout.Map, id uuid.UUID, name string) bool {
	for _, v := range in.Volumes {
		if v.UUID == id && v.Name == name {
			return true
		}
	}
	return false
}

// Resize makes a volume larger. Of one that is attached here the device grows at
// once, of one that is attached elsewhere with the next verb there.
func (c *Member) Resize(ctx context.Context, name string, size uint64) error {
	return c.want(ctx, "resize", name, func(s *session) (request.Request, error) {
		v, err := s.volume(name)
		return request.Resize{Volume: v.Number, Size: size}, err
	})
}

// want asks the master for something, and has the kernel follow. No request is
// nothing to ask for.
func (c *Member) want(ctx context.Context, verb, name string, what func(*session) (request.Request, error)) error {
	err := c.do(ctx, c.begin, func(s *session) error {
		r, err := what(s)
		if err != nil || r == nil {
			return err
		}
		if _, err = s.ask(ctx, r); err != nil {
			return err
		}
		return s.settle(ctx)
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return nil
}

// Settle finishes what verbs before this one left undone, also what they asked the
// master for: what is in the map afterwards is all that comes of it.
func (c *Member) Settle(ctx context.Context) error {
	return c.do(ctx, c.begin, func(s *session) error { return s.pending })
}

// Leave ends this host's membership: the pool has to be stopped, and every volume
// detached. What blocks it has become free. A host that is no member is fine.
func (c *Member) Leave(ctx context.Context) error {
	err := c.do(ctx, c.begin, func(s *session) error {
		runs, err := s.running(ctx)
		if err != nil {
			return err
		}
		if runs {
			err := failure.New(failure.Conflict, "thin cluster %s: the pool of this host runs", s.Name)
			return failure.Hint(err, "run `diskhook thin stop`")
		}
		_, err = s.send(ctx, request.Leave{})
		return err
	})
	if err != nil && !errors.Is(err, errGone) {
		return err
	}
	return c.release(ctx)
}

// release takes the devices of the cluster's volumes away from this host: in a group
// of lvmlockd nobody could remove UUID.host else. What somebody has open, as a master
// on this host does, stays.
func (c *Member) release(ctx context.Context) error {
	var failed []error
	for _, name := range []string{layout.Host.Name(c.Host), layout.MapName, layout.DataName} {
		if err := c.Group.Deactivate(ctx, name); !errors.Is(err, failure.Conflict) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
