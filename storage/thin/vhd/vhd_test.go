// SPDX-License-Identifier: Apache-2.0

package vhd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/vhd"
)

var id = uuid.MustParse("0c9fd3f1-94f0-4d6f-8d59-8a3f1f8f9b02")

// disk has random data in ranges and zeros elsewhere.
func disk(size int64, ranges []vhd.Range) []byte {
	b := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	for _, r := range ranges {
		_, _ = random.Read(b[r.Offset:r.End()])
	}
	return b
}

func write(t interface{ Fatal(...any) }, size int64, ranges []vhd.Range) (raw, image []byte) {
	raw = disk(size, ranges)
	var out bytes.Buffer
	err := vhd.Write(context.Background(), &out, vhd.Image{Size: size, UUID: id, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}, ranges, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return raw, out.Bytes()
}

// QEMU reads the disk that was written, at its size, with data where it is.
func TestQEMUReadsIt(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		size   int64
		ranges []vhd.Range
	}{
		"empty":                {64 << 20, nil},
		"one sector":           {512, []vhd.Range{{Offset: 0, Length: 512}}},
		"an odd size":          {5<<20 + 3*512, []vhd.Range{{Offset: 4 << 20, Length: 1<<20 + 3*512}}},
		"across blocks":        {64 << 20, []vhd.Range{{Offset: 1 << 20, Length: 4 << 20}, {Offset: 20<<20 + 512, Length: 512}, {Offset: 20<<20 + 4096, Length: 1 << 20}}},
		"a table of 2 sectors": {258 << 20, []vhd.Range{{Offset: 258<<20 - 64<<10, Length: 64 << 10}}},
	} {
		t.Run(name, func(t *testing.T) {
			raw, image := write(t, c.size, c.ranges)
			dir := t.TempDir()
			sparse(t, filepath.Join(dir, "raw"), raw, c.ranges)
			sparse(t, filepath.Join(dir, "vhd"), image, []vhd.Range{{Offset: 0, Length: int64(len(image))}})
			out, err := exec.Command("qemu-img", "compare", "-f", "vpc", "-F", "raw", filepath.Join(dir, "vhd"), filepath.Join(dir, "raw")).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "Images are identical") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// sparse writes the ranges of content that have data.
func sparse(t *testing.T, path string, content []byte, ranges []vhd.Range) {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for _, r := range ranges {
		if _, err := f.WriteAt(content[r.Offset:r.End()], r.Offset); err != nil {
			t.Fatal(err)
		}
	}
}

// What QEMU writes is read, by ReadAt and by ranges.
func TestReadQEMUs(t *testing.T) {
	dir := t.TempDir()
	raw := disk(10<<20, []vhd.Range{{Offset: 3 << 20, Length: 2 << 20}, {Offset: 9 << 20, Length: 512}})
	if err := os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	convert := func(options string) *os.File {
		path := filepath.Join(dir, "vhd")
		if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, filepath.Join(dir, "raw"), path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	f := convert("subformat=dynamic,force_size=on")
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := vhd.Open(f, st.Size()+4<<20) // a volume is longer
	if err != nil {
		t.Fatal(err)
	}
	same(t, r, raw)
	f = convert("subformat=fixed,force_size=on")
	_, err = vhd.Open(f, 10<<20+512)
	if !errors.Is(err, vhd.ErrImage) {
		t.Errorf("a fixed image: %v", err)
	}
}

func same(t interface{ Fatalf(string, ...any) }, r *vhd.Reader, raw []byte) {
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size))
	if err != nil || !bytes.Equal(got, raw) {
		t.Fatalf("%d bytes, %v, equal to %d: %t", len(got), err, len(raw), bytes.Equal(got, raw))
	}
	only := make([]byte, len(raw))
	err = r.Ranges(func(x vhd.Range) error {
		_, err := r.ReadAt(only[x.Offset:x.End()], x.Offset)
		return err
	})
	if err != nil || !bytes.Equal(only, raw) {
		t.Fatalf("by ranges: %v", err)
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 16<<11).Draw(t, "sectors") * 512
		var ranges []vhd.Range
		for at := int64(0); at < size && len(ranges) < 6; {
			r := vhd.Range{Offset: at + rapid.Int64Range(1, 9000).Draw(t, "gap")*512, Length: rapid.Int64Range(1, 9000).Draw(t, "length") * 512}
			if r.End() > size {
				break
			}
			ranges, at = append(ranges, r), r.End()
		}
		raw, image := write(t, size, ranges)
		r, err := vhd.Open(bytes.NewReader(image), int64(len(image)))
		if err != nil || r.UUID != id || r.Size != size {
			t.Fatalf("%+v, %v", r, err)
		}
		same(t, r, raw)
		var got []vhd.Range
		_ = r.Ranges(func(x vhd.Range) error { got = append(got, x); return nil })
		if diff := cmp.Diff(ranges, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestRefusesToWrite(t *testing.T) {
	for name, c := range map[string]struct {
		size   int64
		ranges []vhd.Range
	}{
		"too large":    {vhd.MaxSize + 512, nil},
		"no size":      {0, nil},
		"half sectors": {1000, nil},
		"beyond":       {1024, []vhd.Range{{Offset: 512, Length: 1024}}},
		"overlap":      {4096, []vhd.Range{{Offset: 0, Length: 1024}, {Offset: 512, Length: 512}}},
		"odd":          {4096, []vhd.Range{{Offset: 1, Length: 512}}},
	} {
		var out bytes.Buffer
		if err := vhd.Write(t.Context(), &out, vhd.Image{Size: c.size}, c.ranges, bytes.NewReader(nil)); err == nil || out.Len() != 0 {
			t.Errorf("%s: %v, %d bytes", name, err, out.Len())
		}
	}
}

// The data that is missing is an error, not zeros.
func TestShortData(t *testing.T) {
	err := vhd.Write(t.Context(), io.Discard, vhd.Image{Size: 4096}, []vhd.Range{{Offset: 0, Length: 4096}}, bytes.NewReader(make([]byte, 100)))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestRefusesToRead(t *testing.T) {
	_, good := write(t, 8<<20, []vhd.Range{{Offset: 0, Length: 4 << 20}})
	for name, change := range map[string]func(b []byte) []byte{
		"zeros":                   func(b []byte) []byte { return make([]byte, len(b)) },
		"footer's checksum":       func(b []byte) []byte { b[70] ^= 1; return b },
		"header's checksum":       func(b []byte) []byte { b[512+60] ^= 1; return b },
		"two blocks at one place": func(b []byte) []byte { copy(b[1536:1540], b[1540:1544]); return b },
		"a block in the header":   func(b []byte) []byte { copy(b[1536:], []byte{0, 0, 0, 1}); return b },
		"a block far away":        func(b []byte) []byte { copy(b[1536:], []byte{0xff, 0, 0, 1}); return b },
		"cut off":                 func(b []byte) []byte { return b[:4<<20] },
		"cut off in the table":    func(b []byte) []byte { return b[:1536] },
	} {
		b := change(bytes.Clone(good))
		r, err := vhd.Open(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, vhd.ErrImage) || failure.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// FuzzOpen: nothing panics or reads far, whatever an image says; checksums are put
// right so that the fuzzer gets past them.
func FuzzOpen(f *testing.F) {
	_, good := write(f, 4<<20, []vhd.Range{{Offset: 0, Length: 512}})
	f.Add(good[:8192], true)
	f.Add(good[:1536], false)
	f.Fuzz(func(t *testing.T, b []byte, reseal bool) {
		if reseal && len(b) >= 1536 {
			seal(b[:512], 64)
			seal(b[512:1536], 36)
		}
		r, err := vhd.Open(bytes.NewReader(b), 8<<20)
		if err != nil {
			return
		}
		part := make([]byte, 5000)
		_, _ = r.ReadAt(part, 0)
		_, _ = r.ReadAt(part, r.Size-100)
		n := 0
		_ = r.Ranges(func(vhd.Range) error {
			if n++; n > 10 {
				return io.EOF
			}
			return nil
		})
	})
}

func seal(b []byte, at int) {
	clear(b[at:][:4])
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	sum = ^sum
	b[at], b[at+1], b[at+2], b[at+3] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
}
