// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"errors"

	"diskhook/storage/failure"
)

// What a verb refuses for. Each is a kind of package failure as well.
var (
	ErrRepoIDInUse  = failure.Wrap(failure.Conflict, errors.New("that repository id is in use"))
	ErrNotConnected = failure.Wrap(failure.NotFound, errors.New("no such repository is connected"))
	ErrNoImage      = failure.Wrap(failure.NotFound, errors.New("no such image"))
	ErrNotSnapshot  = failure.Wrap(failure.Usage, errors.New("it is mutable, not a snapshot"))
	ErrNotDisk      = failure.Wrap(failure.Usage, errors.New("it is immutable, not a virtual disk"))
	ErrNotAncestor  = failure.Wrap(failure.Usage, errors.New("it is no ancestor"))
	ErrInUse        = failure.Wrap(failure.Conflict, errors.New("it is in use"))
	ErrBusy         = failure.Wrap(failure.Conflict, errors.New("somebody works on it"))
	ErrStaleFix     = failure.Wrap(failure.Conflict, errors.New("the fix is stale"))
	ErrBroken       = failure.Wrap(failure.Precondition, errors.New("its data is not there"))
	ErrStopped      = failure.Wrap(failure.Conflict, errors.New("stopped by request"))
	ErrUnreachable  = failure.Wrap(failure.Temporary, errors.New("the repository does not answer"))
	ErrVersion      = failure.Wrap(failure.Precondition, errors.New("of a version that is not known here"))
	ErrDamaged      = failure.Wrap(failure.Problems, errors.New("damaged document"))
)

// errSuperseded says that the plan which a worker walks is not the image's any
// more: it was removed, or taken over.
var errSuperseded = failure.Wrap(failure.Conflict, errors.New("its plan was replaced meanwhile"))
