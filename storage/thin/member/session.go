// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// session is one verb at work. It has the cluster's lock on this host, so that
// nobody else here changes the pool or the header.
type session struct {
	*Member
	lock    *lock.Lock
	own     group.Volume // UUID.host
	hosts   group.Volume // the map
	header  layout.HostHeader
	stamp   layout.Stamp // the header's
	m       layout.Map
	epoch   uint64          // of the map
	pending error           // why a request of an earlier verb has no answer yet
	late    request.Request // an earlier verb's, that the master has done by now; nil for none
	holder  string          // the domain that the verb is for, "" for none
}

// begin takes the lock, reads where this host stands, and finishes what an earlier
// verb left undone. The session has to be ended.
func (c *Member) begin(ctx context.Context) (*session, error) {
	s, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.settle(ctx); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// open takes the lock and reads.
func (c *Member) open(ctx context.Context) (*session, error) {
	l, err := c.locked(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{Member: c, lock: l}
	if err = s.reopen(ctx); err == nil {
		err = s.look(ctx)
	}
	if err == nil {
		err = s.former(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

func (s *session) end() error {
	defer s.lock.Release()
	return s.close()
}

func (s *session) close() error {
	var errs []error
	for _, v := range []group.Volume{s.own, s.hosts} {
		if v != nil {
			errs = append(errs, v.Close())
		}
	}
	return errors.Join(errs...)
}

// glance is a session that only looks, without a lock, as often as it likes: while this
// host is the member that the header on its active volume says it is, no LVM reads the
// metadata of the whole group for that. It has no opinion on what it reads, and has to
// be closed also when it fails.
func (c *Member) glance(ctx context.Context) (*session, error) {
	s := &session{Member: c}
	if own, err := group.Glance(c.Group, layout.Host.Name(c.Host)); err == nil {
		s.own = own
		if s.peek(ctx) == nil && s.belongs() == nil {
			return s, nil
		}
		// What was active may be of a volume that was removed, and made again.
		if err := s.close(); err != nil {
			return &session{Member: c}, err
		}
		s = &session{Member: c}
	}
	err := s.reopen(ctx)
	if err == nil {
		err = s.peek(ctx)
	}
	return s, err
}

// reopen opens the host's volume with the size that it has now.
func (s *session) reopen(ctx context.Context) error {
	own, err := s.Group.Open(ctx, layout.Host.Name(s.Host), true)
	if err != nil {
		if errors.Is(err, failure.NotFound) {
			err = failure.Hint(err, "run `diskhook thin init-host` on this host")
		}
		return err
	}
	if s.own != nil {
		err = s.own.Close()
	}
	s.own = own
	return err
}

// look reads header and map.
func (s *session) look(ctx context.Context) error {
	if err := s.peek(ctx); err != nil {
		return err
	}
	return s.belongs()
}

// refresh reads the map again, which the master may have extended meanwhile.
func (s *session) refresh(ctx context.Context) error {
	m, stamp, err := layout.ReadMap(s.hosts, s.Cluster)
	if errors.Is(err, layout.ErrShort) {
		if err := s.hosts.Close(); err != nil {
			return err
		}
		if s.hosts, err = s.openMap(ctx); err != nil {
			return err
		}
		m, stamp, err = layout.ReadMap(s.hosts, s.Cluster)
	}
	if err != nil {
		return err
	}
	s.m, s.epoch = m, stamp.Epoch
	return s.belongs()
}

// belongs refuses a host that is no member any more.
func (s *session) belongs() error {
	i := slices.IndexFunc(s.m.Hosts, func(h layout.HostRecord) bool { return h.Number == s.header.Number && h.UUID == s.Host })
	if i < 0 || s.m.Hosts[i].State != layout.Member || s.stamp.Epoch > s.epoch {
		return gone(s.header.Name, s.Name)
	}
	return nil
}

// errGone says that this host is no member any more, errFormer that what it has in its
// kernel is of a membership that has ended.
var (
	errGone   = errors.New("it is no member any more")
	errFormer = errors.New("it is of a former membership")
)

func gone(host, cluster string) error {
	err := failure.New(failure.Conflict, "host %s: %w of cluster %s: it was held for fenced, or left", host, errGone, cluster)
	return failure.Hint(err, "stop its guests and run `diskhook thin stop` on it, then `diskhook thin init-host --rejoin %s` on the master", host)
}

func (c *Member) openMap(ctx context.Context) (group.Volume, error) {
	dev, err := c.Group.Open(ctx, layout.MapName, false)
	if errors.Is(err, failure.NotFound) {
		err = failure.Hint(err, "run `diskhook thin init-cluster`")
	}
	return dev, err
}

// commit writes the header.
func (s *session) commit(change func(*layout.HostHeader)) error {
	next := s.header
	change(&next)
	stamp, err := layout.CommitHost(s.own, s.Cluster, s.Host, s.stamp, s.epoch, next)
	if err != nil {
		return err
	}
	s.header, s.stamp = next, stamp
	return nil
}

// volume finds a volume by its name.
func (s *session) volume(name string) (layout.VolumeRecord, error) {
	return find(s.m, name)
}

func find(m layout.Map, name string) (layout.VolumeRecord, error) {
	for _, v := range m.Volumes {
		if v.Name == name {
			return v, nil
		}
	}
	err := failure.New(failure.NotFound, "volume %s: the cluster has none of this name", name)
	return layout.VolumeRecord{}, failure.Hint(err, "see `diskhook thin status`, or run `diskhook thin create %s`", name)
}

// stored reads the mapping in UUID.thin that counts.
func (c *Member) stored(ctx context.Context, v layout.VolumeRecord) (layout.Mapping, error) {
	var m layout.Mapping
	err := group.With(ctx, c.Group, layout.Thin.Name(v.UUID), false, func(dev group.Volume) (err error) {
		m, err = layout.ReadMapping(dev, c.Cluster, v.UUID, v.Stored())
		return err
	})
	if err != nil {
		return m, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return m, nil
}
