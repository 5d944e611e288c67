// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// ErrStarts is why a settling ended that a start of the domain did not wait
// for. It is a failure.Temporary.
var ErrStarts = failure.Wrap(failure.Temporary, errors.New("its domain starts, which does not wait for that"))

// errSettleCancelled is why a settling ended that `local cancel` stopped.
var errSettleCancelled = failure.Wrap(failure.Temporary, errors.New("its settling was cancelled"))

// Cancellable ends the context when `local cancel` asks for it, or a start of
// the domain, which is ErrStarts. Both leave the overlay as the disk.
func (t *Settling) Cancellable(ctx context.Context) (context.Context, func()) {
	goOn := func(err error) error {
		return failure.Hint(err, "the next settling goes on: by diskhook-settle.timer, or with `diskhook local settle %s`", t.Disk.args())
	}
	return t.service.cancellable(ctx, t.Disk, func(why string) error {
		if why == cancelForStart {
			return goOn(ErrStarts)
		}
		return goOn(errSettleCancelled)
	})
}

// yield asks who settles the disk offline to stop, as its domain starts: the
// overlay is ready as it is.
func (s *Service) yield(d Disk) {
	held, err := lock.Held(s.Layout.Locks(), settleLock(d.Domain, d.Key()))
	if err != nil || !held {
		return
	}
	if err := atomicfile.WriteVolatile(s.cancelPath(d.Domain, d.Key()), []byte(cancelForStart), 0o600); err != nil {
		s.Log.Warn("stop the settling of a disk", "disk", d.String(), "err", err)
	}
}
