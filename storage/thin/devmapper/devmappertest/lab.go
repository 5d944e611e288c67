// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"diskhook/storage/directio"
	"diskhook/storage/thin/devmapper"
)

// Lab is a kernel with what an experiment needs besides it.
type Lab struct {
	Mapper devmapper.Mapper
	// Disk makes a device of zeros, of so many bytes, for the time of a test, and
	// returns its name.
	Disk func(t *testing.T, bytes int64) string
	// Write and Read are a tool for metadata on a device; see Kernel's WriteMetadata
	// and ReadMetadata.
	Write func(device string, image Image) error
	Read  func(device string, root uint64) (Image, error)
	// Elapse lets so much time pass for the kernel.
	Elapse func(time.Duration)
}

// In is the lab of a kernel in memory.
func In(k *Kernel) Lab {
	disks := 0
	return Lab{
		Mapper: k, Write: k.WriteMetadata, Read: k.ReadMetadata, Elapse: k.Elapse,
		Disk: func(t *testing.T, bytes int64) string {
			t.Helper()
			name := fmt.Sprintf("disk%d", disks)
			disks++
			if _, err := k.Create(t.Context(), name, "", devmapper.Of(uint64(bytes/sector), devmapper.Linear{Device: k.san.AddDisk(bytes)})); err != nil {
				t.Fatal(err)
			}
			return name
		},
	}
}

// What experiments work with.
const (
	blockSize    = 64 << 10 // bytes
	blockSectors = blockSize / sector
	metadataSize = 4 << 20 // bytes
)

// bench is one experiment.
type bench struct {
	*testing.T
	Lab
	ctx context.Context
}

// must fails the test at once.
func (b bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// number is how tables name a device.
func (b bench) number(name string) string {
	b.Helper()
	info, err := b.Mapper.Info(b.ctx, name)
	b.must(err)
	return info.Device()
}

// create makes a device for the time of the test, of those that are still there
// the last first.
func (b bench) create(name string, t devmapper.Table) error {
	_, err := b.Mapper.Create(b.ctx, name, "", t)
	if err == nil {
		b.Cleanup(func() {
			if _, err := b.Mapper.Info(b.ctx, name); err == nil {
				_ = b.Mapper.Resume(b.ctx, name) // what is suspended would wait for ever
				if err := b.Mapper.Remove(b.ctx, name); err != nil {
					b.Error(err)
				}
			}
		})
	}
	return err
}

// rig is a pool with its disks.
type rig struct {
	bench
	name, metadata, data string
}

func (r rig) spec() devmapper.Pool {
	return devmapper.Pool{
		Metadata: r.number(r.metadata), Data: r.number(r.data), BlockSectors: blockSectors, Features: devmapper.Features{NoPassdown: true},
	}
}

// pool makes a pool of an image, which has all the blocks of a new data disk.
func (b bench) pool(name string, image Image) rig {
	b.Helper()
	r := rig{b, name, b.Disk(b.T, metadataSize), b.Disk(b.T, int64(image.Blocks)*blockSize)}
	if image.Devices != nil {
		b.must(b.Write(r.metadata, image))
	}
	b.must(b.create(name, devmapper.Of(image.Blocks*blockSectors, r.spec())))
	return r
}

// thin makes a thin device that is known to the pool.
func (r rig) thin(name string, id uint32, blocks uint64) {
	r.Helper()
	r.must(r.create(name, devmapper.Of(blocks*blockSectors, devmapper.Thin{Pool: r.number(r.name), ID: id})))
}

func (r rig) status() devmapper.PoolStatus {
	r.Helper()
	s, err := r.Mapper.Status(r.ctx, r.name, false)
	r.must(err)
	return *s.Pool
}

func (r rig) message(m devmapper.Message) {
	r.Helper()
	r.must(r.Mapper.Message(r.ctx, r.name, m))
}

// mappings of a device, read through a metadata snapshot.
func (r rig) mappings(id uint32) map[uint64]Mapped {
	r.Helper()
	r.message(devmapper.ReserveSnapshot())
	image, err := r.Read(r.metadata, r.status().HeldRoot)
	r.must(err)
	r.message(devmapper.ReleaseSnapshot())
	return image.Devices[id].Mappings
}

// write writes 4 KiB of a byte into a virtual block, flushed.
func (b bench) write(device string, block uint64, with byte) error {
	f, err := b.Mapper.Open(b.ctx, device)
	if err != nil {
		return err
	}
	defer f.Close()
	p := directio.Buffer(page)
	for i := range p {
		p[i] = with
	}
	if _, err := f.WriteAt(p, int64(block)*blockSize); err != nil {
		return err
	}
	return f.Flush()
}

// reads wants 4 KiB of a byte.
func (b bench) reads(device string, block uint64, want byte) {
	b.Helper()
	f, err := b.Mapper.Open(b.ctx, device)
	b.must(err)
	defer f.Close()
	p := directio.Buffer(page)
	_, err = f.ReadAt(p, int64(block)*blockSize)
	b.must(err)
	if !bytes.Equal(p, bytes.Repeat([]byte{want}, page)) {
		b.Errorf("%s: block %d begins with %#x, want all %#x", device, block, p[0], want)
	}
}

// discard discards virtual blocks.
func (b bench) discard(device string, off, length int64) error {
	f, err := b.Mapper.Open(b.ctx, device)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Discard(off, length)
}

// patience is how long something may take that surely comes.
const patience = 5 * time.Minute

// within waits until what is so.
func (b bench) within(what string, is func() bool) {
	b.Helper()
	for until := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			b.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// ends wants a request that waited to end by now.
func (b bench) ends(request <-chan error) error {
	b.Helper()
	select {
	case err := <-request:
		return err
	case <-time.After(patience):
		b.Fatalf("a request still waits after %v", patience)
		return nil
	}
}

// identity maps every block to itself but some.
func identity(blocks uint64, but ...uint64) ThinImage {
	d := ThinImage{Mappings: map[uint64]Mapped{}}
	for v := range blocks {
		d.Mappings[v] = Mapped{Block: v}
	}
	for _, v := range but {
		delete(d.Mappings, v)
	}
	return d
}
