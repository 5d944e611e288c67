// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"

	"diskhook/storage/failure"
)

// ErrNoAnswer says that work was abandoned. It is a failure.Temporary.
var ErrNoAnswer = failure.Wrap(failure.Temporary, errors.New("no answer from its storage"))

// Abandon does work that may hang in the kernel, as each system call on a path
// of a dead NFS server may, and leaves it behind when ctx ends: the error is
// ErrNoAnswer then, with why the context ended. The goroutine lingers until the
// kernel lets go of it, and what it returns is dropped. The caller names the
// object.
func Abandon[T any](ctx context.Context, work func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := work()
		done <- outcome{value, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, failure.New(failure.Temporary, "%w: %w", ErrNoAnswer, context.Cause(ctx))
	}
}
