// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// Where things are in the volume of documents, in bytes.
const (
	hostsAt   = 64 << 10 // a slot for each host
	bucketsAt = 1 << 20

	// maxHost is the largest number that a host may have.
	maxHost = 64
	// bucketSlots are read at once. A document is in one of two buckets.
	bucketSlots = 16
	bucketSize  = bucketSlots * slotSize
	// defaultBuckets hold 8192 documents, of some 3000 images, in 64 MiB.
	defaultBuckets = 512
	maxBuckets     = 1 << 16
)

// The versions of the header: the second one is written when there is More.
const (
	headerV1 = 1
	headerV2 = 2
)

// header says what the volume of documents is. It is written last when that is made,
// and again when another host becomes the writer, or a further volume is added.
type header struct {
	V       int       `json:"v"`
	Format  string    `json:"format"`
	Area    string    `json:"area"` // a UUID that all blocks bear
	Buckets int       `json:"buckets"`
	Writer  string    `json:"writer,omitempty"` // the only host that may write; "": the group has a lock manager
	More    []further `json:"more,omitempty"`   // in the order in which they were added
}

// area is the open volume of documents, with those that were added to it. What the header
// says is what it said when that was opened, but for parts.
type area struct {
	dev  *layout.Volume
	name string // VG/LV, for messages
	id   uuid.UUID
	header
	slot  slot   // of the header
	parts *parts // nil: only dev
}

// openArea reads the header. A volume without one is a failure.NotFound.
func openArea(path, name string, write bool) (*area, error) {
	dev, err := layout.Open(path, write)
	if err != nil {
		return nil, err
	}
	a := &area{dev: dev, name: name}
	if err := a.readHeader(); err != nil {
		_ = dev.Close()
		return nil, err
	}
	return a, nil
}

func (a *area) readHeader() error {
	all, err := a.slots(0, 1)
	if err != nil {
		return err
	}
	a.slot = all[0]
	switch {
	case a.slot.health != whole:
		err := failure.New(failure.Problems, "lv %s: its header is damaged in both copies", a.name)
		return failure.Hint(err, "put a backup of its first 8 KiB back; its documents may be whole")
	case a.slot.newest.kind != kindHeader:
		err := failure.New(failure.NotFound, "lv %s: it was never made to its end", a.name)
		return failure.Hint(err, "run `diskhook repo create` again")
	}
	if err := json.Unmarshal(a.slot.newest.body, &a.header); err != nil {
		return failure.New(failure.Problems, "lv %s: header: %w", a.name, err)
	}
	id, err := uuid.Parse(a.Area)
	if err != nil || !a.header.known() || a.dev.Size() < size(a.Buckets) {
		return failure.New(failure.Problems, "lv %s: header: version %d of format %q with %d buckets in %d bytes: not one that is known here", a.name, a.V, a.Format, a.Buckets, a.dev.Size())
	}
	a.id = id
	return nil
}

func (h header) known() bool {
	buckets := []int{h.Buckets}
	for _, m := range h.More {
		if m.Number < 1 || m.Number > maxNumber {
			return false
		}
		buckets = append(buckets, m.Buckets)
	}
	return h.Format == Name && (h.V == headerV1 && len(h.More) == 0 || h.V == headerV2) &&
		!slices.ContainsFunc(buckets, func(n int) bool { return n < 1 || n > maxBuckets })
}

// size is that of a volume of documents with so many buckets.
func size(buckets int) int64 { return bucketsAt + int64(buckets)*bucketSize }

// writeHeader makes or replaces the header.
func (a *area) writeHeader(h header) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	id, err := uuid.Parse(h.Area)
	if err != nil {
		return err
	}
	at, sequence := a.slot.next()
	return a.write(at, block{kind: kindHeader, sequence: sequence, body: body}.encode(id), true)
}

// write writes a block, past all caches of this host.
func (a *area) write(at int64, b []byte, durable bool) error {
	in, at := a.part(at)
	if _, err := in.dev.WriteAt(b, at); err != nil {
		return fmt.Errorf("lv %s: write at %d: %w", in.name, at, err)
	}
	if !durable {
		return nil
	}
	return in.dev.Flush()
}

// slots reads slots that lie beside each other.
func (a *area) slots(at int64, n int) ([]slot, error) {
	b := directio.Buffer(int64(n) * slotSize)
	in, from := a.part(at)
	if got, err := in.dev.ReadAt(b, from); got < len(b) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("lv %s: read at %d: %w", in.name, from, err)
	}
	all := make([]slot, n)
	for i := range all {
		all[i] = decodeSlot(b[i*slotSize:][:slotSize], at+int64(i)*slotSize, a.id)
	}
	return all, nil
}

// hosts reads the slots of all hosts: that of host n is at n-1.
func (a *area) hosts() ([]slot, error) { return a.slots(hostsAt, maxHost) }

// buckets are where those lie in which a document may be, one or two in each part.
func (a *area) buckets(kind byte, id uuid.UUID) []int64 {
	var all []int64
	for _, in := range a.all() {
		for _, n := range hashed(kind, id, in.buckets) {
			all = append(all, in.first+bucketsAt+n*bucketSize)
		}
	}
	return all
}

// hashed are the numbers of the one or two of so many buckets.
func hashed(kind byte, id uuid.UUID, buckets int) []int64 {
	sum := fnv.New64a()
	_, _ = sum.Write(append([]byte{kind}, id[:]...))
	h := sum.Sum(nil)
	one := int64(binary.BigEndian.Uint32(h)) % int64(buckets)
	two := int64(binary.BigEndian.Uint32(h[4:])) % int64(buckets)
	if one == two {
		return []int64{one}
	}
	return []int64{one, two}
}

// ill says what is wrong with a slot that cannot be read, nil if nothing is.
func (a *area) ill(s slot) error {
	what := "damaged in both copies"
	switch s.health {
	case whole, empty:
		return nil
	case foreign:
		what = "of another repository, or of a later version"
	case damaged:
	}
	in, at := a.part(s.at)
	err := failure.New(failure.Problems, "lv %s: the slot at %d is %s: which document is missing nobody can tell", in.name, at, what)
	if s.at < bucketsAt {
		return failure.Hint(err, "end what diskhook does there on all hosts, and then `dd if=/dev/zero of=/dev/%s bs=8192 seek=%d count=1 oflag=direct`: it says only which locks a host has", a.name, s.at/slotSize)
	}
	return failure.Hint(err, "put a backup of the volume back, or name the fix of `diskhook repo check` that puts it aside; `dd if=/dev/%s bs=8192 skip=%d count=1 iflag=direct | hexdump -C` shows the slot", in.name, at/slotSize)
}
