// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ProblemKind says how bad a problem is.
type ProblemKind string

// The kinds of problems.
const (
	// Damage: a part cannot be read, or contradicts another.
	Damage ProblemKind = "damage"
	// Undercount: a block is in use more often than its space map says, and
	// will be given away and overwritten.
	Undercount ProblemKind = "undercount"
	// Leak: a block is in use less often than its space map says. Space is lost
	// until the metadata is written anew, nothing else.
	Leak ProblemKind = "leak"
	// Rule: a rule is broken that CheckOptions asked for.
	Rule ProblemKind = "rule"
)

// Problem is one thing that Check found.
type Problem struct {
	Kind ProblemKind `json:"kind"`
	Text string      `json:"text"`
}

// maxProblems bounds a report: one damaged node may be the cause of millions.
const maxProblems = 100

// Report is what Check found.
type Report struct {
	Superblock Superblock
	Devices    int
	Mappings   uint64 // of all devices
	Problems   []Problem
	More       uint64 // problems beyond those in the list
}

// CheckOptions are rules beyond the format.
type CheckOptions struct {
	// Times: nothing is younger than the superblock's time. Otherwise the
	// kernel copies a block again at each write.
	Times bool
	// Sharing: whatever is mapped twice is older than the snap time of each
	// device that maps it. Otherwise the kernel writes in place into what
	// another device reads, for it looks at the times only.
	Sharing bool
	// Reserved are devices that are never activated and need not keep Sharing.
	Reserved []uint32
}

// Check reads all of the metadata on a device of that many blocks: structure,
// checksums, agreement of the trees with each other, and of the space maps with
// the references that there are, through the metadata snapshot too. What it
// finds is in the report. An error says that it could not look: the device
// failed, or ctx ended.
func Check(ctx context.Context, image io.ReaderAt, blocks uint64, options CheckOptions) (Report, error) {
	c := checker{ctx: ctx, CheckOptions: options, known: map[uint64]below{}}
	reader, err := Open(image)
	if err == nil && reader.sb.MetadataBlocks > blocks {
		err = damaged("block 0: %d metadata blocks on a device of %d", reader.sb.MetadataBlocks, blocks)
	}
	if err != nil {
		err = c.forgive(err)
		return c.Report, err
	}
	c.r, c.Superblock = reader, reader.sb
	c.data, c.nodes = newCounts(reader.sb.DataBlocks), newCounts(reader.src.blocks)
	if reader.src.blocks > 0 {
		c.nodes.add(0, 1)
	}
	err = c.all()
	return c.Report, err
}

type checker struct {
	ctx context.Context
	CheckOptions
	Report
	r     *Reader
	data  counts           // references to data blocks
	nodes counts           // references to metadata blocks
	known map[uint64]below // internal nodes that have been walked

	torn bool // some part was not walked, so there are more references
}

func (c *checker) all() error {
	devices, err := c.pool(c.r, "")
	if err != nil {
		return err
	}
	c.Devices = len(devices)
	for _, d := range devices {
		c.Mappings += d.MappedBlocks
	}
	if c.Sharing && !c.torn {
		if err := c.sharing(devices); err != nil {
			return err
		}
	}
	if c.r.sb.HeldRoot != 0 {
		if err := c.snapshot(); err != nil {
			return err
		}
	}
	if err := c.dataMap(); err != nil {
		return err
	}
	return c.metadataMap()
}

func (c *checker) snapshot() error {
	held, err := c.r.Snapshot()
	if err != nil {
		return c.forgive(err)
	}
	c.nodes.add(c.r.sb.HeldRoot, 1)
	_, err = c.pool(held, "metadata snapshot: ")
	return err
}

// report adds a problem.
func (c *checker) report(kind ProblemKind, format string, args ...any) {
	if len(c.Problems) == maxProblems {
		c.More++
		return
	}
	c.Problems = append(c.Problems, Problem{kind, fmt.Sprintf(format, args...)})
}

// forgive reports damage and lets other errors through.
func (c *checker) forgive(err error) error {
	if err == nil || !errors.Is(err, ErrDamaged) {
		return err
	}
	c.torn = true
	c.report(Damage, "%v", err)
	return nil
}

