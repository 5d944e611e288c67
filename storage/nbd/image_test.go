// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/failure"
)

// fake is a server of one export of 64 KiB that keeps to the protocol but for
// what a test changes.
type fake struct {
	t        *testing.T
	greeting []byte                                                      // instead of anything
	options  func(option uint32, data []byte) (kind uint32, body []byte) // before the acknowledgement; kind 0: nothing
	answer   func(conn net.Conn, cmd uint16, handle, off uint64, n uint32) bool
}

const exportBytes = 64 << 10

func (f *fake) serve(conn net.Conn) {
	defer conn.Close()
	if f.greeting != nil {
		_, _ = conn.Write(f.greeting)
		return
	}
	_, _ = conn.Write(binary.BigEndian.AppendUint16([]byte("NBDMAGICIHAVEOPT"), fixedNewstyle|noZeroes))
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		return
	}
	for {
		var head struct {
			Magic          uint64
			Option, Length uint32
		}
		if binary.Read(conn, binary.BigEndian, &head) != nil {
			return
		}
		data := make([]byte, head.Length)
		_, _ = io.ReadFull(conn, data)
		reply := func(kind uint32, body []byte) {
			_ = binary.Write(conn, binary.BigEndian, struct {
				Magic                uint64
				Option, Kind, Length uint32
			}{magicReply, head.Option, kind, uint32(len(body))})
			_, _ = conn.Write(body)
		}
		if f.options != nil {
			if kind, body := f.options(head.Option, data); kind != 0 {
				reply(kind, body)
				if kind&replyIsError != 0 {
					continue
				}
			}
		}
		switch head.Option {
		case optSetMetaContext:
			reply(replyMetaContext, append([]byte{0, 0, 0, 7}, allocation...))
		case optGo:
			body := binary.BigEndian.AppendUint16(nil, infoExport)
			body = binary.BigEndian.AppendUint64(body, exportBytes)
			reply(replyInfo, binary.BigEndian.AppendUint16(body, FlagHasFlags|FlagFlush|FlagWriteZeroes))
		}
		reply(replyAck, nil)
		if head.Option == optGo {
			break
		}
	}
	for {
		var r struct {
			Magic       uint32
			Flags, Type uint16
			Handle, Off uint64
			Length      uint32
		}
		if binary.Read(conn, binary.BigEndian, &r) != nil || r.Type == uint16(Disconnect) || f.answer == nil {
			return
		}
		if !f.answer(conn, r.Type, r.Handle, r.Off, r.Length) {
			return
		}
	}
}

func (f *fake) dial(ctx context.Context) (*Image, error) {
	path := filepath.Join(f.t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = l.Close() })
	go func() {
		if conn, err := l.Accept(); err == nil {
			f.serve(conn)
		}
	}()
	return OpenImage(ctx, "unix", path, "disk")
}

// chunk writes a structured chunk.
func chunk(conn net.Conn, flags, kind uint16, handle uint64, payload []byte) {
	_ = binary.Write(conn, binary.BigEndian, struct {
		Magic       uint32
		Flags, Kind uint16
		Handle      uint64
		Length      uint32
	}{magicStructured, flags, kind, handle, uint32(len(payload))})
	_, _ = conn.Write(payload)
}

func at(off uint64, rest ...byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, off), rest...)
}

func TestReadPutsChunksTogether(t *testing.T) {
	f := &fake{t: t, answer: func(conn net.Conn, _ uint16, handle, off uint64, _ uint32) bool {
		chunk(conn, 0, chunkOffsetData, handle, at(off+6, 'd', 'e'))
		chunk(conn, 0, chunkOffsetHole, handle, at(off+2, 0, 0, 0, 4))
		chunk(conn, chunkDone, chunkOffsetData, handle, at(off, 'a', 'b'))
		return true
	}}
	c, err := f.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := bytes.Repeat([]byte{'x'}, 8)
	if _, err := c.ReadAt(p, 512); err != nil || string(p) != "ab\x00\x00\x00\x00de" {
		t.Errorf("%q %v", p, err)
	}
	if c.Size != exportBytes || c.ReadOnly {
		t.Errorf("%+v", c)
	}
	if _, err := c.ReadAt(p, exportBytes-4); failure.KindOf(err) != failure.Usage {
		t.Errorf("beyond its end: %v", err)
	}
}

