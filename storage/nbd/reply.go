// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// A structured reply is a row of chunks, of which the last says so. Types of
// chunks from chunkError on are errors.
const (
	chunkDone = 1 << 0 // a flag

	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkError       = 1 << 15

	stateZero = 1 << 1 // of base:allocation
)

// reply reads a simple reply, or one chunk.
func (c *Client) reply(in io.Reader) error {
	var magic uint32
	if err := binary.Read(in, binary.BigEndian, &magic); err != nil {
		return err
	}
	switch magic {
	case magicSimple:
		return c.simple(in)
	case magicStructured:
		return c.structured(in)
	}
	return fmt.Errorf("%w: no reply", errProtocol)
}

func (c *Client) simple(in io.Reader) error {
	var head struct {
		Errno  uint32
		Handle uint64
	}
	if err := binary.Read(in, binary.BigEndian, &head); err != nil {
		return err
	}
	p, err := c.waits(head.Handle, true)
	if err != nil {
		return err
	}
	if head.Errno != 0 {
		p.done <- &Error{Errno: syscall.Errno(head.Errno)}
		return nil
	}
	if _, err := io.ReadFull(in, p.into); err != nil {
		return err
	}
	p.done <- nil
	return nil
}

// waits is the request that a reply is for; after the last of it nobody waits.
func (c *Client) waits(id uint64, last bool) (*pending, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.waiting[id]
	if p == nil {
		return nil, fmt.Errorf("%w: a reply that nobody asked for", errProtocol)
	}
	if last {
		delete(c.waiting, id)
	}
	return p, nil
}

func (c *Client) structured(in io.Reader) error {
	var head struct {
		Flags, Kind uint16
		Handle      uint64
		Length      uint32
	}
	if err := binary.Read(in, binary.BigEndian, &head); err != nil {
		return err
	}
	last := head.Flags&chunkDone != 0
	p, err := c.waits(head.Handle, last)
	if err != nil {
		return err
	}
	if err := p.chunk(in, head.Kind, head.Length); err != nil {
		return err
	}
	switch {
	case !last:
		return nil
	case p.failed == nil && p.missing > 0:
		return fmt.Errorf("%w: %d bytes are missing", errProtocol, p.missing)
	}
	p.done <- p.failed
	return nil
}

// chunk reads one chunk's payload.
func (p *pending) chunk(in io.Reader, kind uint16, length uint32) error {
	if kind == chunkOffsetData {
		return p.data(in, length)
	}
	body, err := readText(in, length)
	if err != nil {
		return err
	}
	switch {
	case kind == chunkNone:
		return nil
	case kind == chunkOffsetHole && length == 12:
		part, err := p.part(binary.BigEndian.Uint64(body), int64(binary.BigEndian.Uint32(body[8:])))
		clear(part)
		return err
	case kind == chunkBlockStatus && length >= 12 && p.extent != nil:
		p.extent.Len = int64(binary.BigEndian.Uint32(body[4:]))
		p.extent.Zero = binary.BigEndian.Uint32(body[8:])&stateZero != 0
		return nil
	case kind&chunkError != 0 && length >= 6:
		text := body[6:]
		if n := int(binary.BigEndian.Uint16(body[4:])); n < len(text) {
			text = text[:n]
		}
		p.failed = errors.Join(p.failed, &Error{Errno: syscall.Errno(binary.BigEndian.Uint32(body)), Text: string(text)})
		return nil
	}
	return fmt.Errorf("%w: a chunk of type %d with %d bytes", errProtocol, kind, length)
}

func (p *pending) data(in io.Reader, length uint32) error {
	var at uint64
	if length < 8 {
		return fmt.Errorf("%w: data without an offset", errProtocol)
	}
	if err := binary.Read(in, binary.BigEndian, &at); err != nil {
		return err
	}
	part, err := p.part(at, int64(length)-8)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(in, part)
	return err
}

// part is where n bytes at offset of the export go; they are missing no more.
func (p *pending) part(offset uint64, n int64) ([]byte, error) {
	at := int64(offset) - int64(p.offset)
	if at < 0 || at > int64(len(p.into))-n {
		return nil, fmt.Errorf("%w: data that was not asked for", errProtocol)
	}
	p.missing -= int(n)
	return p.into[at : at+n], nil
}
