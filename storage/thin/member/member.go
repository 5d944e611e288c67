// SPDX-License-Identifier: Apache-2.0

package member

import (
	"log/slog"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// Member is this host in a cluster.
type Member struct {
	Name    string    // the cluster's, by which its mapped devices are called
	Cluster uuid.UUID // the cluster's
	Host    uuid.UUID // this host's
	Group   group.Group
	Mapper  devmapper.Mapper
	Windows Windows
	// Channel makes the way to the master for the time of a verb, from UUID.host,
	// open for writing, and the epoch of the map; and Deadline is how long a request
	// waits for an answer.
	Channel  func(own layout.Device, epoch uint64) request.Channel
	Deadline time.Duration
	// Closing is how long a volume that is to be taken away may stay open before it is
	// in use: those who only look at its device close it by themselves. A verb that
	// is refused takes that long.
	Closing time.Duration
	// LowWater is how many free blocks the pool has left when it asks for more.
	LowWater uint64
	// Locks is the directory of locks, Links the one in which each volume has a
	// link to its device by its name.
	Locks, Links string
	// Dev is the directory of device nodes.
	Dev string
	// Claims are which domains have volumes of the cluster here.
	Claims claim.Store
	// Labels are which volumes are local copies of this host.
	Labels claim.Labels
	Log    *slog.Logger
}
