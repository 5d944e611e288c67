// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"

	"diskhook/storage/failure"
)

// Why something on the shared volume group is refused; found with errors.Is,
// beside the failure kind.
var (
	// ErrEmpty says that nothing was written here yet.
	ErrEmpty = errors.New("nothing was written here yet")
	// ErrForeign says that somebody else's data is here.
	ErrForeign = errors.New("this is not diskhook's")
	// ErrOtherCluster says that it belongs to another cluster or object.
	ErrOtherCluster = errors.New("it belongs to another cluster")
	// ErrVersion says that a later diskhook wrote it.
	ErrVersion = errors.New("its version is unknown to this diskhook")
	// ErrDamaged says that bytes changed after they had been committed.
	ErrDamaged = errors.New("it is damaged")
	// ErrInvalid says that contents are whole and yet break a rule.
	ErrInvalid = errors.New("its contents contradict themselves")
	// ErrStale says that a later master has been here.
	ErrStale = errors.New("a master of a later epoch was here")
	// ErrMoved says that somebody committed since the state was read.
	ErrMoved = errors.New("somebody else committed since")
	// ErrExists says that it was made before.
	ErrExists = errors.New("it exists already")
	// ErrPending says that a request has no reply yet.
	ErrPending = errors.New("no reply yet")
	// ErrGrown says that the data volume is larger than the cluster knows.
	ErrGrown = errors.New("the volume has grown")
	// ErrShort says that what was committed last lies beyond the end: the volume was
	// extended since it was opened, and has to be opened again.
	ErrShort = errors.New("it ends before what was committed last")
	// ErrShrunk says that the data volume is smaller than the cluster needs.
	ErrShrunk = errors.New("the volume has shrunk")
)

// kinds classify them for exit codes; a sentinel that is missing here is a
// plain failure.
var kinds = map[error]*failure.Kind{
	ErrEmpty:        failure.Precondition,
	ErrForeign:      failure.Precondition,
	ErrOtherCluster: failure.Precondition,
	ErrVersion:      failure.Precondition,
	ErrDamaged:      failure.Problems,
	ErrInvalid:      failure.Problems,
	ErrStale:        failure.Conflict,
	ErrMoved:        failure.Temporary,
	ErrExists:       failure.Conflict,
	ErrPending:      failure.Temporary,
	ErrGrown:        failure.Precondition,
	ErrShort:        failure.Temporary,
	ErrShrunk:       failure.Precondition,
}

// wayOut is a command for each kind of object and reason; "" as the kind holds
// for all.
var wayOut = map[Kind]map[error]string{
	"": {
		ErrForeign:      "look at it with `lvs -o +lv_tags` and `blkid -p`: if its data is not needed, remove the volume and run the verb again",
		ErrOtherCluster: "detach the LUN of the other cluster, or name its volume group in the cluster's definition",
		ErrVersion:      "install the diskhook that the other hosts of the cluster run",
		ErrDamaged:      "run `diskhook thin check`; it names what is left of it and how to go on",
		ErrInvalid:      "run `diskhook thin check`; it names what is left of it and how to go on",
		ErrStale:        "this host is not the master any more: run the verb again, it goes to the one that is",
		ErrMoved:        "run the verb again",
		ErrExists:       "see `diskhook thin status`",
		ErrShort:        "run the verb again; if it says the same, the volume is shorter than it was: extend it with `lvextend` on the master",
		ErrPending:      "see on the master whether `diskhook thin monitor --master` runs, then run the verb again",
	},
	KindMap: {
		ErrEmpty:   "run `diskhook thin init-cluster`",
		ErrDamaged: "run `diskhook thin check --rebuild-map` on the master",
		ErrInvalid: "run `diskhook thin check --rebuild-map` on the master",
	},
	KindLabel: {
		ErrEmpty:  "run `diskhook thin init-cluster`",
		ErrGrown:  "run `diskhook thin grow`",
		ErrShrunk: "extend the logical volume to its former size with `lvextend`, or find the physical volume that is missing with `vgs -o +missing_pv_count`",
	},
	KindHost: {
		ErrEmpty:   "run `diskhook thin init-host` on that host",
		ErrStale:   "this host was recovered by another: run `diskhook thin init-host --rejoin` on it",
		ErrDamaged: "fence the host, then run `diskhook thin recover` on the master and `diskhook thin init-host --rejoin` on the host",
	},
	KindVolume: {
		ErrEmpty: "run `diskhook thin check`; it says where the mapping of the volume is",
	},
	KindRequest: {ErrDamaged: "run the verb again"},
	KindReply:   {ErrDamaged: "run the verb again"},
}

// refuse makes the error of an object: kind, reason and way out.
func (p place) refuse(reason error, format string, args ...any) error {
	kind := kinds[reason]
	if errors.Is(reason, ErrDamaged) && (p.kind == KindRequest || p.kind == KindReply) {
		kind = failure.Temporary // somebody may be writing it
	}
	err := failure.New(kind, "%s: %w: "+format, append([]any{p, reason}, args...)...)
	hint, ok := wayOut[p.kind][reason]
	if !ok {
		hint = wayOut[""][reason]
	}
	return failure.Hint(err, "%s", hint)
}
