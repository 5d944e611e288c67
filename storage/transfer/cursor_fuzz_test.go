// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// What parses is within its bounds and is written again as it was read, also
// where somebody has made the checksum fit.
func FuzzCursor(f *testing.F) {
	path := filepath.Join(f.TempDir(), "cursor")
	for _, done := range []int64{0, chunkSize, 9<<20 + 512} {
		c := cursorOf(Source{Size: 9<<20 + 512, Fingerprint: "f"}, Target{ID: "x", Zeroed: true})
		c.Method, c.Done, c.Digest = Native, done, []byte("state")
		if err := c.write(path); err != nil {
			f.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if got, err := parseCursor(text); err != nil || got.Done != done || got.continues(c) != nil {
			f.Fatalf("%+v, %v", got, err)
		}
		f.Add(text)
	}
	for _, text := range []string{
		`{"done":-1}`,
		`{"schema":"diskhook.cursor/v1","method":"native","size":1,"chunk":1,"done":2}`,
		`{"schema":"diskhook.cursor/v1","method":"native","size":8,"chunk":0,"done":0}`,
		`{"schema":"diskhook.cursor/v1","method":"native","size":9,"chunk":4,"done":6}`,
		`{"schema":"diskhook.cursor/v1","method":"native","size":8,"chunk":4,"done":4,"digest":""}`,
		`{"schema":"diskhook.cursor/v0","method":"native","size":8,"chunk":4,"done":4}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		soundOrRefused(t, text)
		if c := (cursor{}); json.Unmarshal(text, &c) == nil {
			soundOrRefused(t, signed(t, c))
		}
	})
}

// signed is a cursor with a checksum that fits.
func signed(t *testing.T, c cursor) []byte {
	t.Helper()
	c.Sum = 0
	sum, err := c.sum()
	if err != nil {
		t.Fatal(err)
	}
	c.Sum = sum
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func soundOrRefused(t *testing.T, text []byte) {
	t.Helper()
	c, err := parseCursor(text)
	if err != nil {
		return
	}
	if c.Schema != cursorSchema || c.Chunk <= 0 || c.Done < 0 || c.Done > c.Size || c.Done%c.Chunk != 0 && c.Done != c.Size {
		t.Errorf("%+v", c)
	}
	path := filepath.Join(t.TempDir(), "cursor")
	if err := c.write(path); err != nil {
		t.Fatal(err)
	}
	again, err := readCursor(path)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	if diff := cmp.Diff(c, again, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if was, is := c.continues(c), again.continues(c); (was == nil) != (is == nil) {
		t.Errorf("%+v: %v, then %v", c, was, is)
	}
}
