// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
)

func TestAttrActiveAndOpen(t *testing.T) {
	for attr, want := range map[string]struct{ active, open *bool }{
		"-wi-------": {new(false), new(false)},
		"-wi-a-----": {new(true), new(false)},
		"-wi-ao---k": {new(true), new(true)},
		"-wi-s-----": {new(true), new(false)}, // suspended: there is a device
		"-wi-d-----": {new(false), new(false)},
		"twi-cotz--": {new(true), new(true)},
		"-wi-XX----": {nil, nil}, // no driver
		"-wi-aX----": {new(true), nil},
		"-wi-X-----": {nil, new(false)},
	} {
		a, err := parseAttr(attr)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.active, a.Active()); diff != "" {
			t.Errorf("%s: active (-want +got)\n%s", attr, diff)
		}
		if diff := cmp.Diff(want.open, a.Open()); diff != "" {
			t.Errorf("%s: open (-want +got)\n%s", attr, diff)
		}
		if a.String() != attr {
			t.Errorf("%s: prints %s", attr, a)
		}
	}
	if (Attr{}).Active() != nil || (Attr{}).Open() != nil {
		t.Error("the zero value knows something")
	}
}

func TestAttrHealth(t *testing.T) {
	for attr, want := range map[string]error{
		"-wi-ao----": nil,
		"-wi-XX----": nil, // unknown, not sick
		"twi-aotz--": nil,
		"rwi-aor-w-": nil, // writemostly is a setting
		"-wi-a---p-": ErrPartial,
		"-wi-s-----": ErrSuspended,
		"-wi-s---p-": ErrPartial,
		"-wi-d-----": ErrNoTable,
		"-wi-i-----": ErrNoTable,
		"swi-I-s---": ErrInvalidSnapshot,
		"swi-m-s---": ErrMergeFailed,
		"twi-cotz--": ErrCheckNeeded,
		"twi-aotzD-": ErrDataFull,
		"twi-aotzM-": ErrMetadata,
		"twi-aotzF-": ErrFailed,
		"Vwi-aotzF-": ErrFailed,
		"Vwi-XXtzXk": ErrUnknownHealth,
		"rwi-aor-r-": ErrRefresh,
		"rwi-aor-m-": ErrMismatch,
	} {
		a, err := parseAttr(attr)
		if err != nil {
			t.Fatal(err)
		}
		got := a.Health()
		if want == nil && got != nil || want != nil && !errors.Is(got, want) {
			t.Errorf("%s: health %v, want %v", attr, got, want)
		}
		if got != nil && failure.KindOf(got) == nil {
			t.Errorf("%s: %v is of no kind", attr, got)
		}
	}
}

func TestAttrBits(t *testing.T) {
	for attr, want := range map[string][5]bool{ // pool, thin, writable, zeroes, skip
		"twi-aotz--": {true, false, true, true, false},
		"twi-aot---": {true, false, true, false, false},
		"Vri-a-tz-k": {false, true, false, true, true},
		"VRi-a-t---": {false, true, true, false, false},
		"-wi-------": {false, false, true, false, false},
	} {
		a, err := parseAttr(attr)
		if err != nil {
			t.Fatal(err)
		}
		got := [5]bool{a.Pool(), a.Thin(), a.Writable(), a.Zeroes(), a.skipActivation()}
		if got != want {
			t.Errorf("%s: %v, want %v", attr, got, want)
		}
	}
}

func TestParseAttrRefuses(t *testing.T) {
	for _, attr := range []string{"", "-wi-a----", "-wi-a--- -", "-wi-a---\x00-", "-wi-a---\xff-"} {
		if a, err := parseAttr(attr); err == nil {
			t.Errorf("%q is taken for %v", attr, a)
		}
	}
	if a, err := parseAttr("-wi-a-----zz"); err != nil || a.String() != "-wi-a-----" {
		t.Errorf("a longer one: %v, %v", a, err)
	}
}
