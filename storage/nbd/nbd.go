// SPDX-License-Identifier: Apache-2.0

// Package nbd speaks the NBD protocol: with the servers of QEMU, through which
// images are read and written, and with QEMU, to which it shows an export of
// our own.
//
//	Image    one export for who walks through it and wants to know its holes
//	Client   one export for many requests at once, each with its own context
//	Server   one export of ours, whose requests a function does
//	Relay    the same, but passed on to another server as they are
//
// The format is doc/proto.md of the NetworkBlockDevice project: the fixed
// newstyle handshake with NBD_OPT_GO. Numbers are big-endian. Only an Image asks
// for structured replies and the metadata context base:allocation; otherwise
// replies are simple, which every client of QEMU takes. There is no TLS.
//
// Peers are not trusted: whatever they send is bounded, and held against what
// was asked for. A request that the server refuses fails alone, with an *Error;
// after anything else the connection is of no use, and all that waits on it
// fails with ErrClosed.
package nbd

import (
	"errors"
	"syscall"

	"diskhook/storage/failure"
)

// ErrClosed says that the connection has ended. It is a failure.Temporary.
var ErrClosed = failure.Wrap(failure.Temporary, errors.New("the NBD connection has ended"))

// Error is what a server said about one request.
type Error struct {
	Errno syscall.Errno
	Text  string // "" where it gave a number only
}

// Error is one line. QEMU's text does not say why: "writing to file failed".
func (e *Error) Error() string {
	if e.Text != "" {
		return failure.OneLine(e.Text) + ": " + e.Errno.Error()
	}
	return e.Errno.Error()
}

func (e *Error) Unwrap() error { return e.Errno }

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

	blockStatus Command = 7
)

// onlyOne, a flag of the command, asks for one extent, not for a list.
const onlyOne = 1 << 3

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

// MaxRequest is the length of the longest read or write, in bytes, that QEMU
// sends and takes.
const MaxRequest = 32 << 20

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

// Extent is a piece of Len bytes that is, or is not, known to read as zeros.
type Extent struct {
	Len  int64
	Zero bool
}
