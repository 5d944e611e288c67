// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"

	"diskhook/storage/repository/format"
)

// Grow adds a volume of documents, as if there were no slot left.
func Grow(ctx context.Context, p format.Place, fence format.Fence) error {
	place := p.(*place)
	if err := place.follow(ctx); err != nil {
		return err
	}
	return place.grow(ctx, fence, len(place.area.all()))
}

// Die ends the holder of a lock as a crash would: nothing more is written, and the
// kernel gives its local lock up.
func Die(l format.Lock) {
	h := l.(*held)
	h.heart.Stop(h.local.Release)
}

// SlotOf is where a document is in the volume of documents.
func SlotOf(p format.Place, kind format.Kind, id string) (at int64, newest int, err error) {
	k, u, err := key(kind, id)
	if err != nil {
		return 0, 0, err
	}
	found, _, _, err := p.(*place).area.find(k, u)
	if err != nil || found == nil {
		return 0, 0, err
	}
	return found.at, found.half, nil
}
