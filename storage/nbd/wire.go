// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"diskhook/storage/failure"
)

// The numbers of doc/proto.md.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	handshakeFixed    = 1 << 0
	handshakeNoZeroes = 1 << 1

	optGo             = 7
	optStructured     = 8
	optSetMetaContext = 10

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4
	repError       = 1 << 31
	repUnknown     = repError + 6 // no such export

	infoExport = 0

	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagWriteZeroes = 1 << 6

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	reqOne = 1 << 3

	chunkDone        = 1 << 0
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkError       = 1 << 15

	stateZero = 1 << 1

	allocation = "base:allocation"
	// maxText bounds what a server may say in words.
	maxText = 64 << 10
)

// negotiate agrees on structured replies, base:allocation and the export.
func (c *Conn) negotiate(export string) error {
	var hello struct {
		Server, Option uint64
		Flags          uint16
	}
	if err := binary.Read(c.conn, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.Server != magicServer || hello.Option != magicOption || hello.Flags&handshakeFixed == 0 {
		return fmt.Errorf("%w: no fixed newstyle server", errProtocol)
	}
	if err := binary.Write(c.conn, binary.BigEndian, uint32(hello.Flags&(handshakeFixed|handshakeNoZeroes))); err != nil {
		return err
	}
	structured := false
	if err := c.option(optStructured, nil, nil, &structured); err != nil {
		return err
	}
	if structured {
		if err := c.metaContext(export); err != nil {
			return err
		}
	}
	return c.choose(export)
}

func (c *Conn) metaContext(export string) error {
	data := counted(nil, export)
	data = binary.BigEndian.AppendUint32(data, 1)
	data = counted(data, allocation)
	return c.option(optSetMetaContext, data, func(kind uint32, body []byte) error {
		if kind == repMetaContext && len(body) == 4+len(allocation) && string(body[4:]) == allocation {
			c.status = true
		}
		return nil
	}, new(bool))
}

// choose enters the transmission phase.
func (c *Conn) choose(export string) error {
	data := binary.BigEndian.AppendUint16(counted(nil, export), 0)
	accepted, known := false, false
	err := c.option(optGo, data, func(kind uint32, body []byte) error {
		if kind == repInfo && len(body) == 12 && binary.BigEndian.Uint16(body) == infoExport {
			size := binary.BigEndian.Uint64(body[2:])
			if size > 1<<62 {
				return fmt.Errorf("%w: a size of %d bytes", errProtocol, size)
			}
			c.Size, c.flags, known = int64(size), binary.BigEndian.Uint16(body[10:]), true
			c.ReadOnly = c.flags&flagReadOnly != 0
		}
		if kind == repUnknown {
			return failure.New(failure.NotFound, "no export %q: %s", export, failure.OneLine(string(body)))
		}
		if kind&repError != 0 {
			return fmt.Errorf("export %q: %s", export, failure.OneLine(string(body)))
		}
		return nil
	}, &accepted)
	if err == nil && !(accepted && known) {
		err = fmt.Errorf("%w: export %q is not described", errProtocol, export)
	}
	return err
}

func counted(data []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(data, uint32(len(text))), text...)
}

// option sends an option and reads replies until the last. A refusal leaves
// accepted as it is; reply hears of everything but the acknowledgement.
func (c *Conn) option(option uint32, data []byte, reply func(kind uint32, body []byte) error, accepted *bool) error {
	msg := binary.BigEndian.AppendUint64(nil, magicOption)
	msg = binary.BigEndian.AppendUint32(msg, option)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(data)))
	if _, err := c.conn.Write(append(msg, data...)); err != nil {
		return err
	}
	for range 64 {
		var head struct {
			Magic                uint64
			Option, Kind, Length uint32
		}
		if err := binary.Read(c.conn, binary.BigEndian, &head); err != nil {
			return err
		}
		if head.Magic != magicReply || head.Option != option || head.Length > maxText {
			return fmt.Errorf("%w: reply to option %d", errProtocol, option)
		}
		body := make([]byte, head.Length)
		if _, err := io.ReadFull(c.conn, body); err != nil {
			return err
		}
		if head.Kind == repAck {
			*accepted = true
			return nil
		}
		if reply != nil {
			if err := reply(head.Kind, body); err != nil {
				return err
			}
		}
		if head.Kind&repError != 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: too many replies to option %d", errProtocol, option)
}

