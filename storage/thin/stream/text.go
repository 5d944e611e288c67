// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"diskhook/storage/host"
	"diskhook/storage/thin/layout"
)

const (
	magic   = "diskhook-thin-stream 1"
	maxLine = 256
	// maxRuns is more than UUID.thin ever holds: 512 MiB in records of 24 bytes.
	maxRuns = 512 << 20 / 24
)

func newCRC() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// members are the lines of the head between the magic and the runs, in order.
func (s *Stream) members() []struct{ key, value string } {
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return []struct{ key, value string }{
		{"cluster", s.Cluster.String()},
		{"volume", s.Volume.String()},
		{"name", s.Name},
		{"number", number(uint64(s.Mapping.Number))},
		{"generation", number(s.Generation)},
		{"state", string(s.State)},
		{"size", number(s.Mapping.Size)},
		{"block-size", number(s.Mapping.BlockSize)},
		{"data-blocks", number(s.DataBlocks)},
	}
}

// body writes everything that the CRC is of.
func (s *Stream) body(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintln(out, magic)
	for _, m := range s.members() {
		fmt.Fprintln(out, m.key, m.value)
	}
	fmt.Fprintln(out, "runs")
	line := make([]byte, 0, maxLine)
	for _, r := range s.Mapping.Runs {
		line = line[:0]
		for _, n := range []uint64{r.Virtual, r.Physical, r.Length} {
			line = append(strconv.AppendUint(line, n, 10), ' ')
		}
		if r.Base == 0 {
			line = append(line, "private\n"...)
		} else {
			line = append(strconv.AppendUint(append(line, "base="...), uint64(r.Base), 10), '\n')
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
	return out.Flush()
}

// end is how a stream ends.
type end struct {
	Runs   uint64 `json:"runs"`
	Blocks uint64 `json:"blocks"`
	CRC    string `json:"crc32c"` // eight hexadecimal digits
}

func (s *Stream) end(crc uint32) end {
	return end{uint64(len(s.Mapping.Runs)), s.Mapping.Blocks(), fmt.Sprintf("%08x", crc)}
}

func (e end) line() string { return fmt.Sprintf("end %d %d %s\n", e.Runs, e.Blocks, e.CRC) }

// ended is how this stream has to end.
func (s *Stream) ended() end {
	crc := newCRC()
	_ = s.body(crc) // a hash takes everything
	return s.end(crc.Sum32())
}

func (s *Stream) writeText(w io.Writer) error {
	crc := newCRC()
	if err := s.body(io.MultiWriter(w, crc)); err != nil {
		return err
	}
	_, err := io.WriteString(w, s.end(crc.Sum32()).line())
	return err
}

// lines reads the text form line by line and sums up what was before the line at
// hand.
type lines struct {
	in     *bufio.Reader
	crc    hash.Hash32
	number int
	last   []byte
}

func (l *lines) next() (string, error) {
	_, _ = l.crc.Write(l.last)
	line, err := l.in.ReadSlice('\n')
	l.number++
	switch {
	case errors.Is(err, io.EOF):
		return "", refuse("", "it is cut off in line %d", l.number)
	case errors.Is(err, bufio.ErrBufferFull) || err == nil && len(line) > maxLine:
		return "", refuse("", "line %d is too long", l.number)
	case err != nil:
		return "", fmt.Errorf("read the stream: line %d: %w", l.number, err)
	}
	l.last = append(l.last[:0], line...)
	return string(line[:len(line)-1]), nil
}

func readText(in *bufio.Reader) (Stream, error) {
	l := &lines{in: in, crc: newCRC()}
	var s Stream
	first, err := l.next()
	if err != nil {
		return s, err
	}
	if first != magic {
		return s, refuse("install the diskhook that wrote it", "it begins with %q, and this diskhook knows %q", first, magic)
	}
	if err := l.head(&s); err != nil {
		return s, err
	}
	for {
		line, err := l.next()
		if err != nil {
			return s, err
		}
		if strings.HasPrefix(line, "end ") {
			return s, l.finish(&s, line+"\n")
		}
		run, err := parseRun(line)
		if err != nil || len(s.Mapping.Runs) == maxRuns {
			return s, refuse("", "line %d: %q is no run, or one too many", l.number, line)
		}
		s.Mapping.Runs = append(s.Mapping.Runs, run)
	}
}

// head reads the members. That each has the one way to be written is what
// comparing with the way that we write it sees to.
func (l *lines) head(s *Stream) error {
	parse := map[string]func(string) error{
		"cluster":     func(v string) (err error) { s.Cluster, err = parseUUID(v); return },
		"volume":      func(v string) (err error) { s.Volume, err = parseUUID(v); return },
		"name":        func(v string) error { s.Name = v; return nil },
		"number":      func(v string) error { n, err := parseNumber(v, 32); s.Mapping.Number = uint32(n); return err },
		"generation":  func(v string) (err error) { s.Generation, err = parseNumber(v, 64); return },
		"state":       func(v string) error { s.State = State(v); return nil },
		"size":        func(v string) (err error) { s.Mapping.Size, err = parseNumber(v, 64); return },
		"block-size":  func(v string) (err error) { s.Mapping.BlockSize, err = parseNumber(v, 64); return },
		"data-blocks": func(v string) (err error) { s.DataBlocks, err = parseNumber(v, 64); return },
	}
	for _, m := range s.members() {
		line, err := l.next()
		if err != nil {
			return err
		}
		key, value, _ := strings.Cut(line, " ")
		if key != m.key || parse[key](value) != nil {
			return refuse("", "line %d: %q where %s is wanted", l.number, line, m.key)
		}
	}
	line, err := l.next()
	if err == nil && line != "runs" {
		err = refuse("", "line %d: %q where runs are wanted", l.number, line)
	}
	return err
}

// finish compares the end with what came before it.
func (l *lines) finish(s *Stream, line string) error {
	if want := s.end(l.crc.Sum32()).line(); line != want {
		return refuse("", "line %d: it ends with %q and has %q", l.number, line[:len(line)-1], want[:len(want)-1])
	}
	if _, err := l.in.ReadByte(); !errors.Is(err, io.EOF) {
		return refuse("", "something follows its end")
	}
	return nil
}

func parseRun(line string) (layout.MappingRun, error) {
	words := strings.Split(line, " ")
	if len(words) != 4 {
		return layout.MappingRun{}, errors.New("four words")
	}
	var n [3]uint64
	var errs []error
	for i := range n {
		var err error
		n[i], err = parseNumber(words[i], 64)
		errs = append(errs, err)
	}
	run := layout.MappingRun{Virtual: n[0], Physical: n[1], Length: n[2]}
	if base, shared := strings.CutPrefix(words[3], "base="); shared {
		number, err := parseNumber(base, 32)
		run.Base = uint32(number)
		if errs = append(errs, err); number == 0 {
			errs = append(errs, errors.New("base 0"))
		}
	} else if words[3] != "private" {
		errs = append(errs, errors.New("neither private nor of a base"))
	}
	return run, errors.Join(errs...)
}

// parseNumber takes a number as it is written here, without signs and zeros
// before it.
func parseNumber(text string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, bits)
	if err == nil && strconv.FormatUint(n, 10) != text {
		err = strconv.ErrSyntax
	}
	return n, err
}

func parseUUID(text string) (uuid.UUID, error) {
	if !host.IsUUID(text) {
		return uuid.Nil, errors.New("no UUID")
	}
	return uuid.Parse(text)
}
