// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"iter"

	"diskhook/storage/directio"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/metadata"
)

// Windows reads and writes the dm-thin metadata on a window, which is mapped under
// a name. Native does it on a real kernel; a kernel in memory keeps its metadata
// otherwise.
type Windows interface {
	// Write begins an image on a window that no pool has; Finish makes it count.
	Write(ctx context.Context, name string, blocks uint64, sb metadata.Superblock) (Image, error)
	// Read opens the metadata: of a pool that runs the metadata snapshot, of which
	// held is the root, and with 0 what is there while no pool has it.
	Read(ctx context.Context, name string, held uint64) (*metadata.Reader, func() error, error)
	// Roots are what metadata.Reader.MappingRoots says of the metadata snapshot of a
	// pool that runs.
	Roots(ctx context.Context, name string, held uint64) (map[uint32]uint64, error)
	// Retire has a window that no pool has hold no metadata any more. A kernel that
	// is given it refuses it.
	Retire(ctx context.Context, name string) error
}

// Image is metadata that are being written.
type Image interface {
	handover.Draft
	// Written lists what is mapped by a device that Ahead began, as it is on the
	// window, where it is durable. Only Device, Ahead, Drop and Finish may
	// follow.
	Written(id uint32) iter.Seq2[metadata.Run, error]
	// Drop takes back a device that Ahead began.
	Drop(id uint32) error
	Close() error
}

// Native is package metadata on mapped devices.
type Native struct{ Mapper devmapper.Mapper }

type image struct {
	*metadata.Builder
	devmapper.Block
}

func (i image) Written(id uint32) iter.Seq2[metadata.Run, error] {
	return i.Builder.Written(i.Block, id)
}

func (i image) Drop(id uint32) error { return i.Builder.Drop(i.Block, id) }

// Write is Windows'.
func (n Native) Write(ctx context.Context, name string, blocks uint64, sb metadata.Superblock) (Image, error) {
	dev, err := n.Mapper.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := metadata.NewBuilder(dev, blocks, sb)
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return image{b, dev}, nil
}

// Read is Windows'.
func (n Native) Read(ctx context.Context, name string, held uint64) (*metadata.Reader, func() error, error) {
	dev, err := n.Mapper.Open(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	r, err := metadata.Open(dev)
	if err == nil && held != 0 {
		r, err = r.Snapshot()
	}
	if err != nil {
		return nil, nil, errors.Join(err, dev.Close())
	}
	return r, dev.Close, nil
}

// Roots is Windows'.
func (n Native) Roots(ctx context.Context, name string, held uint64) (map[uint32]uint64, error) {
	r, done, err := n.Read(ctx, name, held)
	if err != nil {
		return nil, err
	}
	roots, err := r.MappingRoots()
	return roots, errors.Join(err, done())
}

// retired is what block 0 begins with. It must not be zeros: of those the kernel
// would make a new pool, in which every block is free.
const retired = "diskhook: the metadata that were here are used no more\n"

// Retire is Windows'.
func (n Native) Retire(ctx context.Context, name string) error {
	dev, err := n.Mapper.Open(ctx, name)
	if err != nil {
		return err
	}
	b := directio.Buffer(metadata.BlockSize)
	copy(b, retired)
	_, err = dev.WriteAt(b, 0)
	return errors.Join(err, dev.Flush(), dev.Close())
}
