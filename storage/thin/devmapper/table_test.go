// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"encoding/binary"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// Lines as the kernel prints them, of versions from 3.x to 6.12.
func TestTargets(t *testing.T) {
	for line, want := range map[string]Target{
		"linear 254:0 2048":               Linear{"254:0", 2048},
		"error":                           Failing{},
		"thin 254:3 0":                    Thin{Pool: "254:3"},
		"thin 254:3 16777215 254:9":       Thin{"254:3", 16777215, "254:9"},
		"thin-pool 254:1 254:2 128 32768": Pool{Metadata: "254:1", Data: "254:2", BlockSectors: 128, LowWater: 32768},
		"thin-pool 254:1 254:2 128 0 2 no_discard_passdown error_if_no_space": Pool{"254:1", "254:2", 128, 0, Features{NoPassdown: true, ErrorIfNoSpace: true}},
		"thin-pool 254:1 254:2 128 0 3 skip_block_zeroing ignore_discard read_only": Pool{"254:1", "254:2", 128, 0,
			Features{SkipZeroing: true, IgnoreDiscard: true, ReadOnly: true}},
		"crypt aes-xts - 0 254:0 0": Other{"crypt", "aes-xts - 0 254:0 0"},
	} {
		name, params, _ := strings.Cut(line, " ")
		got, err := ParseTarget(name, params+" ") // the kernel leaves a space behind features
		if o, ok := got.(Other); ok {
			got = Other{o.Name, strings.TrimSpace(o.Line)}
		}
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%q: %v %s", line, err, cmp.Diff(want, got))
			continue
		}
		if text := Of(8, got).String(); text != "0 8 "+line {
			t.Errorf("%q is written %q", line, text)
		}
	}
	for _, line := range []string{"linear", "linear 254:0", "linear 254:0 x", "thin", "thin 254:0", "thin 1 2 3 4", "thin-pool 1 2 3", "thin-pool 1:1 1:2 128 0 2 read_only", "thin-pool 1:1 1:2 x 0"} {
		name, params, _ := strings.Cut(line, " ")
		if got, err := ParseTarget(name, params); err == nil {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func TestTable(t *testing.T) {
	table := Table{{100, Linear{"8:1", 5}}, {28, Failing{}}}
	if got, want := table.String(), "0 100 linear 8:1 5\n100 28 error"; got != want || table.Sectors() != 128 {
		t.Errorf("%q, %d sectors", got, table.Sectors())
	}
}

func TestPoolStatus(t *testing.T) {
	for line, want := range map[string]PoolStatus{
		"5 1915/16384 32766/32768 300 rw no_discard_passdown queue_if_no_space - 1024": {
			5, 1915, 16384, 32766, 32768, 300, ReadWrite, "no_discard_passdown", false, false, 1024},
		"0 10/4096 9/9 - out_of_data_space discard_passdown error_if_no_space needs_check 1024": {
			0, 10, 4096, 9, 9, 0, OutOfDataSpace, "discard_passdown", true, true, 1024},
		"0 10/4096 9/9 - ro ignore_discard queue_if_no_space needs_check 7": {0, 10, 4096, 9, 9, 0, ReadOnly, "ignore_discard", false, true, 7},
		"Fail": {Mode: Failed},
	} {
		got, err := ParsePoolStatus(line)
		if err != nil || got != want || got.String() != line {
			t.Errorf("%q: %+v, %v, %q", line, got, err, got)
		}
	}
	if got, err := ParsePoolStatus("1 406/524288 0/1024 - rw no_discard_passdown"); err != nil || got.Mode != ReadWrite || got.Free() != 1024 {
		t.Errorf("of 3.x: %+v, %v", got, err)
	}
	for _, line := range []string{"", "1", "1 2 3 - rw x", "x 1/2 1/2 - rw x", "1 3/2 1/2 - rw x", "1 1/2 1/2 - so x", "1 1/2 1/2 y rw x", "1 1/2 1/2 - rw x q - z"} {
		if got, err := ParsePoolStatus(line); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestThinStatus(t *testing.T) {
	for line, want := range map[string]ThinStatus{"1280 1279": {Mapped: 1280, Highest: 1279}, "0 -": {}, "Fail": {Failed: true}} {
		if got, err := ParseThinStatus(line); err != nil || got != want || got.String() != line {
			t.Errorf("%q: %+v, %v", line, got, err)
		}
	}
	for _, line := range []string{"", "1", "1 -", "0 0", "x -", "1 x", "1 2 3"} {
		if got, err := ParseThinStatus(line); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add("5 1915/16384 32766/32768 300 rw no_discard_passdown queue_if_no_space - 1024")
	f.Add("0 -")
	f.Fuzz(func(t *testing.T, line string) {
		if s, err := ParsePoolStatus(line); err == nil && s.Mode != Failed {
			if again, err := ParsePoolStatus(s.String()); err != nil || again != s {
				t.Errorf("%q: %+v, %+v, %v", line, s, again, err)
			}
		}
		_, _ = ParseThinStatus(line)
		for _, name := range []string{"linear", "thin", "thin-pool"} {
			_, _ = ParseTarget(name, line)
		}
	})
}

// What is loaded and what is read have the same form but for "next", which counts
// from the one before and from the first.
func TestPacket(t *testing.T) {
	table := Table{{100, Linear{"8:1", 5}}, {28, Failing{}}, {64, Pool{Metadata: "254:1", Data: "254:2", BlockSectors: 128}}}
	b := encodeTable(table)
	p := newPacket("name", "uuid", 0, b, 4096)
	h := p.header()
	if h.Data_size != uint32(len(p)*8) || h.Version[0] != 4 || text(h.Name[:]) != "name" || text(h.Uuid[:]) != "uuid" {
		t.Errorf("%+v", h)
	}
	h.Target_count = 3
	at := uint32(0)
	for range table {
		next := binary.NativeEndian.Uint32(p.data()[at+20:])
		binary.NativeEndian.PutUint32(p.data()[at+20:], at+next)
		at += next
	}
	if int(at) != len(b) {
		t.Errorf("%d of %d bytes", at, len(b))
	}
	want := []line{{100, "linear", "8:1 5"}, {28, "error", ""}, {64, "thin-pool", "254:1 254:2 128 0"}}
	if diff := cmp.Diff(want, p.lines(), cmp.AllowUnexported(line{})); diff != "" {
		t.Error(diff)
	}
	h.Dev, h.Flags, h.Event_nr, h.Open_count = unix.Mkdev(254, 300), unix.DM_SUSPEND_FLAG|unix.DM_INACTIVE_PRESENT_FLAG, 7, 2
	if diff := cmp.Diff(Info{"name", "uuid", 254, 300, 2, 7, true, false, true}, p.info()); diff != "" {
		t.Error(diff)
	}
	if got := p.info().Device(); got != "254:300" {
		t.Error(got)
	}
}

func TestNames(t *testing.T) {
	b := make([]byte, 64)
	binary.NativeEndian.PutUint64(b, 1)
	binary.NativeEndian.PutUint32(b[8:], 24)
	copy(b[12:], "one")
	binary.NativeEndian.PutUint64(b[24:], 2)
	copy(b[36:], "two")
	if diff := cmp.Diff([]string{"one", "two"}, newPacket("", "", 0, b, 0).names()); diff != "" {
		t.Error(diff)
	}
	if got := newPacket("", "", 0, nil, 64).names(); got != nil {
		t.Error(got)
	}
	for name, valid := range map[string]bool{"v-global--thin--pool": true, "a.b_c@d:e=1+2#": true, "": false, "a/b": false, "..": false, "a b": false, strings.Repeat("x", 128): false} {
		if ValidName(name) != valid {
			t.Errorf("%q: %t", name, !valid)
		}
	}
}

func TestError(t *testing.T) {
	for errno, kind := range map[syscall.Errno]*failure.Kind{
		syscall.ENXIO: failure.NotFound, syscall.EBUSY: failure.Conflict, syscall.EEXIST: failure.Conflict, syscall.ENOSPC: failure.NoSpace, syscall.EINVAL: nil,
	} {
		err := error(&Error{"remove", "pool", errno})
		if !errors.Is(err, errno) || failure.KindOf(err) != kind || !strings.HasPrefix(err.Error(), "mapped device pool: remove: ") {
			t.Errorf("%v is of kind %v", err, failure.KindOf(err))
		}
	}
}

// A name from outside never reaches the kernel, nor does anything without one.
func TestNameRefused(t *testing.T) {
	for _, name := range []string{"", "a/b"} {
		if _, err := (Kernel{}).Info(t.Context(), name); !errors.Is(err, failure.Usage) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
