// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
)

// cursor is how far an interrupted copy had come: everything below Done is in
// the target and has reached its disk. The rest of it says of which copy that
// is true; one that is resumed must agree in all of it.
//
// A single mark rather than a map of chunks: chunks are copied in order, a few
// at a time, so no more than those few are copied twice.
type cursor struct {
	Schema  string `json:"schema"`
	Method  Method `json:"method"`  // what copied
	Source  string `json:"source"`  // Source.Fingerprint
	Target  string `json:"target"`  // Target.ID
	Size    int64  `json:"size"`    // Source.Size
	Present int    `json:"present"` // Source.Present
	Zeroed  bool   `json:"zeroed"`  // what was promised of the target when the copy began
	Chunk   int64  `json:"chunk"`   // of the digest
	Done    int64  `json:"done"`    // a multiple of Chunk, or Size

	File *fileMark `json:"file,omitempty"` // of a target that is a file

	// Digest is the state of the digest at Done, nil if none is kept. It is
	// that of a particular SHA-256 implementation; when that is another one by
	// now, the target is read instead.
	Digest []byte `json:"digest,omitempty"`

	Sum uint32 `json:"sum"` // CRC-32C of this document with a sum of 0
}

const (
	cursorSchema = "diskhook.cursor/v1"
	maxCursor    = 64 << 10 // bytes; longer ones are not read
)

var errNoCursor = errors.New("there is none")

// readCursor is errNoCursor when there is no file; any other error means that
// it is not to be trusted.
func readCursor(path string) (cursor, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cursor{}, errNoCursor
	}
	if err != nil {
		return cursor{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCursor+1))
	if err != nil {
		return cursor{}, err
	}
	return parseCursor(text)
}

func parseCursor(text []byte) (cursor, error) {
	var c cursor
	if len(text) > maxCursor {
		return c, errors.New("longer than any cursor")
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return cursor{}, err
	}
	sum := c.Sum
	c.Sum = 0
	own, err := c.sum()
	switch {
	case err != nil:
		return cursor{}, err
	case sum != own:
		return cursor{}, errors.New("its checksum is wrong")
	case c.Schema != cursorSchema:
		return cursor{}, fmt.Errorf("its schema is %q", c.Schema)
	case c.Size <= 0 || c.Chunk <= 0 || c.Done < 0 || c.Done > c.Size || c.Done%c.Chunk != 0 && c.Done != c.Size:
		return cursor{}, fmt.Errorf("it is at %d of %d", c.Done, c.Size)
	}
	return c, nil
}

func (c cursor) sum() (uint32, error) {
	text, err := json.Marshal(c)
	return crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli)), err
}

// write makes the cursor durable. What it says has to be durable already.
func (c cursor) write(path string) error {
	c.Sum = 0
	sum, err := c.sum()
	if err != nil {
		return err
	}
	c.Sum = sum
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(text, '\n'), 0o600)
}

// cursorOf is the cursor of a copy that has not begun.
func cursorOf(source Source, target Target) cursor {
	return cursor{
		Schema: cursorSchema, Source: source.Fingerprint, Target: target.ID, Size: source.Size,
		Present: source.Present, Zeroed: target.Zeroed, Chunk: chunkSize,
	}
}

// continues says whether c is the cursor of the copy that begins with fresh,
// and if not what differs.
func (c cursor) continues(fresh cursor) error {
	switch {
	case c.Source != fresh.Source || c.Size != fresh.Size:
		return errors.New("the source is another or was written to")
	case c.Target != fresh.Target:
		return errors.New("the target is another")
	case c.Present != fresh.Present && (c.Present != 0 || c.Zeroed): // one that had started over leaves nothing to what was there
		return errors.New("the target had other layers before")
	case c.Chunk != fresh.Chunk:
		return errors.New("it counts in other chunks")
	case c.Method != Native && c.Method != Ranges && c.Method != Reflink:
		return fmt.Errorf("it was copied by %q", c.Method)
	}
	return nil
}

// Resumable says whether Copy would go on where an earlier one was stopped,
// and after how many bytes; "" is no cursor. Nothing is changed. Whoever gets false had better
// make the target anew: see Options.Cursor.
func Resumable(path string, source Source, target Target) (done int64, ok bool) {
	c, err := readCursor(path)
	if err != nil || target.Size < source.Size || c.continues(cursorOf(source, target)) != nil {
		return 0, false
	}
	if !target.Block && c.File.holds(target.Path, c.Done) != nil {
		return 0, false
	}
	return c.Done, true
}

// Begun says whether there is the cursor of a copy to target which still has
// what was copied, and how many bytes that are. Whether the source is the same
// it does not say.
func Begun(path string, target Target) (done int64, ok bool) {
	c, err := readCursor(path)
	return c.Done, err == nil && c.Target == target.ID && c.Size <= target.Size && (target.Block || c.File.holds(target.Path, c.Done) == nil)
}

// RemoveCursor deletes a cursor durably. That there is none is fine.
func RemoveCursor(path string) error { return atomicfile.Remove(path) }

// checkCursor refuses what could not be resumed safely.
func checkCursor(path string, source Source, target Target) error {
	switch {
	case path == "":
		return nil
	case !filepath.IsAbs(path):
		return failure.New(failure.Usage, "%q: not an absolute path", path)
	case source.Fingerprint == "" || target.ID == "":
		return failure.New(failure.Usage, "%s: a cursor needs to know source and target by more than their names", path)
	}
	return nil
}
