// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"os"
	"path/filepath"
	"testing"
)

// What parses is within its bounds and is written again as it was read.
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
	f.Add([]byte(`{"done":-1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseCursor(text)
		if err != nil {
			return
		}
		if c.Done < 0 || c.Done > c.Size || c.Schema != cursorSchema {
			t.Errorf("%+v", c)
		}
		path := filepath.Join(t.TempDir(), "cursor")
		if err := c.write(path); err != nil {
			t.Fatal(err)
		}
		if again, err := readCursor(path); err != nil || again.continues(c) != nil && again.Method == c.Method && c.Method == Native {
			t.Errorf("%+v, then %+v, %v", c, again, err)
		}
	})
}
