// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"context"
	"fmt"
	"io"
	"syscall"

	"diskhook/storage/directio"
	"diskhook/storage/thin/devmapper"
)

// block is an open device.
type block struct {
	k *Kernel
	d *device
}

// Open is Mapper's.
func (k *Kernel) Open(ctx context.Context, name string) (devmapper.Block, error) {
	var b *block
	err := k.with(ctx, "open", name, func(d *device) syscall.Errno {
		d.opened++
		b = &block{k, d}
		return 0
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Close is Block's.
func (b *block) Close() error {
	b.k.san.mu.Lock()
	defer b.k.san.mu.Unlock()
	b.d.opened--
	return nil
}

// outcome of one step of a request.
type outcome int

const (
	done outcome = iota
	full         // there is no space, and it waits for some
)

// each does a request step by step, each within a segment, as soon as the device
// runs. step returns how many bytes it did.
func (b *block) each(op string, off, length int64, step func(s devmapper.Segment, within, length int64) (int64, outcome, syscall.Errno)) (int64, error) {
	k := b.k
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	var did int64
	for did < length {
		var errno syscall.Errno
		s, within, ok := b.d.segment(off + did)
		switch {
		case k.dead:
			errno = syscall.EIO
		case b.d.suspended || ok && b.d.live.pool != nil && b.d.live.pool.suspended:
			k.cond.Wait()
			continue
		case !ok:
			return did, io.EOF
		default:
			var n int64
			var out outcome
			n, out, errno = step(s, within, min(length-did, int64(s.Length)*sector-within))
			if out == full {
				b.d.waiting++
				k.cond.Wait()
				b.d.waiting--
				k.cond.Broadcast()
				continue
			}
			did += n
		}
		if errno != 0 {
			return did, fmt.Errorf("%s: %s at %d: %w", b.d.name, op, off+did, errno)
		}
	}
	return did, nil
}

func aligned(p []byte, off int64) error {
	if !directio.Fits(p, off) {
		return syscall.EINVAL
	}
	return nil
}

// ReadAt is Block's.
func (b *block) ReadAt(p []byte, off int64) (int, error) {
	if err := aligned(p, off); err != nil {
		return 0, err
	}
	at := int64(0)
	n, err := b.each("read", off, int64(len(p)), func(s devmapper.Segment, within, length int64) (int64, outcome, syscall.Errno) {
		n, errno := b.k.readTarget(b.d, s, within, p[at:][:length])
		at += n
		return n, done, errno
	})
	return int(n), err
}

// readTarget reads a part of what one target serves.
func (k *Kernel) readTarget(d *device, s devmapper.Segment, within int64, p []byte) (int64, syscall.Errno) {
	switch t := s.Target.(type) {
	case devmapper.Linear:
		from, at, errno := k.locate(k.canonical(t.Device), int64(t.Start)*sector+within)
		if errno == 0 {
			from.read(p, at)
		}
		return int64(len(p)), errno
	case devmapper.Thin:
		return d.live.pool.read(t, within, p)
	}
	return 0, syscall.EIO
}

// WriteAt is Block's.
func (b *block) WriteAt(p []byte, off int64) (int, error) {
	if err := aligned(p, off); err != nil {
		return 0, err
	}
	at := int64(0)
	n, err := b.each("write", off, int64(len(p)), func(s devmapper.Segment, within, length int64) (int64, outcome, syscall.Errno) {
		part := p[at:][:length]
		switch t := s.Target.(type) {
		case devmapper.Linear:
			to, where, errno := b.k.locate(b.k.canonical(t.Device), int64(t.Start)*sector+within)
			if errno == 0 {
				to.write(part, where)
			}
			at += length
			return length, done, errno
		case devmapper.Thin:
			n, out, errno := b.d.live.pool.write(t, within, part)
			at += n
			return n, out, errno
		}
		return 0, done, syscall.EIO
	})
	return int(n), err
}

// Discard is Block's.
func (b *block) Discard(off, length int64) error {
	_, err := b.each("discard", off, length, func(s devmapper.Segment, within, length int64) (int64, outcome, syscall.Errno) {
		if t, ok := s.Target.(devmapper.Thin); ok {
			return length, done, b.d.live.pool.discard(t.ID, within, length)
		}
		return length, done, syscall.EOPNOTSUPP
	})
	return err
}

// Flush is Block's: everything is on the disks, and the metadata are committed.
func (b *block) Flush() error {
	_, err := b.each("flush", 0, 1, func(devmapper.Segment, int64, int64) (int64, outcome, syscall.Errno) {
		if p := b.d.live.pool; p != nil {
			p.commit()
		}
		return 1, done, 0
	})
	return err
}
