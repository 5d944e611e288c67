// SPDX-License-Identifier: Apache-2.0

// Package request is what a host asks the master of a thin cluster for, and what
// the master answers.
//
// A host never changes the map. It says what it wants in a request, the master
// does it, commits the map and replies. Both are a layout.Message: the verb is
// its code, the rest is JSON, and all of it fits into a slot of 4 KiB in the
// host's UUID.host, so that host and master need no network between them. Where
// host and master are one program, the same request goes straight to the master
// (Channel).
//
// A request has a sequence, which the host makes durable in its journal before
// it writes the slot. The map remembers for each host the sequence that was done
// last, in the commit that did it. So a request that is written again, or that a
// new master finds, is done once; and as every reply follows from the map and the
// request alone, the second answer is the first one. A request that was refused
// leaves no trace in the map and is over: whoever tries again takes the next
// sequence.
package request

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
)

// Request is one of the structs below.
type Request interface {
	verb() verb
	// check says what is wrong with it, as far as it can be told from itself.
	check() error
}

// Create makes an empty volume, offline.
type Create struct {
	ID   uuid.UUID `json:"id"`
	Name string    `json:"name"`
	Size uint64    `json:"size"` // bytes
}

// Delete removes a volume that is offline.
type Delete struct {
	Volume uint32 `json:"volume"`
	// Generation is the only one that may be deleted; 0 is any.
	Generation uint64 `json:"generation,omitempty"`
}

// Clone makes a volume that has what an offline one has.
type Clone struct {
	Of   uint32    `json:"of"`
	ID   uuid.UUID `json:"id"`
	Name string    `json:"name"`
}

// CloneAttached makes a volume that has what a volume of this host had when it was
// snapshotted. The host has written the mapping of that snapshot, as
// handover.Mapping labels it, to the UUID.thin of the volume Of, with the
// generation after Of's: the place of a mapping that nobody committed to.
type CloneAttached struct {
	Of   uint32    `json:"of"`
	ID   uuid.UUID `json:"id"`
	Name string    `json:"name"`
}

// Resize makes a volume larger.
type Resize struct {
	Volume uint32 `json:"volume"`
	Size   uint64 `json:"size"` // bytes
}

// BeginAttach takes an offline volume to this host.
type BeginAttach struct {
	Volume uint32 `json:"volume"`
	// Suspect takes also one whose last writes may be lost.
	Suspect bool `json:"suspect,omitempty"`
}

// FinishAttach says that the volume is in the host's metadata.
type FinishAttach struct {
	Volume uint32 `json:"volume"`
}

// BeginDetach says that the host is about to give the volume back.
type BeginDetach struct {
	Volume uint32 `json:"volume"`
}

// FinishDetach takes a volume offline. The host has written its mapping to
// UUID.thin, with the generation after the volume's. It also takes an attach back
// that failed: then the mapping is the one that was stored before.
type FinishDetach struct {
	Volume uint32 `json:"volume"`
	// Suspect says that what was written last may be lost.
	Suspect bool `json:"suspect,omitempty"`
}

// Grant asks for blocks.
type Grant struct {
	Blocks uint64 `json:"blocks"`
	// Least is how few will do; 0 is all of them.
	Least uint64 `json:"least,omitempty"`
}

// Return gives blocks back that the host withholds from its pool. One slot has room
// for MaxExtents; see Returns.
type Return struct {
	Extents Extents `json:"extents"`
}

// Room makes the UUID.thin of a volume at least so long; with Volume 0 this
// host's UUID.host.
type Room struct {
	Volume uint32 `json:"volume,omitempty"`
	Bytes  uint64 `json:"bytes"`
}

// Leave ends the host's membership. Its pool is stopped and it has no volumes; what
// blocks it still has become free.
type Leave struct{}

// Reply is what the master did, as the map has it now.
type Reply struct {
	Number     uint32 `json:"number,omitempty"`     // of the volume that was made or changed
	Generation uint64 `json:"generation,omitempty"` // of the volume
	Blocks     uint64 `json:"blocks,omitempty"`     // that this host has now
}

// Channel is a way to the master.
type Channel interface {
	// Ask has a request done, under a sequence that the host made durable before,
	// and returns what the master replied: its refusal has the failure kind and
	// hint that it had there. A master that does not answer before ctx ends is a
	// failure.Temporary; then nobody knows whether it was done, and the same
	// request has to be asked again under the same sequence.
	Ask(ctx context.Context, sequence uint64, r Request) (Reply, error)
}

// Encode makes a message of a request. One that breaks its own rules is
// failure.Usage.
func Encode(sequence, epoch uint64, r Request) (layout.Message, error) {
	if err := r.check(); err != nil {
		return layout.Message{}, err
	}
	body, err := json.Marshal(r)
	if err == nil && len(body) > layout.MaxBody {
		err = failure.New(failure.Usage, "request %s: %d bytes, a slot has room for %d", r.verb(), len(body), layout.MaxBody)
	}
	if err != nil {
		return layout.Message{}, err
	}
	return layout.Message{Sequence: sequence, Epoch: epoch, Code: uint16(r.verb()), Body: body}, nil
}

// Decode reads a request. What another diskhook wrote that this one does not know,
// and what breaks a rule, is failure.Usage.
func Decode(m layout.Message) (Request, error) {
	v := verb(m.Code)
	empty, ok := kinds[v]
	if !ok {
		err := failure.New(failure.Usage, "request %d: its verb %d is unknown", m.Sequence, m.Code)
		return nil, failure.Hint(err, "install the diskhook that the other hosts of the cluster run")
	}
	r, err := empty(m.Body)
	if err != nil {
		return nil, failure.New(failure.Usage, "request %s: %w", v, err)
	}
	return r, r.check()
}

// Extents are blocks as numbers: start and length in turn.
type Extents []uint64

// MaxExtents is how many runs of blocks one request has room for.
const MaxExtents = 80

// Set is the blocks. check has to have passed.
func (e Extents) Set() extent.Set {
	var runs []extent.Extent
	for i := 0; i+1 < len(e); i += 2 {
		runs = append(runs, extent.Extent{Start: e[i], Length: e[i+1]})
	}
	return extent.Of(runs...)
}

// Returns are the requests that give a set of blocks back.
func Returns(blocks extent.Set) []Return {
	var all []Return
	for len(blocks) > 0 {
		n := min(len(blocks), MaxExtents)
		var part Extents
		for _, e := range blocks[:n] {
			part = append(part, e.Start, e.Length)
		}
		all, blocks = append(all, Return{part}), blocks[n:]
	}
	return all
}
