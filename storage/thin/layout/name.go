// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"strings"

	"github.com/google/uuid"

	"diskhook/storage/host"
)

// The logical volumes of a cluster that have no UUID in their names.
const (
	MapName  = "hosts"
	DataName = "global-thin-pool"
)

// Suffix is what a logical volume with a UUID in its name is for.
type Suffix string

// The suffixes.
const (
	Host Suffix = "host" // a host's private volume
	Thin Suffix = "thin" // mapping of a thin volume
	Raw  Suffix = "raw"  // a volume of its own
	VHD  Suffix = "vhd"  // the same as a dynamic VHD, for import and export
)

// Name is the logical volume of an object.
func (s Suffix) Name(id uuid.UUID) string { return id.String() + "." + string(s) }

// ParseName takes a logical volume's name apart; ok is false for one that no
// cluster makes.
func ParseName(name string) (id uuid.UUID, s Suffix, ok bool) {
	text, suffix, _ := strings.Cut(name, ".")
	switch s = Suffix(suffix); s {
	case Host, Thin, Raw, VHD:
	default:
		return uuid.Nil, "", false
	}
	if !host.IsUUID(text) {
		return uuid.Nil, "", false
	}
	return uuid.MustParse(text), s, true
}

// maxName bounds the names that people give hosts and volumes.
const maxName = 63

// ValidName says whether people may call a host or a volume so: letters, digits,
// ".", "_" and "-", at most 63, and no "-" or "." first.
func ValidName(name string) bool {
	if name == "" || len(name) > maxName || name[0] == '-' || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