// walk goes through a tree, counts the references to its nodes, and enters each
// node once, however many trees share it.
func (c *checker) walk(root uint64, size int, leaf func(block uint64, n node) error) (below, error) {
	w := walker{
		src: &c.r.src, size: size, thirds: true, spoiled: c.forgive,
		leaf: func(block uint64, n node) error {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			return leaf(block, n)
		},
		skip: func(block uint64, n node) (below, bool, error) {
			again := c.nodes.get(block) > 0
			c.nodes.add(block, 1)
			switch found, walked := c.known[block]; {
			case !again:
				return below{}, false, nil
			case walked:
				return found, true, nil
			case n.internal():
				return below{}, false, damaged("block %d: a loop", block)
			case n.entries() == 0:
				return below{}, true, nil
			default:
				return below{uint64(n.entries()), n.last()}, true, nil
			}
		},
		left: func(block uint64, found below) { c.known[block] = found },
	}
	return w.walk(root)
}

// pool walks the trees of devices and of mappings, and compares them. It gives
// the devices with the number of blocks that they really map, and their roots.
func (c *checker) pool(r *Reader, of string) ([]checkedDevice, error) {
	var devices []checkedDevice
	_, err := c.walk(r.at.details, detailsSize, func(block uint64, n node) error {
		for i := range n.entries() {
			d, err := decodeDevice(block, n.key(i), n.value(i, detailsSize))
			if err != nil {
				return err
			}
			devices = append(devices, checkedDevice{Device: d})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, err = c.walk(r.at.mappings, mappingSize, func(_ uint64, n node) error {
		for i := range n.entries() {
			if err := c.device(of, n.key(i), binary.LittleEndian.Uint64(n.value(i, mappingSize)), devices); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range devices {
		if d := &devices[i]; !d.mapped && !c.torn {
			c.report(Damage, "%sthin device %d: details, but no mappings", of, d.ID)
		}
		if d := &devices[i]; c.Times && max(d.SnapTime, d.CreationTime) > r.sb.Time {
			c.report(Rule, "%sthin device %d: created at %d, snapshot at %d, while the time is %d", of, d.ID, d.CreationTime, d.SnapTime, r.sb.Time)
		}
	}
	return devices, nil
}

type checkedDevice struct {
	Device
	root   uint64
	mapped bool
}

// device walks the mappings of one device.
func (c *checker) device(of string, id, root uint64, devices []checkedDevice) error {
	found, err := c.walk(root, mappingSize, func(block uint64, n node) error { return c.mappings(of, id, block, n) })
	if err != nil {
		return err
	}
	i, there := slices.BinarySearchFunc(devices, id, func(d checkedDevice, id uint64) int { return cmp.Compare(uint64(d.ID), id) })
	if !there {
		c.report(Damage, "%sthin device %d: mappings, but no details", of, id)
		return nil
	}
	d := &devices[i]
	if d.mapped, d.root = true, root; found.entries != d.MappedBlocks {
		if !c.torn {
			c.report(Damage, "%sthin device %d: %d blocks are mapped, where its details say %d", of, id, found.entries, d.MappedBlocks)
		}
		d.MappedBlocks = found.entries
	}
	return nil
}

// mappings counts what one leaf maps.
func (c *checker) mappings(of string, id, block uint64, n node) error {
	count := func(run Run) error {
		if end := run.Data + run.Length; end > c.r.sb.DataBlocks {
			return damaged("block %d: %sthin device %d: virtual block %d is in data block %d of %d",
				block, of, id, run.Origin+run.Length-1, end-1, c.r.sb.DataBlocks)
		}
		if c.Times && run.Time > c.r.sb.Time {
			c.report(Rule, "%sthin device %d: virtual block %d: mapped at %d, while the time is %d", of, id, run.Origin, run.Time, c.r.sb.Time)
		}
		c.data.add(run.Data, run.Length)
		return nil
	}
	last, err := n.runs(Run{}, count)
	if err != nil || last.Length == 0 {
		return err
	}
	return count(last)
}
