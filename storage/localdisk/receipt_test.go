// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// What a receipt keeps of a binding comes from outside, and is bounded. oVirt
// tells at each start what a disk is: its receipts keep nothing that somebody
// could slip in by the helper.
func TestBindingInAReceiptIsBounded(t *testing.T) {
	const id = "11111111-2222-3333-4444-555555555555"
	plain := Disk{Domain: id, Target: "vda", Backend: "dir", OnStop: Keep, Fill: "start", Origin: strings.Repeat("x", MaxOrigin)}
	if err := plain.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Disk){
		"too long":     func(d *Disk) { d.Origin += "x" },
		"of oVirt":     func(d *Disk) { d.Image, d.Volume = id, id },
		"an odd word":  func(d *Disk) { d.Fill = "now\n" },
		"a long word":  func(d *Disk) { d.Fill = strings.Repeat("n", 17) },
		"not a letter": func(d *Disk) { d.Fill = "now'/>" },
	} {
		d := plain
		change(&d)
		err := d.Validate()
		if failure.KindOf(err) != failure.Usage || len(err.Error()) > 200 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNote(t *testing.T) {
	const id = "11111111-2222-3333-4444-555555555555"
	s := &Service{Layout: host.Layout{Root: t.TempDir()}}
	d := Disk{Domain: id, Target: "vda", Backend: "dir", OnStop: Keep, Fill: "start", Origin: "<disk/>"}
	read := func() Receipt {
		t.Helper()
		r, err := ReadReceipt(s.Layout, id, "vda")
		if err != nil || r == nil {
			t.Fatalf("%v, %v", r, err)
		}
		return *r
	}
	note := func() {
		t.Helper()
		if err := s.Note(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	note()
	if r, err := ReadReceipt(s.Layout, id, "vda"); r != nil || err != nil {
		t.Fatalf("a receipt came from nowhere: %+v, %v", r, err)
	}
	old := Receipt{Schema: receiptSchema, Domain: id, Target: "vda", Copy: "u", Used: true, Size: 7}
	if err := old.write(s.Layout, "vda"); err != nil {
		t.Fatal(err)
	}
	note()
	if r := read(); r.Fill != "start" || r.Origin != "<disk/>" || !r.Used || r.Size != 7 || r.Disk().Origin != "<disk/>" {
		t.Errorf("got %+v", r)
	}
	old.Discarding = true
	if err := old.write(s.Layout, "vda"); err != nil {
		t.Fatal(err)
	}
	note()
	if r := read(); r.Origin != "" || !r.Discarding {
		t.Errorf("a receipt that is given up was written: %+v", r)
	}
}
