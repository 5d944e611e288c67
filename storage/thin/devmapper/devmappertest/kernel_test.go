// SPDX-License-Identifier: Apache-2.0

package devmappertest_test

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/directio"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
)

func TestBehaviours(t *testing.T) {
	devmappertest.Behaviours(t, func(*testing.T) devmappertest.Lab {
		return devmappertest.In(devmappertest.NewKernel(devmappertest.NewSAN()))
	})
}

const block = 64 << 10

// boot makes a host with a pool on two disks of a SAN, and a thin device.
func boot(t *testing.T, san *devmappertest.SAN, metadata, data string) *devmappertest.Kernel {
	t.Helper()
	k := devmappertest.NewKernel(san)
	create := func(name string, table devmapper.Table) string {
		info, err := k.Create(t.Context(), name, "", table)
		if err != nil {
			t.Fatal(err)
		}
		return info.Device()
	}
	m := create("metadata", devmapper.Of(8192, devmapper.Linear{Device: metadata}))
	d := create("data", devmapper.Of(16*128, devmapper.Linear{Device: data}))
	p := create("pool", devmapper.Of(16*128, devmapper.Pool{Metadata: m, Data: d, BlockSectors: 128}))
	if err := k.Message(t.Context(), "pool", devmapper.CreateThin(1)); err != nil && !errors.Is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	create("thin", devmapper.Of(8*128, devmapper.Thin{Pool: p, ID: 1}))
	return k
}

// put writes a byte over 4 KiB at the start of a block.
func put(t *testing.T, k *devmappertest.Kernel, at int64, with byte, flush bool) {
	t.Helper()
	f, err := k.Open(t.Context(), "thin")
	if err != nil {
		t.Fatal(err)
	}
	p := directio.Buffer(4096)
	for i := range p {
		p[i] = with
	}
	_, err = f.WriteAt(p, at*block)
	if err == nil && flush {
		err = f.Flush()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, k *devmappertest.Kernel, at int64) byte {
	t.Helper()
	f, err := k.Open(t.Context(), "thin")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := directio.Buffer(4096)
	if _, err := f.ReadAt(p, at*block); err != nil {
		t.Fatal(err)
	}
	return p[0]
}

// After a crash there is what was committed: by a flush, a message, a second.
func TestCrash(t *testing.T) {
	san := devmappertest.NewSAN()
	metadata, data := san.AddDisk(4<<20), san.AddDisk(16*block)
	k := boot(t, san, metadata, data)
	put(t, k, 0, 1, true)
	put(t, k, 1, 2, false)
	if err := k.Message(t.Context(), "pool", devmapper.SetTransaction(0, 5)); err != nil {
		t.Fatal(err)
	}
	put(t, k, 2, 3, false)
	k.Elapse(2 * time.Second)
	put(t, k, 3, 4, false)
	f, err := k.Open(t.Context(), "thin")
	if err != nil {
		t.Fatal(err)
	}
	k.Crash()
	if _, err := f.WriteAt(directio.Buffer(4096), 0); err == nil {
		t.Error("a crashed host writes")
	}
	if _, err := k.Info(t.Context(), "pool"); err == nil {
		t.Error("a crashed host answers")
	}
	k = boot(t, san, metadata, data)
	for at, want := range []byte{1, 2, 3, 0} {
		if got := get(t, k, int64(at)); got != want {
			t.Errorf("block %d has %d, want %d", at, got, want)
		}
	}
	if s, err := k.Status(t.Context(), "pool", true); err != nil || s.Pool.Transaction != 5 || s.Pool.DataUsed != 3 {
		t.Errorf("%v, %v", s.Pool, err)
	}
	if v := san.Violations(); len(v) != 0 {
		t.Error(v)
	}
	boot(t, san, metadata, data)
	if v := san.Violations(); len(v) != 1 {
		t.Errorf("two hosts have one pool's metadata: %v", v)
	}
}

// Metadata that failed lose the transaction, and stay read-only until checked.
func TestBreakMetadata(t *testing.T) {
	san := devmappertest.NewSAN()
	k := boot(t, san, san.AddDisk(4<<20), san.AddDisk(16*block))
	put(t, k, 0, 1, true)
	put(t, k, 1, 2, false)
	k.BreakMetadata("pool")
	for range 2 {
		if s, err := k.Status(t.Context(), "pool", false); err != nil || s.Pool.Mode != devmapper.ReadOnly || !s.Pool.NeedsCheck || s.Pool.DataUsed != 1 {
			t.Fatalf("%v, %v", s.Pool, err)
		}
		if got := [2]byte{get(t, k, 0), get(t, k, 1)}; got != [2]byte{1, 0} {
			t.Errorf("%v", got)
		}
		if err := errors.Join(k.Suspend(t.Context(), "pool", false), k.Resume(t.Context(), "pool")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(k.Remove(t.Context(), "thin"), k.Remove(t.Context(), "pool")); err != nil {
		t.Fatal(err)
	}
	image, err := k.ReadMetadata("metadata", 0)
	if err != nil || !image.NeedsCheck || len(image.Devices[1].Mappings) != 1 {
		t.Errorf("%+v, %v", image, err)
	}
}
