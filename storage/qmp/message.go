// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// message is any object that QEMU sends: its members say which.
type message struct {
	Greeting *greeting       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID uint64 `json:"id"`
	Event
}

type greeting struct {
	Version struct {
		QEMU Version `json:"qemu"`
	} `json:"version"`
}

// readMessage reads one line. A line without a member that QMP knows, one that
// is no JSON object and one that is too long are errors: what follows them could
// be anything.
func readMessage(in *bufio.Reader) (message, error) {
	var m message
	line, err := readLine(in)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("not QMP: %w", err)
	}
	if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event.Name == "" {
		return m, fmt.Errorf("not QMP: %.60q", line)
	}
	return m, nil
}

// readLine reads up to the next newline, of at most mostLine bytes.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > mostLine {
			return nil, fmt.Errorf("an object of more than %d bytes", mostLine)
		}
		line = append(line, part...)
		switch {
		case err == nil && len(bytes.TrimSpace(line)) == 0:
			line = line[:0]
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// decode is the outcome of the command called name.
func (m message) decode(name string, result any) error {
	if m.Error != nil {
		return &Error{Command: name, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("%s: its result: %w", name, err)
	}
	return nil
}
