// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"fmt"
	"strconv"
	"strings"
)

// Status is the status of a device with one target: one of the fields is set.
type Status struct {
	Pool *PoolStatus
	Thin *ThinStatus
}

// Mode is what a pool can do at present.
type Mode string

// The modes.
const (
	ReadWrite      Mode = "rw"
	OutOfDataSpace Mode = "out_of_data_space"
	ReadOnly       Mode = "ro" // metadata cannot change; discards are dropped in silence
	Failed         Mode = "Fail"
)

// PoolStatus is the line
//
//	TRANSACTION USED/TOTAL USED/TOTAL HELD MODE DISCARD NOSPACE CHECK WATERMARK
//
// with metadata blocks of 4 KiB first and then data blocks. Old kernels end after
// DISCARD. A pool that has failed says "Fail" alone.
type PoolStatus struct {
	Transaction                 uint64
	MetadataUsed, MetadataTotal uint64 // blocks of 4 KiB
	DataUsed, DataTotal         uint64 // data blocks
	HeldRoot                    uint64 // block of the metadata snapshot, 0 for none
	Mode                        Mode
	Discard                     string // discard_passdown, no_discard_passdown or ignore_discard
	ErrorIfNoSpace              bool
	NeedsCheck                  bool
	MetadataLowWater            uint64 // blocks; 0 where the kernel does not tell
}

// Free is how many data blocks the pool can still allocate.
func (s PoolStatus) Free() uint64 { return s.DataTotal - s.DataUsed }

// String is the kernel's line.
func (s PoolStatus) String() string {
	if s.Mode == Failed {
		return string(Failed)
	}
	held, space, check := "-", "queue_if_no_space", "-"
	if s.HeldRoot != 0 {
		held = strconv.FormatUint(s.HeldRoot, 10)
	}
	if s.ErrorIfNoSpace {
		space = "error_if_no_space"
	}
	if s.NeedsCheck {
		check = "needs_check"
	}
	return fmt.Sprintf("%d %d/%d %d/%d %s %s %s %s %s %d", s.Transaction, s.MetadataUsed, s.MetadataTotal, s.DataUsed, s.DataTotal, held,
		s.Mode, s.Discard, space, check, s.MetadataLowWater)
}

// ParsePoolStatus reads the kernel's line.
func ParsePoolStatus(line string) (PoolStatus, error) {
	w := strings.Fields(line)
	if len(w) == 1 && (w[0] == "Fail" || w[0] == "Error") {
		return PoolStatus{Mode: Failed}, nil
	}
	bad := fmt.Errorf("status of a thin pool: %q", line)
	if len(w) < 6 {
		return PoolStatus{}, bad
	}
	var s PoolStatus
	ok := true
	number := func(text string, to *uint64) {
		n, err := strconv.ParseUint(text, 10, 64)
		*to, ok = n, ok && err == nil
	}
	part := func(text string, used, total *uint64) {
		a, b, _ := strings.Cut(text, "/")
		number(a, used)
		number(b, total)
		ok = ok && *used <= *total
	}
	number(w[0], &s.Transaction)
	part(w[1], &s.MetadataUsed, &s.MetadataTotal)
	part(w[2], &s.DataUsed, &s.DataTotal)
	if w[3] != "-" {
		number(w[3], &s.HeldRoot)
	}
	s.Mode, s.Discard = Mode(w[4]), w[5]
	switch s.Mode {
	case ReadWrite, OutOfDataSpace, ReadOnly:
	default:
		ok = false
	}
	if len(w) > 6 {
		s.ErrorIfNoSpace = w[6] == "error_if_no_space"
	}
	if len(w) > 7 {
		s.NeedsCheck = w[7] == "needs_check"
	}
	if len(w) > 8 {
		number(w[8], &s.MetadataLowWater)
	}
	if !ok {
		return PoolStatus{}, bad
	}
	return s, nil
}

// ThinStatus is the line
//
//	MAPPED_SECTORS HIGHEST_MAPPED_SECTOR
//
// with "-" for the second where nothing is mapped. A device whose pool has failed
// says "Fail".
type ThinStatus struct {
	Mapped  uint64 // sectors
	Highest uint64 // sector; counts only if Mapped is not 0
	Failed  bool
}

// String is the kernel's line.
func (s ThinStatus) String() string {
	switch {
	case s.Failed:
		return string(Failed)
	case s.Mapped == 0:
		return "0 -"
	}
	return fmt.Sprintf("%d %d", s.Mapped, s.Highest)
}

// ParseThinStatus reads the kernel's line.
func ParseThinStatus(line string) (ThinStatus, error) {
	var s ThinStatus
	w := strings.Fields(line)
	bad := fmt.Errorf("status of a thin device: %q", line)
	if len(w) == 1 && (w[0] == "Fail" || w[0] == "-" || w[0] == "Error") {
		return ThinStatus{Failed: true}, nil
	}
	if len(w) != 2 {
		return s, bad
	}
	var err error
	if s.Mapped, err = strconv.ParseUint(w[0], 10, 64); err != nil {
		return s, bad
	}
	if w[1] == "-" && s.Mapped == 0 {
		return s, nil
	}
	if s.Highest, err = strconv.ParseUint(w[1], 10, 64); err != nil || s.Mapped == 0 {
		return s, bad
	}
	return s, nil
}
