// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// Status is how this host stands in its cluster.
type Status struct {
	Host      string // its name in the cluster
	Number    uint32 // of it there
	State     layout.HostState
	BlockSize uint64                // bytes
	Owned     uint64                // blocks that the map gives the host
	Image     uint64                // generation of the metadata that count
	Window    string                // A or B, where they are
	Pending   string                // the request that has no answer yet, "" for none
	Pool      *devmapper.PoolStatus // nil while it does not run
	Volumes   []VolumeStatus
}

// VolumeStatus is a volume that the map has at this host.
type VolumeStatus struct {
	layout.VolumeRecord
	Path      string // "" while it has no device
	Mapped    uint64 // bytes that it takes from the pool
	InUse     bool   // somebody has the device open
	Suspended bool   // it is held back: a verb is at work, or was killed
}

// Status looks without a lock, so that it says something while a verb is at work;
// what it says of kernel, header and map may be of different moments then.
func (c *Member) Status(ctx context.Context) (Status, error) {
	s, err := c.glance(ctx)
	var out Status
	if err == nil {
		out, err = s.status(ctx)
	}
	return out, errors.Join(err, s.close())
}

// peek reads header and map without an opinion on them.
func (s *session) peek(ctx context.Context) error {
	var err error
	if s.header, s.stamp, err = layout.ReadHost(s.own, s.Cluster, s.Host); err != nil {
		return err
	}
	if s.hosts, err = s.openMap(ctx); err != nil {
		return err
	}
	m, stamp, err := layout.ReadMap(s.hosts, s.Cluster)
	s.m, s.epoch = m, stamp.Epoch
	return err
}

func (s *session) status(ctx context.Context) (Status, error) {
	h := s.header
	out := Status{
		Host: h.Name, Number: h.Number, BlockSize: h.BlockSize, Owned: s.m.Owned(s.owner()).Blocks(),
		Image: h.Image, Window: letter(h.Active), Pending: s.asked(),
	}
	for _, record := range s.m.Hosts {
		if record.Number == h.Number {
			out.State = record.State
		}
	}
	switch status, err := s.poolStatus(ctx); {
	case err == nil:
		out.Pool = &status
	case !errors.Is(err, failure.NotFound):
		return out, err
	}
	for _, v := range s.here(layout.Attaching, layout.Attached, layout.Detaching) {
		status, err := s.volumeStatus(ctx, v)
		if err != nil {
			return out, err
		}
		out.Volumes = append(out.Volumes, status)
	}
	return out, nil
}

// asked is the name of the request in the journal.
func (s *session) asked() string {
	r, err := s.journaled()
	switch {
	case err != nil:
		return "unknown"
	case r == nil:
		return ""
	}
	return request.Name(r)
}

func (s *session) volumeStatus(ctx context.Context, v layout.VolumeRecord) (VolumeStatus, error) {
	out := VolumeStatus{VolumeRecord: v}
	name := s.deviceName(v.Name)
	info, err := s.Mapper.Info(ctx, name)
	if errors.Is(err, failure.NotFound) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.Path, out.InUse, out.Suspended = s.Path(v.Name), info.Open > 0, info.Suspended
	out.Mapped, err = s.taken(ctx, name)
	return out, err
}
