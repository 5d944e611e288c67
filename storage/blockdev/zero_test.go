// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// ranges of a target of 1 MiB; those of the edges have parts of a sector.
var ranges = []struct {
	name   string
	off, n int64
}{
	{"all", 0, 1 << 20},
	{"tail", 700 << 10, 324 << 10},
	{"tail within a sector", 1<<20 - 100, 100},
	{"whole blocks", 8192, 65536},
	{"one sector", 512, 512},
	{"within one sector", 1000, 10},
	{"across a boundary, no whole block", 4000, 200},
	{"ragged edges", 1, 1<<20 - 2},
	{"ragged start", 5000, 1<<20 - 5000},
	{"nothing", 4096, 0},
	{"nothing at the end", 1 << 20, 0},
}

// checkZeros says whether exactly [off, off+n) of b, all 0xaa before, is zero.
func checkZeros(t *testing.T, b []byte, off, n int64) {
	t.Helper()
	want := bytes.Repeat([]byte{0xaa}, 1<<20)
	clear(want[off : off+n])
	if len(b) != len(want) {
		t.Fatalf("%d bytes, want %d", len(b), len(want))
	}
	for i := range want {
		if b[i] != want[i] {
			t.Fatalf("byte %d is %#x, want %#x", i, b[i], want[i])
		}
	}
}

func TestZeroRangeOfFiles(t *testing.T) {
	for _, r := range ranges {
		t.Run(r.name, func(t *testing.T) {
			file := pattern(t, 1<<20)
			f := open(t, file)
			if err := ZeroRange(t.Context(), f, r.off, r.n); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			checkZeros(t, b, r.off, r.n)
			var st unix.Stat_t
			if err := unix.Stat(file, &st); err != nil {
				t.Fatal(err)
			}
			if st.Blocks*512 < 1<<20 {
				t.Errorf("%d bytes allocated: a hole was punched", st.Blocks*512)
			}
		})
	}
}

// writeZeros is what remains where the file system cannot mark a range.
func TestWriteZeros(t *testing.T) {
	for _, r := range ranges {
		file := pattern(t, 1<<20)
		if err := writeZeros(t.Context(), open(t, file), r.off, r.n); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		checkZeros(t, b, r.off, r.n)
	}
}

func TestZeroRangeRefuses(t *testing.T) {
	file := pattern(t, 1<<20)
	f := open(t, file)
	const far = 1<<63 - 1
	for _, r := range [][2]int64{{-1, 10}, {0, -1}, {0, 1<<20 + 1}, {1 << 20, 1}, {1<<20 + 1, 0}, {far, 1}, {1, far}, {far, far}} {
		if err := ZeroRange(t.Context(), f, r[0], r[1]); !errors.Is(err, failure.Usage) {
			t.Errorf("%d bytes at %d: %v", r[1], r[0], err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ZeroRange(ctx, f, 0, 4096); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	readOnly, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	if err := ZeroRange(t.Context(), readOnly, 0, 4096); err == nil {
		t.Error("zeroed through a read-only descriptor")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	checkZeros(t, b, 0, 0)
}
