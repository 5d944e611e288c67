// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
)

// What each message begins with.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x0003e889045565a9 // to an option
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698 // the reply to a request
	magicStructured = 0x668e33ef // one chunk of the reply to a request
)

// Handshake flags, options and the replies to them.
const (
	fixedNewstyle = 1 << 0
	noZeroes      = 1 << 1

	optExportName     = 1
	optAbort          = 2
	optList           = 3
	optInfo           = 6
	optGo             = 7
	optStructured     = 8
	optSetMetaContext = 10

	replyAck         = 1
	replyServer      = 2
	replyInfo        = 3
	replyMetaContext = 4
	replyIsError     = 1 << 31
	replyErrUnsup    = replyIsError | 1
	replyErrInvalid  = replyIsError | 3
	replyErrUnknown  = replyIsError | 6 // no such export

	infoExport = 0
)

// maxText bounds what a peer may say in words: an option, the reply to one, a
// chunk that holds no data; in bytes.
const maxText = 64 << 10

// errProtocol says that the peer does not do what doc/proto.md says.
var errProtocol = errors.New("the other side does not keep to the NBD protocol")

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
		return option{}, fmt.Errorf("%w: no option", errProtocol)
	}
	data, err := readText(r, binary.BigEndian.Uint32(head[12:]))
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
		return option{}, fmt.Errorf("%w: no reply to an option", errProtocol)
	}
	data, err := readText(r, binary.BigEndian.Uint32(head[16:]))
	return option{binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:]), data}, err
}

func readText(r io.Reader, length uint32) ([]byte, error) {
	if length > maxText {
		return nil, fmt.Errorf("%w: %d bytes of text", errProtocol, length)
	}
	data := make([]byte, length)
	_, err := io.ReadFull(r, data)
	return data, err
}

// counted appends text and, before it, its length.
func counted(data []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(data, uint32(len(text))), text...)
}

// goData is the data of NBD_OPT_GO and NBD_OPT_INFO: the export's name, and no
// information asked for beside what always comes.
func goData(name string) []byte {
	return append(counted(nil, name), 0, 0)
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

// exportInfo is the data of the NBD_REP_INFO that describes an export.
func exportInfo(x Export) []byte {
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(x.Size))
	return binary.BigEndian.AppendUint16(b, x.Flags)
}

// exportOf reads exportInfo; ok is false where data is of another kind.
func exportOf(data []byte) (x Export, ok bool, err error) {
	if len(data) != 12 || binary.BigEndian.Uint16(data) != infoExport {
		return Export{}, false, nil
	}
	size := binary.BigEndian.Uint64(data[2:])
	if size > 1<<62 {
		return Export{}, false, fmt.Errorf("%w: a size of %d bytes", errProtocol, size)
	}
	return Export{Size: int64(size), Flags: binary.BigEndian.Uint16(data[10:])}, true, nil
}

// requestHead is a request up to what a Write writes.
func requestHead(id uint64, r Request) []byte {
	if r.Command == Write {
		r.Length = uint32(len(r.Data))
	}
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 28), magicRequest)
	head = binary.BigEndian.AppendUint16(head, r.Flags)
	head = binary.BigEndian.AppendUint16(head, uint16(r.Command))
	head = binary.BigEndian.AppendUint64(head, id)
	head = binary.BigEndian.AppendUint64(head, r.Offset)
	return binary.BigEndian.AppendUint32(head, r.Length)
}

func readRequest(in io.Reader) (Request, uint64, error) {
	var head [28]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return Request{}, 0, err
	}
	if binary.BigEndian.Uint32(head[:]) != magicRequest {
		return Request{}, 0, fmt.Errorf("%w: no request", errProtocol)
	}
	r := Request{
		Flags: binary.BigEndian.Uint16(head[4:]), Command: Command(binary.BigEndian.Uint16(head[6:])),
		Offset: binary.BigEndian.Uint64(head[16:]), Length: binary.BigEndian.Uint32(head[24:]),
	}
	id := binary.BigEndian.Uint64(head[8:])
	if (r.Command == Read || r.Command == Write) && r.Length > MaxRequest {
		return r, id, fmt.Errorf("%w: a request of %d bytes", errProtocol, r.Length)
	}
	var err error
	if r.Command == Write {
		r.Data = make([]byte, r.Length)
		_, err = io.ReadFull(in, r.Data)
	}
	return r, id, err
}

// simpleHead is a simple reply up to what a Read read.
func simpleHead(id uint64, err error) []byte {
	head := binary.BigEndian.AppendUint32(make([]byte, 0, 16), magicSimple)
	head = binary.BigEndian.AppendUint32(head, errno(err))
	return binary.BigEndian.AppendUint64(head, id)
}
