// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is known of a copy: one that a guest may have written to, or that
// anybody works on, or of which anything is in doubt, is kept.
func TestGCTakesOnlyWhatNoGuestWrote(t *testing.T) {
	closed, open := false, true
	rapid.Check(t, func(t *rapid.T) {
		e := evidence{
			copy: Copy{
				State: rapid.SampledFrom([]State{Absent, Updating, Ready, "else"}).Draw(t, "state"),
				UUID:  rapid.SampledFrom([]string{"", "uuid"}).Draw(t, "uuid"),
				Sick:  rapid.SampledFrom([]string{"", "", "partial"}).Draw(t, "sick"),
				Open:  rapid.SampledFrom([]*bool{nil, &closed, &closed, &open}).Draw(t, "open"),
			},
			key:     rapid.SampledFrom([]string{"", "vda", "vda"}).Draw(t, "key"),
			busy:    rapid.Bool().Draw(t, "busy"),
			saved:   rapid.Bool().Draw(t, "saved"),
			unknown: rapid.SampledFrom([]error{nil, nil, errors.New("damaged")}).Draw(t, "unknown"),
			gone:    rapid.Bool().Draw(t, "gone"),
			other:   rapid.Bool().Draw(t, "other"),
			raw:     rapid.Bool().Draw(t, "raw"),
		}
		used := false
		for range rapid.IntRange(0, 2).Draw(t, "receipts") {
			r := Receipt{Used: rapid.Bool().Draw(t, "used"), Discarding: rapid.Bool().Draw(t, "discarding")}
			used = used || r.Used
			e.claims = append(e.claims, r)
		}
		may := e.copy.State == Updating && e.copy.UUID != "" && e.copy.Sick == "" && e.copy.Open != nil && !*e.copy.Open &&
			e.key != "" && !e.busy && !e.saved && e.unknown == nil && !used && !e.other && !e.raw
		take, reason := judgeCopy(e)
		if take != may || reason == "" || strings.Contains(reason, "\n") {
			t.Fatalf("take %v, want %v: %q", take, may, reason)
		}
	})
}

func TestWhoseCopyAVolumeIs(t *testing.T) {
	const domain, other, image, volume = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", "b07a37de-95d6-4682-84cd-c8c9201327e3",
		"c9865ca8-f6d2-4363-bec2-af870a87a819", "1dfad482-c65c-436c-aa59-87e020b63302"
	for name, tc := range map[string]struct {
		copy        Copy
		domain, key string
		is          bool
	}{
		"ours":                       {Copy{State: Ready, Name: "dh_" + domain + "_vda", Tags: []string{"VM_" + domain}}, domain, "vda", true},
		"a raw copy of an overlay":   {Copy{State: Updating, Name: "dh_" + domain + "_vda_raw", Tags: []string{"VM_" + domain}}, domain, "vda", true},
		"ours without its sidecar":   {Copy{State: Updating, Name: "dh_" + domain + "_vda"}, domain, "vda", true},
		"name and tag disagree":      {Copy{State: Updating, Name: "dh_" + domain + "_vda", Tags: []string{"VM_" + other}}, "", "", true},
		"oVirt's":                    {Copy{State: Ready, Name: volume, Tags: []string{"VM_" + domain, "IU_" + image}}, domain, image, true},
		"oVirt's without an image":   {Copy{State: Updating, Name: volume, Tags: []string{"VM_" + domain}}, domain, "", true},
		"a domain that is no uuid":   {Copy{State: Updating, Name: volume, Tags: []string{"VM_../x", "IU_" + image}}, "", "", true},
		"marked, and nobody's":       {Copy{State: Updating, Name: "scratch", Tags: []string{"UPDATING"}}, "", "", true},
		"the root file system":       {Copy{State: Ready, Name: "root"}, "", "", false},
		"named by a uuid, no tags":   {Copy{State: Ready, Name: volume}, "", "", false},
		"a target that is no target": {Copy{State: Updating, Name: "dh_" + domain + "_../x", Tags: []string{"VM_" + domain}}, "", "", true},
	} {
		f, is := asCopy("lvm", tc.copy)
		if f.Domain != tc.domain || f.Key != tc.key || is != tc.is {
			t.Errorf("%s: domain %q, key %q, %v", name, f.Domain, f.Key, is)
		}
	}
}

func TestNamesOfFilesAboutCopies(t *testing.T) {
	const domain, id = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", "b07a37de-95d6-4682-84cd-c8c9201327e3"
	for name, want := range map[string]string{
		"vda.json": kindStatus, "vda.log": kindStatus, "vda.cancel": kindStatus, id + ".json": kindStatus,
		"vda." + id + ".job": kindJob,
		"vda":                "", "vda.x": "", "..json": "", ".json": "", "VDA.json": "", "vda.x.job": "", "vda.json.new": "", "x/y.json": "",
	} {
		f, is := statusFile(domain, name)
		if !is {
			f.kind = ""
		}
		if f.kind != want {
			t.Errorf("%s: %q, want %q", name, f.kind, want)
		}
	}
	for name, want := range map[string]bool{
		id: true, "Ab3def-abcd-abcd-abcd-abcd-abcd-abcdef": true, "README": false, "../x": false, "": false, strings.Repeat("/", 38): false,
	} {
		if validCopyUUID(name) != want {
			t.Errorf("%q: not %v", name, want)
		}
	}
}
