// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"diskhook/storage/thin/layout"
)

const (
	schema = "diskhook.thin-stream/v1"
	// maxJSON bounds what is parsed at once; text has no such bound.
	maxJSON = 512 << 20
)

// document is the JSON form. Sizes are bytes, all else blocks.
type document struct {
	Schema     string         `json:"schema"`
	Cluster    string         `json:"cluster"`
	Volume     string         `json:"volume"`
	Name       string         `json:"name"`
	Number     uint32         `json:"number"`
	Generation uint64         `json:"generation"`
	State      State          `json:"state"`
	Size       uint64         `json:"size"`
	BlockSize  uint64         `json:"block_size"`
	DataBlocks uint64         `json:"data_blocks"`
	Runs       []addressesRun `json:"runs"`
	End        end            `json:"end"`
}

type addressesRun struct {
	Virtual  uint64 `json:"virtual"`
	Physical uint64 `json:"physical"`
	Length   uint64 `json:"length"`
	Base     uint32 `json:"base,omitempty"` // none: the volume's own
}

// writeJSON writes a line for each run, without having them all in memory as
// text: names, states and UUIDs need no quoting.
func (s *Stream) writeJSON(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(out, "{\n  \"schema\": %q,\n  \"cluster\": %q,\n  \"volume\": %q,\n  \"name\": %q,\n", schema, s.Cluster, s.Volume, s.Name)
	fmt.Fprintf(out, "  \"number\": %d,\n  \"generation\": %d,\n  \"state\": %q,\n  \"size\": %d,\n  \"block_size\": %d,\n  \"data_blocks\": %d,\n  \"runs\": [",
		s.Mapping.Number, s.Generation, s.State, s.Mapping.Size, s.Mapping.BlockSize, s.DataBlocks)
	for i, r := range s.Mapping.Runs {
		comma, base := ",", ""
		if i == 0 {
			comma = ""
		}
		if r.Base != 0 {
			base = `, "base": ` + strconv.FormatUint(uint64(r.Base), 10)
		}
		if _, err := fmt.Fprintf(out, "%s\n    {\"virtual\": %d, \"physical\": %d, \"length\": %d%s}", comma, r.Virtual, r.Physical, r.Length, base); err != nil {
			return err
		}
	}
	e := s.ended()
	fmt.Fprintf(out, "\n  ],\n  \"end\": {\"runs\": %d, \"blocks\": %d, \"crc32c\": %q}\n}\n", e.Runs, e.Blocks, e.CRC)
	return out.Flush()
}

func readJSON(in *bufio.Reader) (Stream, error) {
	limited := &io.LimitedReader{R: in, N: maxJSON}
	decoder := json.NewDecoder(limited)
	decoder.DisallowUnknownFields()
	var d document
	if err := decoder.Decode(&d); err != nil {
		switch {
		case limited.N <= 0:
			return Stream{}, refuse("export it as text, which may be longer", "more than %d bytes of JSON", maxJSON)
		case errors.Is(err, io.ErrUnexpectedEOF):
			return Stream{}, refuse("", "the JSON is cut off")
		}
		return Stream{}, refuse("", "JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Stream{}, refuse("", "something follows its end")
	}
	if d.Schema != schema {
		return Stream{}, refuse("install the diskhook that wrote it", "its schema is %q, and this diskhook knows %q", d.Schema, schema)
	}
	s := Stream{
		Name: d.Name, Generation: d.Generation, State: d.State, DataBlocks: d.DataBlocks,
		Mapping: layout.Mapping{Number: d.Number, BlockSize: d.BlockSize, Size: d.Size},
	}
	var err, other error
	s.Cluster, err = parseUUID(d.Cluster)
	s.Volume, other = parseUUID(d.Volume)
	if err = errors.Join(err, other); err != nil || len(d.Runs) > maxRuns {
		return Stream{}, refuse("", "cluster %q, volume %q, %d runs", d.Cluster, d.Volume, len(d.Runs))
	}
	for _, r := range d.Runs {
		s.Mapping.Runs = append(s.Mapping.Runs, layout.MappingRun(r))
	}
	if want := s.ended(); d.End != want {
		return Stream{}, refuse("", "it ends with %+v and has %+v", d.End, want)
	}
	return s, nil
}
