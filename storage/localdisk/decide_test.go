// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"diskhook/storage/failure"
)

const (
	testDomain  = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	testImage   = "c9865ca8-f6d2-4363-bec2-af870a87a819"
	testVolume  = "1dfad482-c65c-436c-aa59-87e020b63302"
	otherVolume = "b3335e60-6d27-46e0-bed8-50e75cca6786"
	testMachine = "0123456789abcdef0123456789abcdef"
)

// observed is a disk of plain libvirt whose copy and receipt agree, as far as
// there are any.
func observed(state State, c claim) Observed {
	o := Observed{
		Disk:    Disk{Domain: testDomain, DomainName: "vm", Target: "vda", Backend: "lvm", OnStop: Keep, Create: true},
		Copy:    Copy{State: state, Name: "dh_" + testDomain + "_vda", Home: "ovirt-local"},
		Machine: testMachine,
	}
	closed := false
	if state != Absent {
		o.Copy.UUID, o.Copy.Size, o.Copy.Open = "copy-1", 1<<20, &closed
		o.Copy.Tags = []string{tagVM + testDomain}
	}
	if c != unclaimed {
		o.Receipt = &Receipt{
			Schema: receiptSchema, Domain: testDomain, Target: "vda", Backend: "lvm", Copy: "copy-1", Name: o.Copy.Name,
			Home: "ovirt-local", Size: 1 << 20, Machine: testMachine, Used: c == used, Discarding: c == discarding,
		}
	}
	return o
}

// begun says how far the copy of o got.
func begun(o Observed) Observed {
	o.Begun = true
	return o
}

// ovirt turns o into a disk of oVirt's, named by its ids.
func ovirt(o Observed) Observed {
	o.Disk.Image, o.Disk.Volume = testImage, testVolume
	o.Copy.Name = testVolume
	if o.Copy.State != Absent {
		o.Copy.Tags = []string{tagVM + testDomain, tagImage + testImage}
	}
	if o.Receipt != nil {
		o.Receipt.Image, o.Receipt.Volume = testImage, testVolume
	}
	return o
}

func TestProtocol(t *testing.T) {
	closedNo := true
	for name, tc := range map[string]struct {
		o    Observed
		want Action
		says string // part of the refusal
		hint string
	}{
		"first start":                      {observed(Absent, unclaimed), Create, "", ""},
		"filled, then lost, never used":    {observed(Absent, unused), Create, "", ""},
		"used, then lost":                  {observed(Absent, used), Veto, "is gone", "recreate --discard-guest-data vm vda"},
		"given up and gone":                {observed(Absent, discarding), Create, "", ""},
		"crash while copying":              {observed(Updating, unclaimed), Replace, "", ""},
		"crash while copying, continued":   {begun(observed(Updating, unclaimed)), Resume, "", ""},
		"crash at the end, continued":      {begun(observed(Updating, unused)), Resume, "", ""},
		"given up while copying":           {begun(observed(Updating, discarding)), Replace, "", ""},
		"used, then marked, continued":     {begun(observed(Updating, used)), Veto, "marked UPDATING", ""},
		"crash before the mark went":       {observed(Updating, unused), Replace, "", ""},
		"used, then marked":                {observed(Updating, used), Veto, "marked UPDATING", "recreate --discard-guest-data vm vda"},
		"given up, crash in between":       {observed(Updating, discarding), Replace, "", ""},
		"ready":                            {observed(Ready, unused), Use, "", ""},
		"ready and used":                   {observed(Ready, used), Use, "", ""},
		"ready, given up":                  {observed(Ready, discarding), Replace, "", ""},
		"ready, receipts lost":             {observed(Ready, unclaimed), Veto, "no receipt", "diskhook local adopt vm vda"},
		"ovirt: first start":               {ovirt(observed(Absent, unclaimed)), Create, "", ""},
		"ovirt: volume of its hook":        {ovirt(observed(Ready, unclaimed)), Adopt, "", ""},
		"ovirt: ready":                     {ovirt(observed(Ready, used)), Use, "", ""},
		"metadata name a copy, no receipt": {with(observed(Absent, unclaimed), func(o *Observed) { o.Disk.Copy = "copy-1" }), Veto, "neither a receipt", "recreate"},
		"busy":                             {with(observed(Updating, unclaimed), func(o *Observed) { o.Busy = true }), Wait, "", ""},
		"no creating at a start":           {with(observed(Absent, unclaimed), func(o *Observed) { o.Disk.Create = false }), Veto, "fill=now", "diskhook local prestage vm"},
		"no replacing at a start":          {with(observed(Updating, unclaimed), func(o *Observed) { o.Disk.Create = false }), Veto, "fill=now", "diskhook local prestage vm"},
		"ready needs no leave to create":   {with(observed(Ready, used), func(o *Observed) { o.Disk.Create = false }), Use, "", ""},
		"binding of another machine":       {with(observed(Ready, used), func(o *Observed) { o.Disk.Host = "ffff" }), Veto, "is for the machine", "export"},
		"receipt of another machine":       {with(observed(Ready, used), func(o *Observed) { o.Receipt.Machine = "ffff" }), Veto, "is for the machine", "export"},
		"another volume in its place":      {with(observed(Ready, used), func(o *Observed) { o.Copy.UUID = "copy-2" }), Veto, "took its place", "adopt"},
		"metadata names another copy":      {with(observed(Ready, used), func(o *Observed) { o.Disk.Copy = "copy-2" }), Veto, "metadata names the copy", "--refresh"},
		"backend changed":                  {with(observed(Ready, used), func(o *Observed) { o.Disk.Backend = "dir" }), Veto, "lives on lvm", ""},
		"cut off":                          {with(observed(Ready, used), func(o *Observed) { o.Copy.Size = 512 }), Veto, "cut off", ""},
		"sick":                             {with(observed(Ready, used), func(o *Observed) { o.Copy.Sick = "partial" }), Veto, "partial", ""},
		"ovirt: foreign vm":                {with(ovirt(observed(Ready, unclaimed)), func(o *Observed) { o.Copy.Tags[0] = tagVM + testVolume }), Veto, "no tag VM_", "adopt"},
		"ovirt: foreign image":             {with(ovirt(observed(Ready, unclaimed)), func(o *Observed) { o.Copy.Tags[1] = tagImage + testVolume }), Veto, "no tag IU_", "adopt"},
		"ovirt: open":                      {with(ovirt(observed(Ready, unclaimed)), func(o *Observed) { o.Copy.Open = &closedNo }), Veto, "is open", ""},
		"ovirt: perhaps open":              {with(ovirt(observed(Ready, unclaimed)), func(o *Observed) { o.Copy.Open = nil }), Veto, "is open", ""},
		"ovirt: ours without receipt":      {with(ovirt(observed(Ready, unclaimed)), func(o *Observed) { o.Copy.Tags = append(o.Copy.Tags, tagSchema) }), Veto, "diskhook's own", "adopt"},
		"ovirt: snapshot":                  {with(ovirt(observed(Absent, used)), func(o *Observed) { o.Disk.Volume = otherVolume }), Veto, "leaf is now", "older leaf"},
		"ovirt: new template, discard":     {with(ovirt(observed(Absent, used)), func(o *Observed) { o.Disk.Volume = otherVolume; o.Disk.OnStop, o.Receipt.OnStop = Discard, Discard }), Retire, "", ""},
		"ovirt: discard came later":        {with(ovirt(observed(Absent, used)), func(o *Observed) { o.Disk.Volume = otherVolume; o.Disk.OnStop = Discard }), Veto, "leaf is now", ""},
		"another domain's unfinished copy": {with(ovirt(observed(Updating, unclaimed)), func(o *Observed) { o.Copy.Tags[0] = tagVM + testVolume }), Veto, "is being made for the domain", ""},
		"ovirt: new template, but saved": {with(ovirt(observed(Absent, used)), func(o *Observed) {
			o.Disk.Volume, o.Disk.OnStop, o.Receipt.OnStop, o.Saved = otherVolume, Discard, Discard, true
		}), Veto, "leaf is now", ""},
		"ovirt: unused copy of old leaf": {with(ovirt(observed(Absent, unused)), func(o *Observed) { o.Disk.Volume = otherVolume }), Veto, "leaf is now", "older leaf"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Decide(tc.o)
			if got.Action != tc.want {
				t.Fatalf("action %s (%v), want %s", got.Action, got.Err, tc.want)
			}
			if (got.Err != nil) != (tc.want == Veto) {
				t.Fatalf("error %v with action %s", got.Err, got.Action)
			}
			if got.Err == nil {
				return
			}
			if !strings.Contains(got.Err.Error(), tc.says) || !strings.Contains(failure.HintOf(got.Err), tc.hint) || failure.HintOf(got.Err) == "" {
				t.Errorf("refusal %q does not say %q and %q", failure.Line(got.Err), tc.says, tc.hint)
			}
			if failure.KindOf(got.Err) == nil {
				t.Errorf("refusal %v has no kind", got.Err)
			}
		})
	}
}

