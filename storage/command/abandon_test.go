// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"testing"

	"diskhook/storage/failure"
)

func TestAbandon(t *testing.T) {
	odd := errors.New("odd")
	if n, err := Abandon(t.Context(), func() (int, error) { return 7, odd }); n != 7 || !errors.Is(err, odd) {
		t.Errorf("what the work returned: %d, %v", n, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	let := make(chan bool)
	n, err := Abandon(ctx, func() (int, error) {
		cancel(odd)
		<-let
		return 7, nil
	})
	if n != 0 || !errors.Is(err, ErrNoAnswer) || !errors.Is(err, odd) || failure.KindOf(err) != failure.Temporary || err.Error() != "no answer from its storage: odd" {
		t.Errorf("work that hangs: %d, %v", n, err)
	}
	close(let)
}
