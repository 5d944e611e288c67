// SPDX-License-Identifier: Apache-2.0

// Package nbdproxy stands before an NBD export: a server for one export, and a
// client that has many requests under way, each with a context of its own.
//
// The format is doc/proto.md of the NetworkBlockDevice project: the fixed
// newstyle handshake with NBD_OPT_GO, then simple replies. Structured replies,
// TLS and meta contexts are declined, which every client of QEMU takes. Numbers
// are big-endian. Package nbd is for who reads an image, one request at a time,
// and wants to know its holes.
//
// A connection fails as a whole; a request that the server refuses fails alone,
// with a syscall.Errno.
package nbdproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"diskhook/storage/failure"
)

// ErrClosed says that the connection has ended. It is a failure.Temporary.
var ErrClosed = failure.Wrap(failure.Temporary, errors.New("the NBD connection has ended"))

// Command is what a request asks for.
type Command uint16

// The commands.
const (
	Read        Command = 0
	Write       Command = 1
	Disconnect  Command = 2
	Flush       Command = 3
	Trim        Command = 4
	WriteZeroes Command = 6
)

// Transmission flags of an export.
const (
	FlagHasFlags    = 1 << 0
	FlagReadOnly    = 1 << 1
	FlagFlush       = 1 << 2
	FlagFUA         = 1 << 3
	FlagTrim        = 1 << 5
	FlagWriteZeroes = 1 << 6
	FlagMultiConn   = 1 << 8
)

// FUA asks that the write is on the disk when it is acknowledged. It is the
// one command flag that is named here; others pass as they are.
const FUA = 1 << 0

// MostRequest is the length of the longest read or write, in bytes, that QEMU
// sends and takes.
const MostRequest = 32 << 20

// Request is one command. Data is what a Write writes; Length is that of the
// others, in bytes.
type Request struct {
	Command Command
	Flags   uint16
	Offset  uint64
	Length  uint32
	Data    []byte
}

// Export is what a server tells of one: Size in bytes, transmission Flags.
type Export struct {
	Size  int64
	Flags uint16
}

// Magic numbers of the handshake and of transmission.
const (
	magicInit     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption   = 0x49484156454f5054 // "IHAVEOPT"
	magicReply    = 0x0003e889045565a9 // of an option
	magicRequest  = 0x25609513
	magicResponse = 0x67446698
)

// Handshake flags, options and the replies to them.
const (
	fixedNewstyle = 1 << 0
	noZeroes      = 1 << 1

	optExportName = 1
	optAbort      = 2
	optList       = 3
	optInfo       = 6
	optGo         = 7

	replyAck        = 1
	replyServer     = 2
	replyInfo       = 3
	replyIsError    = 1 << 31
	replyErrUnsup   = replyIsError | 1
	replyErrInvalid = replyIsError | 3
	replyErrUnknown = replyIsError | 6

	infoExport = 0

	mostOption = 64 << 10 // bytes of one option or of the reply to one
)

// errnos are the error numbers of the protocol, which are Linux's own.
var errnos = []syscall.Errno{syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC, syscall.EOVERFLOW, syscall.ENOTSUP, syscall.ESHUTDOWN}

// errno is the protocol's number for err.
func errno(err error) uint32 {
	if err == nil {
		return 0
	}
	for _, e := range errnos {
		if errors.Is(err, e) {
			return uint32(e)
		}
	}
	return uint32(syscall.EIO)
}

// option is one option of a client, or a server's reply to one.
type option struct {
	kind uint32 // of the option; in a reply, of the option it answers
	code uint32 // of the reply
	data []byte
}

func writeOption(w io.Writer, kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

func readOption(r io.Reader) (option, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return option{}, err
	}
	if binary.BigEndian.Uint64(head[:]) != magicOption {
		return option{}, errors.New("not an NBD option")
	}
	data, err := readData(r, binary.BigEndian.Uint32(head[12:]))
	return option{kind: binary.BigEndian.Uint32(head[8:]), data: data}, err
}

func writeReply(w io.Writer, kind, code uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicReply)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, code)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

func readReply(r io.Reader) (option, error) {
	var head [20]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return option{}, err
	}
	if binary.BigEndian.Uint64(head[:]) != magicReply {
		return option{}, errors.New("not a reply to an NBD option")
	}
	data, err := readData(r, binary.BigEndian.Uint32(head[16:]))
	return option{binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:]), data}, err
}

func readData(r io.Reader, length uint32) ([]byte, error) {
	if length > mostOption {
		return nil, fmt.Errorf("an NBD option of %d bytes", length)
	}
	data := make([]byte, length)
	_, err := io.ReadFull(r, data)
	return data, err
}

// goData is the data of NBD_OPT_GO and NBD_OPT_INFO: the export's name, and no
// information asked for beside what always comes.
func goData(name string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	return append(append(b, name...), 0, 0)
}

// exportName is the name in goData.
func exportName(data []byte) (string, bool) {
	if len(data) < 6 {
		return "", false
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n)+6 > uint64(len(data)) {
		return "", false
	}
	return string(data[4 : 4+n]), true
}
