// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"encoding/binary"
	"fmt"
	"io"

	"diskhook/storage/failure"
)

// allocation is the metadata context that says where an image is zero.
const allocation = "base:allocation"

// greet asks a server for an export. Requests may follow, and replies to them
// are simple.
func greet(conn io.ReadWriter, name string) (Export, error) {
	if err := hello(conn); err != nil {
		return Export{}, err
	}
	return choose(conn, name)
}

// greetForExtents is greet for who also wants to know about holes. Replies are
// structured where the server can; extents says that it knows of holes.
func greetForExtents(conn io.ReadWriter, name string) (x Export, extents bool, err error) {
	if err := hello(conn); err != nil {
		return Export{}, false, err
	}
	structured, err := ask(conn, optStructured, nil, nil)
	if err != nil {
		return Export{}, false, err
	}
	if structured {
		if extents, err = askExtents(conn, name); err != nil {
			return Export{}, false, err
		}
	}
	x, err = choose(conn, name)
	return x, extents, err
}

func hello(conn io.ReadWriter) error {
	var said struct {
		Init, Option uint64
		Flags        uint16
	}
	if err := binary.Read(conn, binary.BigEndian, &said); err != nil {
		return err
	}
	if said.Init != magicInit || said.Option != magicOption || said.Flags&fixedNewstyle == 0 {
		return fmt.Errorf("%w: no fixed newstyle server", errProtocol)
	}
	return binary.Write(conn, binary.BigEndian, uint32(said.Flags&(fixedNewstyle|noZeroes)))
}

func askExtents(conn io.ReadWriter, name string) (known bool, err error) {
	data := binary.BigEndian.AppendUint32(counted(nil, name), 1)
	_, err = ask(conn, optSetMetaContext, counted(data, allocation), func(code uint32, body []byte) error {
		known = known || code == replyMetaContext && len(body) == 4+len(allocation) && string(body[4:]) == allocation
		return nil
	})
	return known, err
}

// choose enters the transmission phase.
func choose(conn io.ReadWriter, name string) (x Export, err error) {
	known := false
	accepted, err := ask(conn, optGo, goData(name), func(code uint32, body []byte) error {
		switch {
		case code == replyErrUnknown:
			return failure.New(failure.NotFound, "no export %q: %s", name, failure.OneLine(string(body)))
		case code&replyIsError != 0:
			return fmt.Errorf("the server refuses export %q: %s", name, failure.OneLine(string(body)))
		case code == replyInfo:
			info, ok, err := exportOf(body)
			if ok {
				x, known = info, true
			}
			return err
		}
		return nil
	})
	if err == nil && !(accepted && known) {
		err = fmt.Errorf("%w: export %q is not described", errProtocol, name)
	}
	return x, err
}

// ask sends an option and reads replies until the last. hear hears of all but
// the acknowledgement.
func ask(conn io.ReadWriter, kind uint32, data []byte, hear func(code uint32, body []byte) error) (accepted bool, err error) {
	if err := writeOption(conn, kind, data); err != nil {
		return false, err
	}
	const most = 64
	for range most {
		r, err := readReply(conn)
		switch {
		case err != nil:
			return false, err
		case r.kind != kind:
			return false, fmt.Errorf("%w: option %d answered for option %d", errProtocol, r.kind, kind)
		case r.code == replyAck:
			return true, nil
		}
		if hear != nil {
			if err := hear(r.code, r.data); err != nil {
				return false, err
			}
		}
		if r.code&replyIsError != 0 {
			return false, nil
		}
	}
	return false, fmt.Errorf("%w: too many replies to option %d", errProtocol, kind)
}
