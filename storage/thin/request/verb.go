// SPDX-License-Identifier: Apache-2.0

package request

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// verb is a message's code. Numbers are never used again for something else.
type verb uint16

const (
	create        verb = 1
	remove        verb = 2
	clone         verb = 3
	cloneAttached verb = 4
	resize        verb = 5
	beginAttach   verb = 6
	finishAttach  verb = 7
	beginDetach   verb = 8
	finishDetach  verb = 9
	grant         verb = 10
	giveBack      verb = 11
	room          verb = 12
	leave         verb = 13
)

// kinds read the body of each verb.
var kinds = map[verb]func([]byte) (Request, error){
	create:        read[Create],
	remove:        read[Delete],
	clone:         read[Clone],
	cloneAttached: read[CloneAttached],
	resize:        read[Resize],
	beginAttach:   read[BeginAttach],
	finishAttach:  read[FinishAttach],
	beginDetach:   read[BeginDetach],
	finishDetach:  read[FinishDetach],
	grant:         read[Grant],
	giveBack:      read[Return],
	room:          read[Room],
	leave:         read[Leave],
}

// read takes a body apart. A field that this diskhook does not know would be a part
// of the request that nobody does.
func read[R Request](body []byte) (Request, error) {
	var r R
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("something follows the request")
	}
	return r, nil
}

func (Create) verb() verb        { return create }
func (Delete) verb() verb        { return remove }
func (Clone) verb() verb         { return clone }
func (CloneAttached) verb() verb { return cloneAttached }
func (Resize) verb() verb        { return resize }
func (BeginAttach) verb() verb   { return beginAttach }
func (FinishAttach) verb() verb  { return finishAttach }
func (BeginDetach) verb() verb   { return beginDetach }
func (FinishDetach) verb() verb  { return finishDetach }
func (Grant) verb() verb         { return grant }
func (Return) verb() verb        { return giveBack }
func (Room) verb() verb          { return room }
func (Leave) verb() verb         { return leave }

// String is what the verb is called in messages.
func (v verb) String() string {
	return map[verb]string{
		create: "create", remove: "delete", clone: "clone", cloneAttached: "clone attached", resize: "resize",
		beginAttach: "begin attach", finishAttach: "finish attach", beginDetach: "begin detach", finishDetach: "finish detach",
		grant: "grant", giveBack: "return", room: "room", leave: "leave",
	}[v]
}

// Name is what a request is called in messages and logs.
func Name(r Request) string { return r.verb().String() }

// MaxRoom bounds the volumes that Room makes, in bytes: a host's header and two
// windows as long as the kernel can use.
const MaxRoom = 1<<20 + 2*layout.MaxWindow

func (r Create) check() error {
	if r.Size == 0 || r.Size%512 != 0 || r.Size > 1<<63-1 {
		return failure.New(failure.Usage, "volume %q: %d bytes: whole sectors of 512 bytes are needed", r.Name, r.Size)
	}
	return named(r.ID, r.Name)
}

func (r Clone) check() error         { return newOf(r.Of, r.ID, r.Name) }
func (r CloneAttached) check() error { return newOf(r.Of, r.ID, r.Name) }

func (r Delete) check() error       { return numbered(r.Volume) }
func (r BeginAttach) check() error  { return numbered(r.Volume) }
func (r FinishAttach) check() error { return numbered(r.Volume) }
func (r BeginDetach) check() error  { return numbered(r.Volume) }
func (r FinishDetach) check() error { return numbered(r.Volume) }

func (r Resize) check() error {
	if r.Size == 0 || r.Size%512 != 0 || r.Size > 1<<63-1 {
		return failure.New(failure.Usage, "volume %d: %d bytes: whole sectors of 512 bytes are needed", r.Volume, r.Size)
	}
	return numbered(r.Volume)
}

func (r Grant) check() error {
	if r.Blocks == 0 || r.Least > r.Blocks {
		return failure.New(failure.Usage, "grant of %d blocks, at least %d: it asks for nothing, or for less than it needs", r.Blocks, r.Least)
	}
	return nil
}

func (r Return) check() error {
	if len(r.Extents) == 0 || len(r.Extents)%2 != 0 || len(r.Extents) > 2*MaxExtents {
		return failure.New(failure.Usage, "return of %d numbers: pairs of start and length are needed, at most %d", len(r.Extents), MaxExtents)
	}
	var at uint64
	for i := 0; i < len(r.Extents); i += 2 {
		start, length := r.Extents[i], r.Extents[i+1]
		if start < at || length == 0 || start+length < start {
			return failure.New(failure.Usage, "return of blocks %d+%d after block %d: runs ascend and are not empty", start, length, at)
		}
		at = start + length
	}
	return nil
}

func (r Room) check() error {
	if r.Bytes == 0 || r.Bytes > MaxRoom {
		return failure.New(failure.Usage, "room of %d bytes: at most %d", r.Bytes, uint64(MaxRoom))
	}
	if r.Volume == 0 {
		return nil
	}
	return numbered(r.Volume)
}

func (Leave) check() error { return nil }

func newOf(of uint32, id uuid.UUID, name string) error {
	if err := numbered(of); err != nil {
		return err
	}
	return named(id, name)
}

func named(id uuid.UUID, name string) error {
	if id == uuid.Nil || !layout.ValidName(name) {
		return failure.New(failure.Usage, "volume %q, UUID %s: a UUID, and a name of letters, digits, \".\", \"_\" and \"-\" are needed", name, id)
	}
	return nil
}

func numbered(volume uint32) error {
	if volume == 0 || volume > layout.MaxVolume {
		return failure.New(failure.Usage, "volume %d: volumes have numbers from 1 to %d", volume, layout.MaxVolume)
	}
	return nil
}
