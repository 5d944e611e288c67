// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFindBesideOthers looks at a directory while the copies of other domains
// are completed and given up there.
func TestFindBesideOthers(t *testing.T) {
	b := &directory{dir: t.TempDir()}
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			name := filepath.Join(b.dir, "other"+string(rune('a'+i%20)))
			_ = os.WriteFile(name+rawSuffix+partialSuffix, nil, 0o600)
			_ = os.Rename(name+rawSuffix+partialSuffix, name+rawSuffix)
			_ = os.Remove(name + rawSuffix)
		}
	}()
	defer func() { close(done); <-stopped }()
	for range 2000 {
		if _, err := b.find(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