func (c *Conn) send(cmd, flags uint16, off int64, n int, data []byte) error {
	c.handle++
	msg := binary.BigEndian.AppendUint32(nil, magicRequest)
	msg = binary.BigEndian.AppendUint16(msg, flags)
	msg = binary.BigEndian.AppendUint16(msg, cmd)
	msg = binary.BigEndian.AppendUint64(msg, c.handle)
	msg = binary.BigEndian.AppendUint64(msg, uint64(off))
	msg = binary.BigEndian.AppendUint32(msg, uint32(n))
	if _, err := c.conn.Write(msg); err != nil {
		return err
	}
	if len(data) == 0 {
		return nil
	}
	_, err := c.conn.Write(data)
	return err
}

// request sends one request and waits for its reply. into receives what is
// read, extent the first descriptor of a block status.
func (c *Conn) request(cmd, flags uint16, off int64, n int, data, into []byte, extent func([]byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	err := c.send(cmd, flags, off, n, data)
	if err == nil {
		err = c.reply(off, into, extent)
	}
	var said *Error
	if err != nil && !errors.As(err, &said) {
		c.broken = failure.New(failure.Temporary, "the connection to the image broke: %w", err)
		return c.broken
	}
	return err
}

// reply reads chunks until the last one; an error in one of them is returned
// in the end.
func (c *Conn) reply(off int64, into []byte, extent func([]byte)) error {
	var failed error
	for missing := len(into); ; {
		var magic uint32
		if err := binary.Read(c.conn, binary.BigEndian, &magic); err != nil {
			return err
		}
		if magic == magicSimple {
			return c.simple(into)
		}
		var head struct {
			Flags, Kind uint16
			Handle      uint64
			Length      uint32
		}
		if err := binary.Read(c.conn, binary.BigEndian, &head); err != nil {
			return err
		}
		if magic != magicStructured || head.Handle != c.handle {
			return fmt.Errorf("%w: an answer to nothing", errProtocol)
		}
		got, err := c.chunk(head.Kind, int(head.Length), off, into, extent)
		var said *Error
		if err != nil && !errors.As(err, &said) {
			return err
		}
		failed, missing = errors.Join(failed, err), missing-got
		if head.Flags&chunkDone == 0 {
			continue
		}
		if failed == nil && missing > 0 {
			return fmt.Errorf("%w: %d bytes are missing", errProtocol, missing)
		}
		return failed
	}
}

func (c *Conn) simple(into []byte) error {
	var head struct {
		Errno  uint32
		Handle uint64
	}
	if err := binary.Read(c.conn, binary.BigEndian, &head); err != nil {
		return err
	}
	if head.Handle != c.handle {
		return fmt.Errorf("%w: an answer to nothing", errProtocol)
	}
	if head.Errno != 0 {
		return &Error{Errno: syscall.Errno(head.Errno)}
	}
	_, err := io.ReadFull(c.conn, into)
	return err
}

// chunk reads one chunk's payload; it returns how many bytes of into it fills.
func (c *Conn) chunk(kind uint16, length int, off int64, into []byte, extent func([]byte)) (int, error) {
	if kind == chunkOffsetData {
		return c.data(length, off, into)
	}
	if length > maxText {
		return 0, fmt.Errorf("%w: a chunk of %d bytes", errProtocol, length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		return 0, err
	}
	switch {
	case kind == chunkNone:
		return 0, nil
	case kind == chunkOffsetHole && length == 12:
		part, err := within(into, int64(binary.BigEndian.Uint64(body))-off, int64(binary.BigEndian.Uint32(body[8:])))
		clear(part)
		return len(part), err
	case kind == chunkBlockStatus && length >= 12 && extent != nil:
		extent(body[4:12])
		return 0, nil
	case kind&chunkError != 0 && length >= 6:
		text := body[6:]
		if n := int(binary.BigEndian.Uint16(body[4:])); n < len(text) {
			text = text[:n]
		}
		return 0, &Error{Errno: syscall.Errno(binary.BigEndian.Uint32(body)), Text: string(text)}
	}
	return 0, fmt.Errorf("%w: a chunk of type %d with %d bytes", errProtocol, kind, length)
}

func (c *Conn) data(length int, off int64, into []byte) (int, error) {
	var at uint64
	if length < 8 {
		return 0, fmt.Errorf("%w: data without an offset", errProtocol)
	}
	if err := binary.Read(c.conn, binary.BigEndian, &at); err != nil {
		return 0, err
	}
	part, err := within(into, int64(at)-off, int64(length-8))
	if err != nil {
		return 0, err
	}
	return io.ReadFull(c.conn, part)
}

func within(into []byte, at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || at > int64(len(into))-n {
		return nil, fmt.Errorf("%w: data that was not asked for", errProtocol)
	}
	return into[at : at+n], nil
}
