// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What is on the disk is looked at past the file system's word for it: blocks that were
// only marked as reading zero would be gone from the list of data.
func TestOverwrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 8<<20 + 777
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 3 << 20, size - 777} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xaa}, 777), at); err != nil {
			t.Fatal(err)
		}
	}
	before := blocks(t, f)

	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := Overwrite(stopped, f, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	var done, total int64
	if err := Overwrite(t.Context(), f, func(d, all int64) { done, total = d, all }); err != nil {
		t.Fatal(err)
	}
	if done != size || total != size {
		t.Errorf("told %d of %d", done, total)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, make([]byte, size)) {
		t.Errorf("%d bytes are not all zero: %v", len(got), err)
	}
	if after := blocks(t, f); after != before {
		t.Errorf("%d blocks, %d before: they were given back or made, not overwritten", after, before)
	}
	if at, err := f.Seek(0, unix.SEEK_DATA); err != nil || at != 0 {
		t.Errorf("no data is there: it was marked, not overwritten (%d, %v)", at, err)
	}
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}
