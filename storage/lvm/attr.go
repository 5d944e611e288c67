// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"fmt"

	"diskhook/storage/failure"
)

// Attr is lv_attr: ten characters, a place each (lvs(8), "lv_attr bits").
// The zero value knows nothing.
type Attr [10]byte

// The places of Attr.
const (
	atType       = iota // V thin volume, t thin pool, o origin, s snapshot, - plain …
	atPermission        // w writable, r read-only, R activated read-only
	atAllocation
	atMinor  // m: fixed minor number
	atState  // a active, s suspended, X unknown …
	atOpen   // o open, X unknown
	atTarget // kernel target: t thin, m mirror …
	atZero   // z: new blocks read as zeros
	atHealth // p partial, F failed, D out of data space, M metadata read-only …
	atSkip   // k: activation is skipped
)

// parseAttr reads lv_attr. A longer one of a later LVM is cut off; a shorter
// one, or one with other than printable ASCII, is an error.
func parseAttr(s string) (Attr, error) {
	var a Attr
	if len(s) < len(a) {
		return Attr{}, fmt.Errorf("lv_attr %q: fewer than %d characters", s, len(a))
	}
	for i := range a {
		if s[i] <= ' ' || s[i] > '~' {
			return Attr{}, fmt.Errorf("lv_attr %q: character %d is not one", s, i+1)
		}
		a[i] = s[i]
	}
	return a, nil
}

// String is lv_attr as LVM printed it; "" for the zero value.
func (a Attr) String() string {
	if a == (Attr{}) {
		return ""
	}
	return string(a[:])
}

// MarshalText makes Attr a string in JSON.
func (a Attr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Active says whether a mapped device with a table exists, suspended or not;
// nil is unknown.
func (a Attr) Active() *bool {
	switch a[atState] {
	case 'X', 0:
		return nil
	case '-', 'd', 'i', 'h': // inactive; device without (live) table; historical
		return new(false)
	}
	return new(true)
}

// Open says whether somebody holds the device; nil is unknown.
func (a Attr) Open() *bool {
	switch a[atOpen] {
	case 'o':
		return new(true)
	case '-':
		return new(false)
	}
	return nil
}

// Pool says that this is a thin pool.
func (a Attr) Pool() bool { return a[atType] == 't' }

// Thin says that this is a thin volume.
func (a Attr) Thin() bool { return a[atType] == 'V' }

// Writable says that the volume's metadata allows writing.
func (a Attr) Writable() bool { return a[atPermission] == 'w' || a[atPermission] == 'R' }

// Zeroes says that a block of this pool or thin volume reads as zeros until
// it is written. Only then does a new thin volume count as zeroed.
func (a Attr) Zeroes() bool { return a[atZero] == 'z' }

// skipActivation says that only an activation with -K activates it.
func (a Attr) skipActivation() bool { return a[atSkip] == 'k' }

// What can be wrong with a volume (Attr.Health, LV.Health). All are
// failure.Precondition: the volume must not be used before an operator has
// looked.
var (
	ErrPartial         = sick("devices of the volume are missing (partial)")
	ErrSuspended       = sick("the device is suspended")
	ErrNoTable         = sick("the device has no table")
	ErrInvalidSnapshot = sick("the snapshot is invalid")
	ErrMergeFailed     = sick("a snapshot merge failed")
	ErrCheckNeeded     = sick("the thin pool needs a check")
	ErrDataFull        = failure.Wrap(failure.NoSpace, errors.New("the thin pool is out of data space"))
	ErrMetadata        = sick("the thin pool's metadata is read-only")
	ErrFailed          = sick("the thin pool or volume has failed")
	ErrRefresh         = sick("the raid volume lost a device (refresh needed)")
	ErrMismatch        = sick("the raid volume has mismatches")
	ErrUnknownHealth   = sick("the health of the volume is unknown")
)

func sick(text string) error { return failure.Wrap(failure.Precondition, errors.New(text)) }

// states and healths map the characters that mean sickness. Characters that
// are not here are well, or none of our business (writemostly, a reshape).
var (
	states = map[byte]error{
		's': ErrSuspended, 'd': ErrNoTable, 'i': ErrNoTable,
		'I': ErrInvalidSnapshot, 'S': ErrInvalidSnapshot, 'm': ErrMergeFailed, 'M': ErrMergeFailed,
		'c': ErrCheckNeeded, 'C': ErrCheckNeeded,
	}
	healths = map[byte]error{
		'p': ErrPartial, 'r': ErrRefresh, 'm': ErrMismatch, 'E': ErrFailed,
		'F': ErrFailed, 'D': ErrDataFull, 'M': ErrMetadata, 'X': ErrUnknownHealth,
	}
)

// Health returns what is wrong, the health place first, or nil. An unknown
// state ('X' for active and open) is no sickness: see Active and Open.
func (a Attr) Health() error {
	if err := healths[a[atHealth]]; err != nil {
		return err
	}
	return states[a[atState]]
}
