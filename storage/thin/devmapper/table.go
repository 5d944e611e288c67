// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"fmt"
	"strconv"
	"strings"
)

// Table is what a device is made of, in order.
type Table []Segment

// Segment is a part of a device: so many sectors that a target serves.
type Segment struct {
	Length uint64
	Target Target
}

// Of is a table of one target.
func Of(sectors uint64, t Target) Table { return Table{{sectors, t}} }

// Sectors is the length of the device.
func (t Table) Sectors() uint64 {
	var n uint64
	for _, s := range t {
		n += s.Length
	}
	return n
}

// String is the table as `dmsetup create --table` takes it, a line a segment.
func (t Table) String() string {
	var lines []string
	var at uint64
	for _, s := range t {
		lines = append(lines, strings.TrimRight(fmt.Sprintf("%d %d %s %s", at, s.Length, s.Target.Type(), s.Target.Params()), " "))
		at += s.Length
	}
	return strings.Join(lines, "\n")
}

// Target is what serves a segment. A device in it is "MAJOR:MINOR" or a path.
type Target interface {
	Type() string
	Params() string
}

// Linear is a window of another device:
//
//	linear DEVICE START
type Linear struct {
	Device string
	Start  uint64 // sector
}

// Type is linear.
func (Linear) Type() string { return "linear" }

// Params is the target's line.
func (t Linear) Params() string { return fmt.Sprintf("%s %d", t.Device, t.Start) }

// Failing fails all I/O:
//
//	error
type Failing struct{}

// Type is error.
func (Failing) Type() string { return "error" }

// Params is empty.
func (Failing) Params() string { return "" }

// Pool is a pool for thin devices:
//
//	thin-pool METADATA DATA BLOCK_SECTORS LOW_WATER [COUNT FEATURE…]
//
// The length of its segment decides how many data blocks there are: more than
// the metadata knows become free, fewer are refused.
type Pool struct {
	Metadata, Data string
	BlockSectors   uint64 // 128 to 2097152, a multiple of 128
	LowWater       uint64 // free blocks at which there is an event
	Features       Features
}

// Features of a pool. The zero value is what the kernel does by itself: new
// blocks are zeroed, discards passed down, and writes wait for space.
type Features struct {
	SkipZeroing    bool // skip_block_zeroing: guests would see what others wrote
	IgnoreDiscard  bool // ignore_discard
	NoPassdown     bool // no_discard_passdown: the data device is not told
	ReadOnly       bool // read_only
	ErrorIfNoSpace bool // error_if_no_space
}

// words are the kernel's, in the order in which it prints them.
func (f *Features) words() []struct {
	word string
	set  *bool
} {
	return []struct {
		word string
		set  *bool
	}{
		{"skip_block_zeroing", &f.SkipZeroing}, {"ignore_discard", &f.IgnoreDiscard}, {"no_discard_passdown", &f.NoPassdown},
		{"read_only", &f.ReadOnly}, {"error_if_no_space", &f.ErrorIfNoSpace},
	}
}

// Type is thin-pool.
func (Pool) Type() string { return "thin-pool" }

// Params is the target's line.
func (t Pool) Params() string {
	line := fmt.Sprintf("%s %s %d %d", t.Metadata, t.Data, t.BlockSectors, t.LowWater)
	var words []string
	for _, w := range t.Features.words() {
		if *w.set {
			words = append(words, w.word)
		}
	}
	if len(words) > 0 {
		line += fmt.Sprintf(" %d %s", len(words), strings.Join(words, " "))
	}
	return line
}

// Thin is a thin device of a pool:
//
//	thin POOL ID [ORIGIN]
type Thin struct {
	Pool   string
	ID     uint32 // below 2^24
	Origin string // "", or a device that is read where the thin one has nothing
}

// Type is thin.
func (Thin) Type() string { return "thin" }

// Params is the target's line.
func (t Thin) Params() string {
	return strings.TrimRight(fmt.Sprintf("%s %d %s", t.Pool, t.ID, t.Origin), " ")
}

// Other is a target of another type, as the kernel prints it.
type Other struct{ Name, Line string }

// Type is its name.
func (t Other) Type() string { return t.Name }

// Params is its line.
func (t Other) Params() string { return t.Line }

// ParseTarget reads the line of a target as the kernel prints it. A type that is
// not used here is Other.
func ParseTarget(name, line string) (Target, error) {
	w := strings.Fields(line)
	bad := fmt.Errorf("target %s: %q", name, line)
	number := func(i int) (n uint64) {
		if i < len(w) {
			var err error
			if n, err = strconv.ParseUint(w[i], 10, 64); err == nil {
				return n
			}
		}
		w = nil
		return 0
	}
	switch name {
	case "linear":
		if t := (Linear{Start: number(1)}); len(w) == 2 {
			t.Device = w[0]
			return t, nil
		}
		return nil, bad
	case "error":
		return Failing{}, nil
	case "thin":
		if t := (Thin{ID: uint32(number(1))}); len(w) == 2 || len(w) == 3 {
			t.Pool, t.Origin = w[0], strings.Join(w[2:], "")
			return t, nil
		}
		return nil, bad
	case "thin-pool":
		t := Pool{BlockSectors: number(2), LowWater: number(3)}
		if len(w) < 4 {
			return nil, bad
		}
		t.Metadata, t.Data = w[0], w[1]
		if len(w) > 4 && number(4) != uint64(len(w)-5) {
			return nil, bad
		}
		for _, word := range w[min(5, len(w)):] {
			for _, f := range t.Features.words() {
				*f.set = *f.set || f.word == word
			}
		}
		return t, nil
	}
	return Other{name, line}, nil
}
