// SPDX-License-Identifier: Apache-2.0

// Package status counts what a thin cluster has: how much is free, who was granted
// how much, what the volumes promise and what their own data take.
//
// Everything follows from the map, so that any host tells it without asking anybody
// and in the time that it takes to read one volume. What a host's pool still has of
// what it was granted, its slack, only that host knows; Pool is for the one that
// asks. All sizes are bytes.
package status

import (
	"github.com/google/uuid"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
)

// Status is a cluster's.
type Status struct {
	Schema     string    `json:"schema"`
	Cluster    string    `json:"cluster"`
	UUID       uuid.UUID `json:"uuid"`
	Epoch      uint64    `json:"epoch"`      // of the master that wrote the map last
	Generation uint64    `json:"generation"` // of the map
	BlockSize  uint64    `json:"block_size"`
	Capacity   Capacity  `json:"capacity"`
	Hosts      []Host    `json:"hosts"`
	Volumes    []Volume  `json:"volumes"`
	// Pool is this host's, if it is a member and its pool runs.
	Pool *Pool `json:"pool,omitempty"`
}

// Capacity is where the data blocks are. Total is the sum of what comes after it,
// but for Virtual.
type Capacity struct {
	Total   uint64 `json:"total"`
	Free    uint64 `json:"free"`    // nobody's
	Granted uint64 `json:"granted"` // hosts', slack and attached volumes together
	Offline uint64 `json:"offline"` // of one offline volume each
	Shared  uint64 `json:"shared"`  // of several volumes, attached or not
	Label   uint64 `json:"label"`
	// Virtual is how much guests could write at most: more than Total is
	// overcommitted, and Overcommit by which factor.
	Virtual    uint64  `json:"virtual"`
	Overcommit float64 `json:"overcommit"`
}

// Host is one host.
type Host struct {
	Name     string    `json:"name"`
	UUID     uuid.UUID `json:"uuid"`
	Number   uint32    `json:"number"`
	State    string    `json:"state"` // member, fenced, recovered
	Granted  uint64    `json:"granted"`
	Volumes  int       `json:"volumes"` // that are at it
	Virtual  uint64    `json:"virtual"` // theirs together
	Evidence string    `json:"evidence,omitempty"`
}

// Volume is one volume.
type Volume struct {
	Name       string    `json:"name"`
	UUID       uuid.UUID `json:"uuid"`
	Number     uint32    `json:"number"`
	Size       uint64    `json:"size"`
	State      string    `json:"state"` // offline, attaching, attached, detaching, suspect
	Host       string    `json:"host,omitempty"`
	Generation uint64    `json:"generation"`
	// Own is what its own data take; not known while it is at a host.
	Own *uint64 `json:"own,omitempty"`
	// Shared is how large the bases are that it may map.
	Shared uint64 `json:"shared"`
	// Domain is the UUID of the domain of this host that has it, for who asks.
	Domain string `json:"domain,omitempty"`
	// LocalCopy says that it is the local copy of a disk of that domain, on this host.
	LocalCopy bool `json:"local_copy,omitempty"`
}

// Pool is a host's pool as the kernel tells.
type Pool struct {
	Slack           uint64  `json:"slack"` // free to be allocated
	Mode            string  `json:"mode"`  // rw, ro, out_of_data_space, Fail
	NeedsCheck      bool    `json:"needs_check"`
	MetadataUsed    uint64  `json:"metadata_used"`
	MetadataTotal   uint64  `json:"metadata_total"`
	MetadataPercent float64 `json:"metadata_percent"`
	// DataPercent is how much of what the host was granted is allocated.
	DataPercent float64 `json:"data_percent"`
}

// Of counts what a map says.
func Of(name string, id uuid.UUID, m layout.Map, stamp layout.Stamp) Status {
	s := Status{
		Schema: "diskhook.thin-status/v1", Cluster: name, UUID: id, Epoch: stamp.Epoch, Generation: stamp.Generation, BlockSize: m.BlockSize,
		Hosts: []Host{}, Volumes: []Volume{},
	}
	owned := map[layout.Owner]uint64{}
	kinds := map[layout.OwnerKind]uint64{}
	for _, r := range m.Owners {
		owned[r.Owner] += r.Length * m.BlockSize
		kinds[r.Kind] += r.Length * m.BlockSize
	}
	s.Capacity = Capacity{
		Total: m.Bytes(), Free: kinds[layout.Free], Granted: kinds[layout.OfHost], Offline: kinds[layout.OfVolume],
		Shared: kinds[layout.OfBase], Label: kinds[layout.OfLabel],
	}
	hosts := map[uint32]int{}
	for i, h := range m.Hosts {
		hosts[h.Number] = i
		s.Hosts = append(s.Hosts, Host{
			Name: h.Name, UUID: h.UUID, Number: h.Number, State: h.State.String(), Evidence: h.Evidence,
			Granted: owned[layout.Owner{Kind: layout.OfHost, Number: h.Number}],
		})
	}
	for _, v := range m.Volumes {
		out := Volume{Name: v.Name, UUID: v.UUID, Number: v.Number, Size: v.Size, State: v.State.String(), Generation: v.Generation}
		for _, base := range v.Bases {
			out.Shared += owned[layout.Owner{Kind: layout.OfBase, Number: base}]
		}
		if i, known := hosts[v.Host]; v.State.On() && known {
			out.Host = s.Hosts[i].Name
			s.Hosts[i].Volumes++
			s.Hosts[i].Virtual += v.Size
		} else {
			own := owned[layout.Owner{Kind: layout.OfVolume, Number: v.Number}]
			out.Own = &own
		}
		s.Capacity.Virtual += v.Size
		s.Volumes = append(s.Volumes, out)
	}
	s.Capacity.Overcommit = share(s.Capacity.Virtual, s.Capacity.Total)
	return s
}

// WithPool adds what the kernel tells of the pool of the host with this number,
// which withholds everything from its pool that is not its own.
func (s *Status) WithPool(host uint32, p devmapper.PoolStatus) {
	const metadataBlock = 4096
	pool := Pool{
		Mode: string(p.Mode), NeedsCheck: p.NeedsCheck, Slack: p.Free() * s.BlockSize,
		MetadataUsed: p.MetadataUsed * metadataBlock, MetadataTotal: p.MetadataTotal * metadataBlock,
		MetadataPercent: 100 * share(p.MetadataUsed, p.MetadataTotal),
	}
	for _, h := range s.Hosts {
		if h.Number == host {
			pool.DataPercent = 100 * share(h.Granted-min(pool.Slack, h.Granted), h.Granted)
		}
	}
	s.Pool = &pool
}

func share(of, total uint64) float64 {
	if total == 0 {
		return 0
	}
	return float64(of) / float64(total)
}
