// SPDX-License-Identifier: Apache-2.0

package directio_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/directio"
)

// Any range reads as it does through the page cache, whether the storage can
// do direct I/O or not, up to an end within a sector.
func TestReadAt(t *testing.T) {
	for name, dir := range map[string]string{"disk": "/var/tmp", "tmpfs": "/dev/shm"} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp(dir, "directio")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			content := make([]byte, 100_003)
			_, _ = rand.NewChaCha8([32]byte{}).Read(content)
			path := filepath.Join(dir, "file")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			d := directio.New(f)
			for range 300 {
				off := rand.Int64N(int64(len(content)) + 5000)
				want := make([]byte, rand.IntN(20_000))
				n, wantErr := bytes.NewReader(content).ReadAt(want, off)
				got := directio.Buffer(int64(len(want)))
				gotN, err := d.ReadAt(got, off)
				if n != gotN || !bytes.Equal(got[:n], want[:n]) || errors.Is(err, io.EOF) != (n < len(want)) || err != nil && !errors.Is(err, io.EOF) {
					t.Fatalf("%d bytes at %d: %d, %v; want %d, %v", len(want), off, gotN, err, n, wantErr)
				}
			}
			d.Restore()
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_DIRECT != 0 || d.Direct() {
				t.Errorf("flags %#x, %v after Restore", flags, err)
			}
		})
	}
}

func TestFits(t *testing.T) {
	b := directio.Buffer(8192)
	for _, c := range []struct {
		p    []byte
		off  int64
		fits bool
	}{{b, 0, true}, {b[:4096], 4096, true}, {b[512:], 0, false}, {b[:512], 0, false}, {b, 512, false}, {nil, 0, true}} {
		if directio.Fits(c.p, c.off) != c.fits {
			t.Errorf("%d bytes at %d: %t", len(c.p), c.off, !c.fits)
		}
	}
}
