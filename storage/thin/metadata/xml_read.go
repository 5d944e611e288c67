// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"errors"
	"io"
	"math"

	"diskhook/storage/failure"
)

// maxDefined bounds the runs of all <def> elements together, each of which
// counts as one as well. They are the one thing that has to be held in memory
// (32 bytes each).
const maxDefined = 1 << 22

// ReadXML reads what thin_dump writes and gives it to the sink that begin makes
// of the superblock. What thin_restore requires is required here, and order as
// well: devices and mappings ascend, as in every dump. The shared parts that
// thin_dump writes since 1.0 (<def>, <ref>) are filled in. A uuid is not kept,
// the kernel has none; nor is a metadata snapshot, which is not in the dump.
func ReadXML(ctx context.Context, r io.Reader, begin func(Superblock) (Sink, error)) error {
	x := &xmlReader{ctx: ctx, scan: newXMLScanner(r), defined: map[string][]Run{}}
	if err := x.scan.next(); err != nil || string(x.scan.name) != "superblock" || !x.scan.opens {
		return x.or(err, "there is no superblock")
	}
	sb, err := x.superblock()
	if err != nil {
		return err
	}
	if x.sink, err = begin(sb); err != nil {
		return err
	}
	if err := x.inside("superblock", x.part); err != nil {
		return err
	}
	if err := x.scan.next(); !errors.Is(err, io.EOF) {
		return x.or(err, "something after the superblock")
	}
	return x.sink.Finish()
}

type xmlReader struct {
	ctx     context.Context
	scan    *xmlScanner
	sink    Sink
	defined map[string][]Run
	held    int // runs and parts in defined
}

// or is err, or damage if there is none.
func (x *xmlReader) or(err error, what string) error {
	if err == nil || errors.Is(err, io.EOF) {
		return x.scan.damaged(what)
	}
	return err
}

// inside calls each for each element in the one that was opened last.
func (x *xmlReader) inside(name string, each func() error) error {
	if x.scan.closes {
		return nil
	}
	for {
		if err := x.scan.next(); err != nil {
			return x.or(err, name+" does not end")
		}
		switch {
		case x.scan.opens:
			if err := each(); err != nil {
				return err
			}
		case string(x.scan.name) == name:
			return nil
		default:
			return x.scan.damaged(name + " ends as " + string(x.scan.name))
		}
	}
}

// numbers reads attributes into the places that a table gives.
func (x *xmlReader) numbers(table []xmlNumber) error {
	for _, f := range table {
		n, err := x.scan.number(f.name, f.limit)
		if err != nil {
			return err
		}
		f.set(n)
	}
	return nil
}

type xmlNumber struct {
	name  string
	limit uint64
	set   func(uint64)
}

func (x *xmlReader) superblock() (sb Superblock, err error) {
	err = x.numbers([]xmlNumber{
		{"time", math.MaxUint32, func(n uint64) { sb.Time = uint32(n) }},
		{"transaction", math.MaxUint64, func(n uint64) { sb.TransactionID = n }},
		{"data_block_size", maxDataBlockSize, func(n uint64) { sb.DataBlockSize = uint32(n) }},
		{"nr_data_blocks", MaxDataBlocks, func(n uint64) { sb.DataBlocks = n }},
	})
	if err != nil {
		return sb, err
	}
	if _, there, err := x.scan.value("uuid"); err != nil || !there {
		return sb, x.or(err, "superblock has no uuid")
	}
	if _, there, _ := x.scan.value("flags"); there {
		flags, err := x.scan.number("flags", flagNeedsCheck)
		if err != nil {
			return sb, err
		}
		sb.NeedsCheck = flags&flagNeedsCheck != 0
	}
	if _, there, _ := x.scan.value("version"); there {
		v, err := x.scan.number("version", math.MaxUint32)
		if err == nil && v != version {
			err = x.scan.damaged("version is not 2")
		}
		return sb, err
	}
	return sb, nil
}

// part reads an element of the superblock.
func (x *xmlReader) part() error {
	switch string(x.scan.name) {
	case "device":
		return x.device()
	case "def":
		return x.define()
	}
	return x.scan.damaged("superblock with " + string(x.scan.name))
}

func (x *xmlReader) device() error {
	var d Device
	err := x.numbers([]xmlNumber{
		{"dev_id", MaxDevices - 1, func(n uint64) { d.ID = uint32(n) }},
		{"mapped_blocks", math.MaxUint64, func(n uint64) { d.MappedBlocks = n }},
		{"transaction", math.MaxUint64, func(n uint64) { d.Transaction = n }},
		{"creation_time", math.MaxUint32, func(n uint64) { d.CreationTime = uint32(n) }},
		{"snap_time", math.MaxUint32, func(n uint64) { d.SnapTime = uint32(n) }},
	})
	if err != nil {
		return err
	}
	if err := x.sink.Device(d); err != nil {
		return err
	}
	var mapped uint64
	err = x.inside("device", func() error {
		return x.mappings(func(run Run) error {
			mapped += run.Length
			return x.sink.Map(run)
		})
	})
	if err == nil && mapped != d.MappedBlocks {
		return damaged("thin device %d: %d blocks are mapped, where mapped_blocks says %d", d.ID, mapped, d.MappedBlocks)
	}
	return err
}

// mappings gives what an element inside a device or a <def> stands for.
func (x *xmlReader) mappings(emit func(Run) error) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	if !x.scan.closes { // they have nothing inside
		return x.scan.damaged(string(x.scan.name) + " does not end")
	}
	if string(x.scan.name) == "ref" {
		runs, known := x.defined[x.label()]
		if !known {
			return x.scan.damaged("ref to what has not been defined")
		}
		for _, run := range runs {
			if err := emit(run); err != nil {
				return err
			}
		}
		return nil
	}
	run, err := x.run()
	if err != nil {
		return err
	}
	return emit(run)
}

func (x *xmlReader) run() (run Run, err error) {
	origin, data := "origin_begin", "data_begin"
	switch string(x.scan.name) {
	case "single_mapping":
		origin, data, run.Length = "origin_block", "data_block", 1
	case "range_mapping":
		if run.Length, err = x.scan.number("length", MaxDataBlocks); err != nil {
			return run, err
		}
	default:
		return run, x.scan.damaged(string(x.scan.name) + " among mappings")
	}
	if run.Origin, err = x.scan.number(origin, math.MaxUint64); err != nil {
		return run, err
	}
	if run.Data, err = x.scan.number(data, MaxDataBlocks); err != nil {
		return run, err
	}
	at, err := x.scan.number("time", MaxTime)
	run.Time = uint32(at)
	return run, err
}

// label is the name of a <def> or <ref>, which may be empty as any other.
func (x *xmlReader) label() string {
	v, _, _ := x.scan.value("name")
	return string(v)
}

func (x *xmlReader) define() error {
	label := x.label()
	if _, known := x.defined[label]; known {
		return x.scan.damaged("def of what has been defined")
	}
	var runs []Run
	if err := x.hold(); err != nil {
		return err
	}
	err := x.inside("def", func() error {
		return x.mappings(func(run Run) error {
			runs = append(runs, run)
			return x.hold()
		})
	})
	x.defined[label] = runs
	return err
}

// hold counts what is kept in memory.
func (x *xmlReader) hold() error {
	if x.held++; x.held <= maxDefined {
		return nil
	}
	return failure.Hint(failure.New(failure.Usage, "more than %d mappings in shared parts", maxDefined), "thin_restore -i XML -o IMAGE")
}
