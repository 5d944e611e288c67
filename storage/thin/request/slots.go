// SPDX-License-Identifier: Apache-2.0

package request

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// Slots is the way to a master over the LUN: the request and reply slots of this
// host's UUID.host.
type Slots struct {
	Device        layout.Device // UUID.host, open for writing
	Cluster, Host uuid.UUID
	// Epoch is that of the map which the host knows.
	Epoch uint64
	// Poll is how often it looks for the reply; 0 is a quarter of a second.
	Poll time.Duration
}

// Ask is Channel's. A request that is in its slot already is only waited for.
func (s Slots) Ask(ctx context.Context, sequence uint64, r Request) (Reply, error) {
	m, err := Encode(sequence, s.Epoch, r)
	if err != nil {
		return Reply{}, err
	}
	if err := layout.WriteRequest(s.Device, s.Cluster, s.Host, m); err != nil {
		return Reply{}, err
	}
	poll := s.Poll
	if poll <= 0 {
		poll = time.Second / 4
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		reply, err := layout.ReadReply(s.Device, s.Cluster, s.Host, sequence)
		if err == nil {
			return Result(reply)
		}
		// Damaged is one that the master is writing.
		if !errors.Is(err, layout.ErrPending) && !errors.Is(err, layout.ErrDamaged) {
			return Reply{}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			err := failure.New(failure.Temporary, "request %d (%s): the master did not answer: %w", sequence, Name(r), context.Cause(ctx))
			return Reply{}, failure.Hint(err, "see on the master whether `diskhook thin monitor --master` runs, then run the verb again")
		}
	}
}
