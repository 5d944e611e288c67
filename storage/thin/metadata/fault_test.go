// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/thin/metadata"
)

// disk is an image that fails at a request, or that loses its power: then of
// what has not been flushed any part may be lost.
type disk struct {
	image
	failAt  int // request that fails; from 1
	calls   int
	pending []write
}

type write struct {
	at int64
	b  []byte
}

func (d *disk) request() error {
	if d.calls++; d.calls == d.failAt {
		return syscall.ENOSPC
	}
	return nil
}

func (d *disk) WriteAt(b []byte, at int64) (int, error) {
	if err := d.request(); err != nil {
		return 0, err
	}
	for ; len(b) > 0; at, b = at+metadata.BlockSize, b[metadata.BlockSize:] {
		d.pending = append(d.pending, write{at, slices.Clone(b[:metadata.BlockSize])})
	}
	return len(b), nil
}

func (d *disk) Flush() error {
	if err := d.request(); err != nil {
		return err
	}
	d.settle(func() bool { return true })
	return nil
}

// settle makes what is pending durable, as far as lucky says.
func (d *disk) settle(lucky func() bool) {
	for _, w := range d.pending {
		if lucky() {
			copy(d.image[w.at:], w.b)
		}
	}
	d.pending = nil
}

// Whenever the power goes, or a request fails, while an image is written over an
// older one: the older one is still whole, or the new one is, or there is no
// pool. There is never a mixture.
func TestPowerIsLostWhileAnImageIsWritten(t *testing.T) {
	before := small()
	before.TransactionID = 1
	before.devices = before.devices[:2]
	old := inMemory(t, before, 256)
	next := deep()
	whole := &disk{image: slices.Clone(old)}
	must(t, buildOn(whole, next))
	r := rand.New(rand.NewPCG(1, 1))
	seen := map[string]int{}
	for at := 1; at <= whole.calls; at++ {
		for range 5 {
			d := &disk{image: slices.Clone(old), failAt: at}
			err := buildOn(d, next)
			if !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, failure.NoSpace) {
				t.Fatalf("request %d failed and the builder says %v", at, err)
			}
			d.settle(func() bool { return r.IntN(2) == 0 })
			switch _, err := metadata.Open(d.image); {
			case errors.Is(err, metadata.ErrDamaged):
				seen["none"]++
			case err != nil:
				t.Fatal(err)
			default:
				report, err := metadata.Check(t.Context(), d.image, 256, metadata.CheckOptions{})
				must(t, err)
				if len(report.Problems) > 0 {
					t.Fatalf("request %d failed: %v", at, report.Problems)
				}
				got := read(t, d.image)
				if got.TransactionID == 1 {
					seen["old"]++
					equal(t, "the old image", got, before.used())
				} else {
					seen["new"]++
					equal(t, "the new image", got, next.used())
				}
			}
		}
	}
	if seen["old"] == 0 || seen["none"] == 0 || seen["new"] == 0 {
		t.Errorf("what was left: %v", seen)
	}
}

func buildOn(to metadata.Target, p pool) error {
	b, err := metadata.NewBuilder(to, 256, p.Superblock)
	if err != nil {
		return err
	}
	return p.stream(b)
}

// failing is an image of which one block cannot be read.
type failing struct {
	image
	block int64
}

func (f failing) ReadAt(b []byte, at int64) (int, error) {
	if at <= f.block*metadata.BlockSize && f.block*metadata.BlockSize < at+int64(len(b)) {
		return 0, syscall.EIO
	}
	return f.image.ReadAt(b, at)
}

// A disk that fails is no damage, which somebody might want to repair.
func TestReadErrorsAreNoDamage(t *testing.T) {
	m := inMemory(t, deep(), 240)
	r, err := metadata.Open(m)
	must(t, err)
	for block := range int64(r.Superblock().MetadataUsed) {
		report, err := metadata.Check(t.Context(), failing{m, block}, 240, metadata.CheckOptions{Sharing: true})
		if !errors.Is(err, syscall.EIO) || errors.Is(err, metadata.ErrDamaged) || len(report.Problems) > 0 {
			t.Fatalf("block %d: %v, %v", block, report.Problems, err)
		}
		err = dump(t.Context(), failing{m, block}, io.Discard)
		if err != nil && (!errors.Is(err, syscall.EIO) || errors.Is(err, metadata.ErrDamaged)) {
			t.Fatalf("block %d: %v", block, err)
		}
	}
}
