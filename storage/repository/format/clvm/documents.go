// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/repository/format"
)

// key is a document as its slot names it.
func key(kind format.Kind, id string) (byte, uuid.UUID, error) {
	if kind == format.Repository && id == format.Descriptor {
		return kinds[kind], uuid.Nil, nil
	}
	known, ok := kinds[kind]
	if !ok || kind == format.Repository || !host.IsUUID(id) {
		return 0, uuid.Nil, failure.New(failure.Usage, "%s %q: not an id", kind, id)
	}
	return known, uuid.MustParse(id), nil
}

// find looks for a document. room is the slot for it if there is none: one of the
// bucket that has more left, which is so many.
func (a *area) find(kind byte, id uuid.UUID) (found, room *slot, most int, err error) {
	var ill error
	for _, bucket := range a.buckets(kind, id) {
		all, err := a.slots(bucket, bucketSlots)
		if err != nil {
			return nil, nil, 0, err
		}
		var free []*slot
		for i := range all {
			s := &all[i]
			switch {
			case s.health != whole && kind != kinds[format.Aside]: // what is put aside was nowhere before
				ill = a.ill(*s)
			case s.health != whole:
			case s.newest.kind == kindFree:
				free = append(free, s)
			case s.newest.kind == kind && s.newest.id == id:
				return s, nil, 0, nil
			}
		}
		if len(free) > most {
			most, room = len(free), free[0]
		}
	}
	return nil, room, most, ill
}

// Read implements format.Documents.
func (p *place) Read(ctx context.Context, kind format.Kind, id string) ([]byte, error) {
	k, u, err := key(kind, id)
	if err == nil {
		err = p.follow(ctx)
	}
	if err != nil {
		return nil, err
	}
	found, _, _, err := p.area.find(k, u)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, &fs.PathError{Op: "read", Path: "lv " + p.area.name + ": " + string(kind) + " " + id, Err: fs.ErrNotExist}
	}
	return found.newest.body, nil
}

// keptSlots are those of each bucket that only WriteReserved takes.
const keptSlots = 1

// Write implements format.Documents.
func (p *place) Write(ctx context.Context, kind format.Kind, id string, data []byte, fence format.Fence) error {
	return p.put(ctx, kind, id, data, fence, keptSlots)
}

// WriteReserved implements format.Documents.
func (p *place) WriteReserved(ctx context.Context, kind format.Kind, id string, data []byte, fence format.Fence) error {
	return p.put(ctx, kind, id, data, fence, 0)
}

// put writes a document; a new one leaves kept slots. Where there is no room for it, more is
// made.
func (p *place) put(ctx context.Context, kind format.Kind, id string, data []byte, fence format.Fence, kept int) error {
	k, u, err := key(kind, id)
	if err != nil {
		return err
	}
	if len(data) > format.MaxDocument {
		return failure.New(failure.Usage, "%s %s: %d bytes are more than a document holds (%d)", kind, id, len(data), format.MaxDocument)
	}
	for {
		parts := 0
		err := p.changing(ctx, fence, func(check func() error) error {
			parts = len(p.area.all())
			found, room, left, err := p.area.find(k, u)
			if err != nil {
				return err
			}
			if found == nil && left > kept {
				found = room
			}
			if found == nil {
				return errFull
			}
			return p.replace(*found, block{kind: k, id: u, body: data}, check)
		})
		if errors.Is(err, errFull) {
			err = p.grow(ctx, fence, parts)
			if err == nil {
				continue
			}
		}
		return err
	}
}

// Remove implements format.Documents.
func (p *place) Remove(ctx context.Context, kind format.Kind, id string, fence format.Fence) error {
	k, u, err := key(kind, id)
	if err != nil {
		return err
	}
	if err := p.follow(ctx); err != nil {
		return err
	}
	if found, _, _, err := p.area.find(k, u); err != nil || found == nil {
		return err
	}
	return p.changing(ctx, fence, func(check func() error) error {
		found, _, _, err := p.area.find(k, u)
		if err != nil || found == nil {
			return err
		}
		return p.replace(*found, block{kind: kindFree}, check)
	})
}

// replace writes the next version of a slot.
func (p *place) replace(s slot, b block, check func() error) error {
	var at int64
	at, b.sequence = s.next()
	encoded := b.encode(p.area.id)
	if err := check(); err != nil {
		return err
	}
	return p.area.write(at, encoded, true)
}

// slotsLock orders the writes of all who have the repository: two must not take the
// same slot, nor write the same half.
const slotsLock = "slots"

// changing has the slots to itself, all there are. check fails once that may be over, or the change
// is not wanted any more.
func (p *place) changing(ctx context.Context, fence format.Fence, do func(check func() error) error) error {
	if err := p.stillWritable(); err != nil {
		return err
	}
	if err := p.follow(ctx); err != nil { // which may take longer than the lock is ours
		return err
	}
	l, err := p.acquire(ctx, slotsLock, true)
	if err != nil {
		return err
	}
	defer l.Release()
	if err := p.follow(ctx); err != nil {
		return err
	}
	return do(func() error { return errors.Join(fence(), l.Check()) })
}

// stillWritable asks the disk: another host may have been made the writer.
func (p *place) stillWritable() error {
	if p.area.Writer == "" {
		return nil
	}
	now := &area{dev: p.area.dev, name: p.area.name}
	if err := now.readHeader(); err != nil {
		return err
	}
	return (&place{host: p.host, vg: p.vg, area: now}).writable()
}

// listAtOnce are the buckets that List reads at once.
const listAtOnce = 32

// List implements format.Documents.
func (p *place) List(ctx context.Context, kind format.Kind) ([]string, error) {
	k, ok := kinds[kind]
	if !ok || kind == format.Repository {
		return nil, failure.New(failure.Usage, "%s: not listed", kind)
	}
	if err := p.follow(ctx); err != nil {
		return nil, err
	}
	var ids []string
	err := p.area.each(ctx, func(s slot) {
		if s.health == whole && s.newest.kind == k {
			ids = append(ids, s.newest.id.String())
		}
	})
	slices.Sort(ids)
	return ids, err
}

// each reads all slots of documents.
func (a *area) each(ctx context.Context, do func(slot)) error {
	for _, in := range a.all() {
		for from := 0; from < in.buckets; from += listAtOnce {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(listAtOnce, in.buckets-from)
			all, err := a.slots(in.first+bucketsAt+int64(from)*bucketSize, n*bucketSlots)
			if err != nil {
				return err
			}
			for _, s := range all {
				do(s)
			}
		}
	}
	return nil
}