// What the server says of one request is not the end of the connection.
func TestErrorsOfTheImage(t *testing.T) {
	f := &fake{t: t, answer: func(conn net.Conn, cmd uint16, handle, off uint64, n uint32) bool {
		switch {
		case Command(cmd) == Flush:
			_ = binary.Write(conn, binary.BigEndian, []uint32{magicSimple, 0})
			_ = binary.Write(conn, binary.BigEndian, handle)
		case off == 0:
			body := binary.BigEndian.AppendUint32(nil, uint32(syscall.EIO))
			chunk(conn, chunkDone, chunkError+1, handle, append(binary.BigEndian.AppendUint16(body, 8), "bad disk"...))
		default:
			chunk(conn, chunkDone, chunkOffsetData, handle, at(off, make([]byte, n)...))
		}
		return true
	}}
	c, err := f.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.ReadAt(make([]byte, 512), 0)
	var said *Error
	if !errors.As(err, &said) || !errors.Is(err, syscall.EIO) || said.Error() != "bad disk: input/output error" {
		t.Errorf("%v", err)
	}
	if _, err := c.ReadAt(make([]byte, 512), 512); err != nil {
		t.Error(err)
	}
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
}

// A server that lies, stops or hangs yields an error, and nothing after it.
func TestServersAreNotTrusted(t *testing.T) {
	for name, f := range map[string]*fake{
		"old style":      {greeting: append([]byte("NBDMAGIC"), make([]byte, 10)...)},
		"closes":         {greeting: []byte{}},
		"no such export": {options: func(o uint32, _ []byte) (uint32, []byte) { return only(o, optGo, replyErrUnknown, "none") }},
		"refuses":        {options: func(o uint32, _ []byte) (uint32, []byte) { return only(o, optGo, replyIsError|2, "policy") }},
		"too long a text": {options: func(o uint32, _ []byte) (uint32, []byte) {
			return only(o, optGo, replyInfo, string(make([]byte, maxText+1)))
		}},
		"too large": {options: func(o uint32, _ []byte) (uint32, []byte) {
			return only(o, optGo, replyInfo, "\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x01")
		}},
	} {
		f.t = t
		c, err := f.dial(t.Context())
		if err == nil {
			c.Close()
			t.Errorf("%s: taken", name)
		}
		if name == "no such export" && failure.KindOf(err) != failure.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, answer := range map[string]func(net.Conn, uint16, uint64, uint64, uint32) bool{
		"another handle": func(c net.Conn, _ uint16, h, off uint64, n uint32) bool {
			chunk(c, chunkDone, chunkOffsetData, h+1, at(off, make([]byte, n)...))
			return true
		},
		"too much": func(c net.Conn, _ uint16, h, off uint64, n uint32) bool {
			chunk(c, chunkDone, chunkOffsetData, h, at(off, make([]byte, n+1)...))
			return true
		},
		"elsewhere": func(c net.Conn, _ uint16, h, off uint64, n uint32) bool {
			chunk(c, chunkDone, chunkOffsetData, h, at(off-512, make([]byte, n)...))
			return true
		},
		"too little": func(c net.Conn, _ uint16, h, off uint64, n uint32) bool {
			chunk(c, chunkDone, chunkOffsetData, h, at(off, make([]byte, n-1)...))
			return true
		},
		"a huge hole": func(c net.Conn, _ uint16, h, off uint64, _ uint32) bool {
			chunk(c, chunkDone, chunkOffsetHole, h, at(off, 0xff, 0xff, 0xff, 0xff))
			return true
		},
		"nothing": func(net.Conn, uint16, uint64, uint64, uint32) bool { return false },
	} {
		f := &fake{t: t, answer: answer}
		c, err := f.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadAt(make([]byte, 512), 1024); failure.KindOf(err) != failure.Temporary {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.Flush(); err == nil {
			t.Errorf("%s: goes on", name)
		}
		c.Close()
	}
}

func only(option, wanted, kind uint32, body string) (uint32, []byte) {
	if option != wanted {
		return 0, nil
	}
	return kind, []byte(body)
}

func TestAHangingServerHangsNobody(t *testing.T) {
	f := &fake{t: t, answer: func(net.Conn, uint16, uint64, uint64, uint32) bool { time.Sleep(time.Hour); return false }}
	ctx, cancel := context.WithCancel(t.Context())
	c, err := f.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := c.ReadAt(make([]byte, 512), 0); failure.KindOf(err) != failure.Temporary {
		t.Errorf("%v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := OpenImage(ctx, "unix", l.Addr().String(), ""); failure.KindOf(err) != failure.Temporary {
		t.Errorf("%v", err)
	}
}
