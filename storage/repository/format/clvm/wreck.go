// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"

	"github.com/google/uuid"

	"diskhook/storage/repository/format"
)

// Wrecks implements format.Documents: the slots of which no block can be read.
func (p *place) Wrecks(ctx context.Context) ([]format.Wreck, error) {
	if err := p.follow(ctx); err != nil {
		return nil, err
	}
	var all []format.Wreck
	err := p.area.each(ctx, func(s slot) {
		if err := p.area.ill(s); err != nil {
			all = append(all, format.Wreck{ID: p.area.wreck(s).String(), Data: s.rest(), Err: err})
		}
	})
	return all, err
}

// wreck names a slot as it is.
func (a *area) wreck(s slot) uuid.UUID {
	return uuid.NewSHA1(a.id, binary.BigEndian.AppendUint64(bytes.Clone(s.bytes), uint64(s.at)))
}

// rest is what a document has room for of a slot: the beginning of each block, as what
// follows is zero as a rule.
func (s slot) rest() []byte {
	const half = format.MaxDocument / 2
	a, b := s.bytes[:blockSize], s.bytes[blockSize:]
	return append(bytes.Clone(a[:half]), b[:half]...)
}

// ClearWreck implements format.Documents.
func (p *place) ClearWreck(ctx context.Context, id string, fence format.Fence) error {
	if err := p.follow(ctx); err != nil {
		return err
	}
	at := int64(-1)
	err := p.area.each(ctx, func(s slot) {
		if p.area.ill(s) != nil && p.area.wreck(s).String() == id {
			at = s.at
		}
	})
	gone := &fs.PathError{Op: "clear", Path: "lv " + p.area.name + ": " + id, Err: fs.ErrNotExist}
	switch {
	case err != nil:
		return err
	case at < 0:
		return gone
	}
	return p.changing(ctx, fence, func(check func() error) error {
		all, err := p.area.slots(at, 1)
		if err != nil {
			return err
		}
		if s := all[0]; p.area.ill(s) == nil || p.area.wreck(s).String() != id {
			return gone
		}
		return p.replace(all[0], block{kind: kindFree}, check)
	})
}