func with(o Observed, change func(*Observed)) Observed {
	change(&o)
	return o
}

// Whatever is observed, guest data is never removed by a start: a used copy is
// used or the start is vetoed, unless the operator gave it up or asked for
// on-stop=discard.
func TestUsedCopiesAreSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := rapid.SampledFrom([]State{Absent, Updating, Ready}).Draw(t, "state")
		o := observed(state, rapid.SampledFrom([]claim{unclaimed, unused, used, discarding}).Draw(t, "claim"))
		if rapid.Bool().Draw(t, "ovirt") {
			o = ovirt(o)
		}
		flip := func(name string, change func()) {
			if rapid.Bool().Draw(t, name) {
				change()
			}
		}
		flip("no create", func() { o.Disk.Create = false })
		flip("discard", func() { o.Disk.OnStop = Discard })
		flip("discard when copied", func() {
			if o.Receipt != nil {
				o.Receipt.OnStop = Discard
			}
		})
		flip("saved", func() { o.Saved = true })
		flip("other uuid", func() { o.Copy.UUID = "copy-2" })
		flip("other leaf", func() {
			if o.Disk.OVirt() {
				o.Disk.Volume = otherVolume
			}
		})
		flip("open unknown", func() { o.Copy.Open = nil })
		flip("tags gone", func() { o.Copy.Tags = nil })
		flip("busy", func() { o.Busy = true })

		d := Decide(o)
		if (d.Action == Veto) != (d.Err != nil) {
			t.Fatalf("%+v", d)
		}
		guestData := o.Receipt != nil && o.Receipt.Used && !o.Receipt.Discarding
		removes := d.Action == Create || d.Action == Replace || d.Action == Retire
		givenUp := o.Receipt != nil && o.Disk.OnStop == Discard && o.Receipt.OnStop == Discard && !o.Saved
		if guestData && removes && !givenUp {
			t.Fatalf("guest data would go: %+v for %+v", d, o)
		}
		if removes && !o.Disk.Create {
			t.Fatalf("a start makes a copy without leave: %+v", d)
		}
		if d.Action == Use && (o.Receipt == nil || o.Receipt.Copy != o.Copy.UUID || o.Copy.State != Ready) {
			t.Fatalf("uses a copy that is not the receipt's: %+v", o)
		}
		if !errors.Is(d.Err, nil) && failure.HintOf(d.Err) == "" {
			t.Fatalf("no way out in %v", d.Err)
		}
	})
}
