// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"diskhook/storage/failure"
)

// Format is a form of a stream, or of what is behind its addresses.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
	XML  Format = "xml"
	VHD  Format = "vhd" // the data itself
	Raw  Format = "raw" // the data itself, to be imported
)

// ParseFormat takes one of the formats that are allowed.
func ParseFormat(text string, allowed ...Format) (Format, error) {
	f := Format(text)
	if slices.Contains(allowed, f) {
		return f, nil
	}
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	err := failure.New(failure.Usage, "--format %q: no such format", text)
	return "", failure.Hint(err, "use one of %s", strings.Join(words, ", "))
}

// Write writes a stream in a form that has addresses: text, JSON or XML.
func (s Stream) Write(w io.Writer, f Format) error {
	switch f {
	case Text:
		return written(s.writeText(w))
	case JSON:
		return written(s.writeJSON(w))
	case XML:
		return written(s.writeXML(w))
	}
	return failure.New(failure.Usage, "a stream of addresses has no form %q", f)
}

func written(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("write the stream: %w", failure.Full(err))
}

// Read reads a stream in text or JSON. What is cut off, changed on its way or
// followed by something is refused with ErrStream.
func Read(r io.Reader) (Stream, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	start, err := in.Peek(8)
	if err != nil && !errors.Is(err, io.EOF) {
		return Stream{}, fmt.Errorf("read the stream: %w", err)
	}
	var s Stream
	switch {
	case strings.HasPrefix(magic, string(start)) && len(start) > 0:
		s, err = readText(in)
	case len(start) > 0 && start[0] == '{':
		s, err = readJSON(in)
	case len(start) > 0 && start[0] == '<':
		return Stream{}, refuse("export it in a form that is read back: `diskhook thin export --format text`", "the XML form is for thin_restore")
	case string(start) == "conectix":
		return Stream{}, refuse("import it as what it is: `diskhook thin import --format vhd`", "it is a VHD image")
	default:
		return Stream{}, refuse("", "it begins with %q", start)
	}
	if err != nil {
		return Stream{}, err
	}
	if err := s.check(); err != nil {
		return Stream{}, refuse("", "%w", err)
	}
	return s, nil
}

func refuse(way, format string, args ...any) error {
	err := failure.New(failure.Precondition, "stream: %w: "+format, append([]any{ErrStream}, args...)...)
	if way == "" {
		way = "export the volume again: `diskhook thin export`"
	}
	return failure.Hint(err, "%s", way)
}
