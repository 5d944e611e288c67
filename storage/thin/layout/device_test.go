// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// A file stands in for a logical volume, and what one opening writes another one
// reads.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), layout.MapName)
	if _, err := layout.Open(path, true); !errors.Is(err, failure.NotFound) {
		t.Errorf("not there: %v", err)
	}
	if _, err := layout.Open(filepath.Dir(path), false); !errors.Is(err, failure.Precondition) {
		t.Errorf("a directory: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	writer, err := layout.Open(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	reader, err := layout.Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if writer.Size() != 64<<10 || writer.Name() != path {
		t.Errorf("%s of %d bytes", writer.Name(), writer.Size())
	}
	if err := layout.Wipe(writer); err != nil {
		t.Fatal(err)
	}
	at, err := layout.CreateMap(writer, cluster, 1, mapOf(0))
	if err != nil {
		t.Fatal(err)
	}
	for state := 1; state < 4; state++ {
		if at, err = layout.CommitMap(writer, cluster, at, 1, mapOf(state)); err != nil {
			t.Fatal(err)
		}
		if m, got, err := layout.ReadMap(reader, cluster); err != nil || got != at || m.Hosts[0].Sequence != uint64(state) {
			t.Fatalf("%v, %v", got, err)
		}
	}
	if _, err := layout.CommitMap(reader, cluster, at, 1, mapOf(0)); err == nil {
		t.Error("a volume that was opened for reading was written to")
	}
}
