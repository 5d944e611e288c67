// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// documentVersion is that of every kind of document.
const documentVersion = 1

// descriptor says what a repository is. Its nonce tells two repositories apart,
// whatever hosts call them.
type descriptor struct {
	V       int       `json:"v"`
	Format  string    `json:"format"`
	Nonce   string    `json:"nonce"`
	Created time.Time `json:"created"`
}

// image is what callers name. Gen rises with every change.
type image struct {
	V        int             `json:"v"`
	ID       string          `json:"id"`
	Gen      int64           `json:"gen"`
	Kind     Kind            `json:"kind"`
	Weak     bool            `json:"weak,omitempty"`
	Size     int64           `json:"size"`
	Strategy Strategy        `json:"strategy"`
	Volume   string          `json:"volume,omitempty"`
	Base     string          `json:"base,omitempty"` // the snapshot it was made of
	UserData json.RawMessage `json:"userData,omitempty"`
	Created  time.Time       `json:"created"`
	// Request is the digest of what a verb with a request id was asked.
	Request string `json:"request,omitempty"`
	// Cut is the snapshot that is being made of a disk: until that is done nobody
	// may write it. It is void once that image has no such plan any more.
	Cut  string  `json:"cut,omitempty"`
	Plan *plan   `json:"plan,omitempty"`
	Last *record `json:"last,omitempty"` // the status when the last plan ended
}

// volume is a slab of data. Until it is complete, nobody may rely on its content.
type volume struct {
	V        int    `json:"v"`
	ID       string `json:"id"`
	Gen      int64  `json:"gen"`
	Format   string `json:"format"`
	Size     int64  `json:"size"`            // virtual, in bytes
	Below    string `json:"below,omitempty"` // the volume it lies on
	Complete bool   `json:"complete,omitempty"`
	// Erase is what has to be done with its data before that is deleted.
	Erase *erasure `json:"erase,omitempty"`
}

// operation is an open plan's entry in the index of plans, and its status.
type operation struct {
	V    int    `json:"v"`
	Plan string `json:"plan"` // its nonce
	record
}

// record is the persisted status of the last work on an image.
type record struct {
	Verb    string    `json:"verb"`
	Host    string    `json:"host"`
	Boot    string    `json:"boot,omitempty"`
	Stage   int       `json:"stage"` // 1 to Stages; 0 is not begun
	Stages  int       `json:"stages"`
	Name    string    `json:"name,omitempty"` // of the stage
	Percent int       `json:"percent"`        // of the stage, -1 is unknown
	Error   string    `json:"error,omitempty"`
	Code    string    `json:"code,omitempty"` // the error's kind, as package failure has it
	Updated time.Time `json:"updated"`
}

// pins say who uses an image.
type pins struct {
	V       int      `json:"v"`
	Image   string   `json:"image,omitempty"` // those of earlier releases do not say it
	Holders []holder `json:"holders"`
}

// holder uses an image on a host until that boots again.
type holder struct {
	Name  string `json:"name"`
	Host  string `json:"host"`
	Boot  string `json:"boot"`
	Write bool   `json:"write,omitempty"`
}

// stopRequest asks the worker of a plan to stop.
type stopRequest struct {
	V    int    `json:"v"`
	Plan string `json:"plan"`
	Host string `json:"host"` // who asks
}

// crcTable is that of CRC-32C.
var crcTable = crc32.MakeTable(crc32.Castagnoli)

const crcFormat = "crc32c %08x\n"

// encode renders a document: its JSON in one line, and the line's checksum.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	fmt.Fprintf(&b, crcFormat, crc32.Checksum(b.Bytes(), crcTable))
	if b.Len() > format.MaxDocument {
		return nil, failure.New(failure.Usage, "it takes %d bytes to describe; a document holds %d", b.Len(), format.MaxDocument)
	}
	return b.Bytes(), nil
}

// titled is a document that says itself what it is about; "" is that it does not.
type titled interface{ about() string }

func (img *image) about() string { return img.ID }
func (v *volume) about() string  { return v.ID }
func (p *pins) about() string    { return p.Image }

// decode reads what encode made and somebody keeps under id. ErrDamaged, also if it is
// whole and the document of something else: a file that was put in another one's place
// would have one image read the data of the other. Or ErrVersion.
func decode(data []byte, id string, v any) error {
	known := fmt.Appendf(nil, `{"v":%d,`, documentVersion) // as encode writes it
	line := bytes.IndexByte(data, '\n') + 1
	if line == 0 || fmt.Sprintf(crcFormat, crc32.Checksum(data[:line], crcTable)) != string(data[line:]) {
		return fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
	}
	if !bytes.HasPrefix(data, known) {
		var version struct {
			V int `json:"v"`
		}
		if err := json.Unmarshal(data[:line], &version); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if version.V != documentVersion {
			return fmt.Errorf("version %d: %w (%d is)", version.V, ErrVersion, documentVersion)
		}
	}
	if err := json.Unmarshal(data[:line], v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if doc, ok := v.(titled); ok && doc.about() != id && doc.about() != "" {
		return fmt.Errorf("%w: it is that of %q", ErrDamaged, clip(doc.about()))
	}
	return nil
}
