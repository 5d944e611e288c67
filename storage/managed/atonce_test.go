// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"errors"
	"sync"
	"testing"
)

// Sixteen that wait hold up nobody but each other, and of two that fail the
// first in order is told of.
func TestAtOnce(t *testing.T) {
	var begun sync.WaitGroup
	begun.Add(16)
	first := errors.New("first")
	err := atOnce(40, func(i int) error {
		switch {
		case i < 16:
			begun.Done()
			begun.Wait()
		case i == 20:
			return first
		case i == 30:
			return errors.New("second")
		}
		return nil
	})
	if !errors.Is(err, first) {
		t.Error(err)
	}
	if err := atOnce(0, nil); err != nil {
		t.Error(err)
	}
}
