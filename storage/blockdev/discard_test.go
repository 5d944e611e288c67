// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"diskhook/storage/failure"
)

func TestDiscardRangeOfAFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := bytes.Repeat([]byte{0xaa}, 1<<20)
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := DiscardRange(t.Context(), f, 64<<10, 128<<10); err != nil {
		t.Fatal(err)
	}
	clear(content[64<<10 : 192<<10])
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes than those of the range changed, or the file's length: %d, %v", len(got), err)
	}
}

func TestDiscardRangeRefuses(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, 1<<20 + 1}, {1 << 20, 1}} {
		if err := DiscardRange(t.Context(), f, r[0], r[1]); !errors.Is(err, failure.Usage) {
			t.Errorf("%v: %v", r, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := DiscardRange(ended, f, 0, 1<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}
