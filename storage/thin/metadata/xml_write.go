// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"bufio"
	"io"
	"strconv"

	"diskhook/storage/failure"
)

// XMLWriter is a Sink that writes what thin_dump prints, byte for byte, and
// what thin_restore reads (thin-provisioning-tools 0.9.0).
type XMLWriter struct {
	w       *bufio.Writer
	line    []byte
	current *Device
	mapped  uint64
}

// NewXMLWriter begins the description of a pool.
func NewXMLWriter(w io.Writer, sb Superblock) (*XMLWriter, error) {
	x := &XMLWriter{w: bufio.NewWriterSize(w, 1<<20)}
	var flags uint64
	if sb.NeedsCheck {
		flags = flagNeedsCheck
	}
	x.begin(`<superblock uuid=""`)
	x.attribute(` time="`, uint64(sb.Time))
	x.attribute(` transaction="`, sb.TransactionID)
	x.attribute(` flags="`, flags)
	x.attribute(` version="`, version)
	x.attribute(` data_block_size="`, uint64(sb.DataBlockSize))
	x.attribute(` nr_data_blocks="`, sb.DataBlocks)
	return x, x.end(">\n")
}

// Device begins a device; unlike the Builder, it needs to be told MappedBlocks.
func (x *XMLWriter) Device(d Device) error {
	if err := x.endDevice(); err != nil {
		return err
	}
	x.current, x.mapped = &d, 0
	x.begin("  <device")
	x.attribute(` dev_id="`, uint64(d.ID))
	x.attribute(` mapped_blocks="`, d.MappedBlocks)
	x.attribute(` transaction="`, d.Transaction)
	x.attribute(` creation_time="`, uint64(d.CreationTime))
	x.attribute(` snap_time="`, uint64(d.SnapTime))
	return x.end(">\n")
}

// Map adds a run to the device.
func (x *XMLWriter) Map(run Run) error {
	x.mapped += run.Length
	if run.Length == 1 {
		x.begin("    <single_mapping")
		x.attribute(` origin_block="`, run.Origin)
		x.attribute(` data_block="`, run.Data)
	} else {
		x.begin("    <range_mapping")
		x.attribute(` origin_begin="`, run.Origin)
		x.attribute(` data_begin="`, run.Data)
		x.attribute(` length="`, run.Length)
	}
	x.attribute(` time="`, uint64(run.Time))
	return x.end("/>\n")
}

func (x *XMLWriter) endDevice() error {
	switch d := x.current; {
	case d == nil:
		return nil
	case d.MappedBlocks != x.mapped:
		return damaged("thin device %d: %d blocks are mapped, where its details say %d", d.ID, x.mapped, d.MappedBlocks)
	}
	_, err := x.w.WriteString("  </device>\n")
	return err
}

// Finish ends the description.
func (x *XMLWriter) Finish() error {
	if err := x.endDevice(); err != nil {
		return err
	}
	if _, err := x.w.WriteString("</superblock>\n"); err != nil {
		return failure.Full(err)
	}
	return failure.Full(x.w.Flush())
}

func (x *XMLWriter) begin(text string) { x.line = append(x.line[:0], text...) }

func (x *XMLWriter) attribute(name string, v uint64) {
	x.line = append(strconv.AppendUint(append(x.line, name...), v, 10), '"')
}

func (x *XMLWriter) end(text string) error {
	x.line = append(x.line, text...)
	_, err := x.w.Write(x.line)
	return failure.Full(err)
}
