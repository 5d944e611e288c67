// SPDX-License-Identifier: Apache-2.0

package qcow2map_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/qcow2map"
)

func tool(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s (install qemu-utils)", name, args, err, out)
	}
	return out
}

// image makes one with random writes, some of zeros, some discarded.
func image(t testing.TB, options string, size int64, seed uint64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, fmt.Sprint(size))
	r := rand.New(rand.NewPCG(seed, 1))
	io := []string{"-f", "qcow2"}
	for i := range 24 {
		off := r.Int64N(size/512) * 512
		length := min(size-off, (1+r.Int64N(600))*512)
		verb := []string{"write -P 7", "write -P 9", "write -z", "discard"}[i%4]
		io = append(io, "-c", fmt.Sprintf("%s %d %d", verb, off, length))
	}
	tool(t, "qemu-io", append(io, path)...)
	return path
}

// QEMU itself says the same of every byte, and where it lies.
func TestAgreesWithQEMU(t *testing.T) {
	for i, options := range []string{
		"cluster_size=65536", "cluster_size=512", "cluster_size=4096,compat=0.10", "cluster_size=2M,preallocation=metadata",
		"lazy_refcounts=on,refcount_bits=1", "compression_type=zstd",
	} {
		t.Run(options, func(t *testing.T) {
			size := int64(5<<20 + 1024)
			path := image(t, options, size, uint64(i))
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m, err := qcow2map.Open(f)
			if err != nil || m.Size() != size {
				t.Fatalf("size %d, %v", m.Size(), err)
			}
			var extents []struct {
				Start, Length int64
				Data, Zero    bool
				Present       *bool
				Offset        *int64
			}
			if err := json.Unmarshal(tool(t, "qemu-img", "map", "--output=json", "-f", "qcow2", path), &extents); err != nil {
				t.Fatal(err)
			}
			for off := int64(0); off < size; {
				x, err := m.Next(off)
				if err != nil || x.Off != off || x.Len <= 0 || x.Off+x.Len > size {
					t.Fatalf("at %d: %+v, %v", off, x, err)
				}
				for at := off; at < off+x.Len; at += 512 {
					for _, q := range extents {
						if at < q.Start || at >= q.Start+q.Length {
							continue
						}
						// A preallocated cluster lies beyond the end of the file, where it reads as zeros.
						if q.Data && (x.Kind != qcow2map.Data || *q.Offset+at-q.Start != x.At+at-off) || x.Kind == qcow2map.Zero && !q.Zero {
							t.Fatalf("at %d: %+v, QEMU says %+v", at, x, q)
						}
					}
				}
				off += x.Len
			}
		})
	}
}

func TestRefused(t *testing.T) {
	good, err := os.ReadFile(image(t, "cluster_size=4096", 1<<20, 1))
	if err != nil {
		t.Fatal(err)
	}
	l1 := int(binary.BigEndian.Uint64(good[40:]))
	l2 := int(binary.BigEndian.Uint64(good[l1:]) & (1<<56 - 1<<9))
	for name, c := range map[string]struct {
		at    int
		value uint64
		want  error
	}{
		"no magic":            {0, 0, qcow2map.ErrCorrupt},
		"data file":           {72, 4, qcow2map.ErrUnsupported},
		"subclusters":         {72, 16, qcow2map.ErrUnsupported},
		"encrypted":           {32, 1 << 32, qcow2map.ErrUnsupported},
		"size":                {24, 1 << 63, qcow2map.ErrCorrupt},
		"L1 too small":        {24, 1 << 40, qcow2map.ErrCorrupt},
		"L1 out of line":      {40, 12345, qcow2map.ErrCorrupt},
		"L2 out of line":      {l1, 4096 + 512, qcow2map.ErrCorrupt},
		"cluster out of line": {l2, 4096 + 512, qcow2map.ErrCorrupt},
		"compressed":          {l2, 1<<62 | 4096, qcow2map.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			bad := bytes.Clone(good)
			binary.BigEndian.PutUint64(bad[c.at:], c.value)
			m, err := qcow2map.Open(bytes.NewReader(bad))
			if err == nil {
				_, err = m.Next(0)
			}
			if !errors.Is(err, c.want) || errors.Is(c.want, qcow2map.ErrCorrupt) && failure.KindOf(err) != failure.Precondition {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	// What lies beyond the end of the file is zeros, tables too.
	m, err := qcow2map.Open(bytes.NewReader(good[:l2]))
	if err != nil {
		t.Fatal(err)
	}
	if x, err := m.Next(0); err != nil || x.Kind != qcow2map.Unallocated {
		t.Errorf("an L2 table beyond the end: %+v, %v", x, err)
	}
	for _, off := range []int64{-1, 1 << 20} {
		if _, err := m.Next(off); err == nil {
			t.Errorf("no error at %d", off)
		}
	}
}

// Whatever the tables say, extents tile the disk, and nothing panics.
func FuzzMap(f *testing.F) {
	for i, options := range []string{"cluster_size=512", "cluster_size=4096,compat=0.10", "cluster_size=1024,extended_l2=off"} {
		seed, err := os.ReadFile(image(f, options, 200<<10, uint64(i)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed[:min(len(seed), 64<<10)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := qcow2map.Open(bytes.NewReader(b))
		if err != nil {
			return
		}
		for off, n := int64(0), 0; off < m.Size() && n < 1000; n++ {
			x, err := m.Next(off)
			if err != nil {
				return
			}
			if x.Off != off || x.Len <= 0 || x.Len > m.Size()-off || x.At < 0 {
				t.Fatalf("at %d of %d: %+v", off, m.Size(), x)
			}
			off += x.Len
		}
	})
}
