// SPDX-License-Identifier: Apache-2.0

package stream_test

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

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/stream"
	"diskhook/storage/thin/vhd"
)

// dataVolume is the cluster's, with random data in every block, as other volumes
// have theirs there.
func dataVolume(t testing.TB) (*layout.Volume, []byte) {
	t.Helper()
	b := make([]byte, geometry.Bytes())
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	path := filepath.Join(t.TempDir(), layout.DataName)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := layout.Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v, b
}

// disk is what the volume has, put together by hand.
func disk(data []byte) []byte {
	b := make([]byte, 161*blockSize)
	for _, r := range mapping().Runs {
		copy(b[r.Virtual*blockSize:(r.Virtual+r.Length)*blockSize], data[r.Physical*blockSize:])
	}
	return b[:record.Size]
}

func qemu(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// QEMU reads from the VHD what the volume has, and finds no more data in it.
func TestQEMUReadsTheVHD(t *testing.T) {
	volume, data := dataVolume(t)
	dir := t.TempDir()
	image, raw := filepath.Join(dir, "vhd"), filepath.Join(dir, "raw")
	var out bytes.Buffer
	contents := streamOf(t).Contents(volume)
	if err := contents.WriteVHD(t.Context(), &out, record.UUID, time.Unix(1767323045, 0)); err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{image: out.Bytes(), raw: disk(data)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if said := qemu(t, "compare", "-f", "vpc", "-F", "raw", image, raw); !strings.Contains(said, "identical") {
		t.Error(said)
	}
	// Two footers, a header, a table of five entries, and blocks 0, 1 and 5 of 2 MiB.
	if want := 2*512 + 1024 + 512 + 3*(512+2<<20); out.Len() != want {
		t.Errorf("an image of %d bytes, want %d", out.Len(), want)
	}
	back, err := stream.OfVHD(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(contents.Ranges, back.Ranges); diff != "" || back.Size != contents.Size {
		t.Errorf("%d bytes: %s", back.Size, diff)
	}
	same(t, back, disk(data))
}

// sink is a disk of zeros that notes what was written.
type sink struct {
	content []byte
	written int64
}

func (s *sink) WriteAt(p []byte, off int64) (int, error) {
	s.written += int64(len(p))
	return copy(s.content[off:], p), nil
}

func same(t *testing.T, c stream.Contents, want []byte) {
	t.Helper()
	to := &sink{content: make([]byte, c.Size)}
	var done, total int64
	if err := c.Copy(t.Context(), to, func(d, of int64) { done, total = d, of }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(to.content, want) {
		t.Errorf("the copy of %d bytes differs", c.Size)
	}
	if done != total || total == 0 {
		t.Errorf("reported %d of %d", done, total)
	}
}

func TestCopy(t *testing.T) {
	volume, data := dataVolume(t)
	same(t, streamOf(t).Contents(volume), disk(data))
}

func TestCopyLeavesZerosOut(t *testing.T) {
	b := make([]byte, 4<<20+512)
	b[100], b[3<<20] = 1, 2
	b[len(b)-1] = 3
	c := stream.Contents{Size: int64(len(b)), Data: bytes.NewReader(b), Ranges: []vhd.Range{{Offset: 0, Length: int64(len(b))}}}
	to := &sink{content: make([]byte, len(b))}
	if err := c.Copy(t.Context(), to, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(to.content, b) || to.written != 2*64<<10+512 {
		t.Errorf("%d bytes were written; equal: %v", to.written, bytes.Equal(to.content, b))
	}
}

func TestCopyStops(t *testing.T) {
	b := make([]byte, 4<<20)
	c := stream.Contents{Size: 8 << 20, Data: bytes.NewReader(b), Ranges: []vhd.Range{{Offset: 0, Length: 8 << 20}}}
	if err := c.Copy(t.Context(), &sink{content: make([]byte, 8<<20)}, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("data that is missing: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if err := c.Copy(ctx, &sink{}, nil); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
}

// A raw file is imported without its holes, a size that is no disk's is refused.
func TestRaw(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 64<<20+512)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(b[8<<20 : 9<<20])
	b[len(b)-1] = 1
	for _, r := range []vhd.Range{{Offset: 8 << 20, Length: 1 << 20}, {Offset: 64 << 20, Length: 512}} {
		if _, err := f.WriteAt(b[r.Offset:r.End()], r.Offset); err != nil {
			t.Fatal(err)
		}
	}
	c, err := stream.OfRaw(f, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	same(t, c, b)
	var known int64
	for _, r := range c.Ranges {
		known += r.Length
	}
	if known > 32<<20 {
		t.Errorf("%d bytes of holes are read", known)
	}
	if _, err := stream.OfRaw(f, 513); !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "truncate") {
		t.Errorf("513 bytes: %v (%s)", err, failure.HintOf(err))
	}
}

// thin_restore makes of the XML what the stream says.
func TestThinRestoreReadsTheXML(t *testing.T) {
	dir := t.TempDir()
	xml, pool := filepath.Join(dir, "xml"), filepath.Join(dir, "pool")
	for path, b := range map[string][]byte{xml: write(t, streamOf(t), stream.XML), pool: make([]byte, 4<<20)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"thin_restore", "-q", "-i", xml, "-o", pool}, {"thin_check", "-q", pool}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	out, err := exec.Command("thin_dump", pool).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, want, _ := strings.Cut(string(write(t, streamOf(t), stream.XML)), "-->\n")
	want, _, _ = strings.Cut(want, "<!--")
	if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(string(out))); diff != "" {
		t.Error(diff)
	}
}
