// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

var (
	mine   = Use{Domain: "11111111-2222-3333-4444-555555555555", Name: "vm", Target: "sda", Key: "aaaaaaaa-0000-4000-8000-000000000001"}
	theirs = Use{Domain: "22222222-2222-3333-4444-555555555555", Name: "other", Target: "vda"}
)

// A block device does not tell that it was written to: only a comparison of the
// last hour counts, or that the domain was bound to the set then.
func TestUnprovenDevices(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	device := func(compared time.Time, bound *Use) *Source {
		return &Source{Path: "/dev/vg/disk", Compared: compared, For: bound}
	}
	moved := mine
	moved.Target = "sdb"
	for name, c := range map[string]struct {
		source *Source
		user   *Use
		same   bool
		want   string
	}{
		"compared now":            {device(ago(time.Second), nil), nil, true, ""},
		"compared long ago":       {device(ago(2*time.Hour), nil), nil, true, "a block device does not tell whether it was written to since"},
		"compared tomorrow":       {device(ago(-24*time.Hour), nil), nil, true, "a block device does not tell"},
		"filled from it":          {device(time.Time{}, nil), nil, true, "since the set was made of it"},
		"another device":          {device(ago(time.Second), nil), nil, false, "the set was made of /dev/vg/disk"},
		"bound long ago":          {device(ago(2000*time.Hour), &mine), nil, true, ""},
		"bound, and moved":        {device(ago(2000*time.Hour), &moved), nil, true, ""},
		"another one bound":       {device(ago(2*time.Hour), &theirs), nil, true, "a block device does not tell"},
		"bound to another device": {device(ago(2*time.Hour), &mine), nil, false, "the set was made of"},
		"used, without receipt":   {nil, &mine, true, "there is no receipt of that"},
		"nothing":                 {nil, nil, true, "neither filled from a disk nor compared"},
	} {
		t.Run(name, func(t *testing.T) {
			set := Set{Name: "db", Source: c.source, User: c.user}
			kind, why := set.unproven(mine, Source{Path: "/dev/vg/disk"}, c.same)
			if (why == "") != (c.want == "") || !strings.Contains(why, c.want) || (kind == nil) != (why == "") {
				t.Errorf("kind %v: %q", kind, why)
			}
		})
	}
}

// diskOf is a raw image and what a set that was filled from it knows of it.
func diskOf(t *testing.T, s *Service) ([]imagecheck.Layer, *Source) {
	t.Helper()
	s.Config.Paths.Roots = []string{s.Layout.Root}
	path := filepath.Join(s.Layout.Root, "disk.raw")
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	chain := []imagecheck.Layer{{Path: path, Format: imagecheck.Raw}}
	info, err := s.checker().Chain(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	return chain, sourceOf(chain, info)
}

func refuse(t *testing.T, err error, kind *failure.Kind, words ...string) {
	t.Helper()
	line := failure.Line(err)
	if err == nil || failure.KindOf(err) != kind {
		t.Errorf("kind %v: %v", failure.KindOf(err), err)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("the line lacks %q: %s", word, line)
		}
	}
}

func TestFits(t *testing.T) {
	s := newService(t)
	chain, source := diskOf(t, s)
	set := three()
	keep := func(src *Source, user *Use) {
		t.Helper()
		set.Source, set.User = src, user
		if err := s.save(set); err != nil {
			t.Fatal(err)
		}
	}
	fits := func(use Use) (string, error) { return s.Fits(t.Context(), "db", use, Former{Chain: chain}) }

	keep(source, nil)
	seen, err := fits(mine)
	if err != nil || seen != source.Fingerprint {
		t.Fatalf("as it was built: %q, %v", seen, err)
	}
	user := mine
	user.Fingerprint = seen
	keep(nil, &user)
	if _, err := fits(mine); err != nil {
		t.Errorf("its own guest's, the disk is as it was: %v", err)
	}
	_, err = fits(theirs)
	refuse(t, err, failure.Conflict, "it has what the guest of domain vm wrote to its disk sda", "diskhook quorum forget --discard-guest-data "+mine.Domain+" "+mine.Key)
	keep(source, &user)
	_, err = fits(theirs)
	refuse(t, err, failure.Conflict, "it has what the guest of domain vm wrote")

	keep(source, nil)
	_, err = s.Fits(t.Context(), "db", mine, Former{})
	refuse(t, err, failure.Precondition, "nothing tells what the disk is without it", "diskhook quorum accept --discard-disk-data db "+mine.Domain+" "+mine.Key)
	if _, err := s.Fits(t.Context(), "db", mine, Former{Replicas: true}); err != nil {
		t.Errorf("an element of its replicas: %v", err)
	}
	if err := os.WriteFile(chain[0].Path, []byte(strings.Repeat("y", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = fits(mine)
	refuse(t, err, failure.Conflict, "it may not hold what "+chain[0].Path+" holds now", "diskhook quorum verify --against "+chain[0].Path+" --against-format raw db")
	s.Config.Paths.Roots = []string{"/nonexistent"}
	_, err = fits(mine)
	refuse(t, err, failure.Precondition, "is not known", "bring the disk back")
	s.Config.Paths.Roots = []string{s.Layout.Root}
	if err := os.Remove(chain[0].Path); err != nil {
		t.Fatal(err)
	}
	_, err = fits(mine)
	refuse(t, err, failure.Precondition, "is not known", "bring the disk back", "accept --discard-disk-data")
}

// What is written down of a set's disk, from its binding to its end.
func TestWhoseASetIs(t *testing.T) {
	s := newService(t)
	chain, source := diskOf(t, s)
	now := func() Set {
		t.Helper()
		set, err := s.Load("db")
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.save(three()))
	refuse(t, s.Bound(t.Context(), "db", mine, chain, "another fingerprint"), failure.Temporary, "was written to while it was compared")
	must(s.Bound(t.Context(), "db", mine, chain, source.Fingerprint))
	if src := now().Source; src == nil || src.For == nil || *src.For != mine || time.Since(src.Compared) > time.Hour || src.Fingerprint != source.Fingerprint {
		t.Errorf("bound: %+v", src)
	}
	must(s.Unbound("db", theirs))
	if now().Source.For == nil {
		t.Error("another one's end took it")
	}
	must(s.Unbound("db", mine))
	if src := now().Source; src.For != nil || !src.Compared.IsZero() {
		t.Errorf("unbound: %+v", src)
	}
	must(s.Unbound("nosuch", mine))

	use := mine
	use.Fingerprint = source.Fingerprint
	must(s.begun("db", use))
	if diff := cmp.Diff(&use, now().User); diff != "" || now().Source != nil {
		t.Error("begun: ", diff)
	}
	must(s.begun("db", mine)) // the next start, with a receipt
	if now().User.Fingerprint != source.Fingerprint {
		t.Error("what the disk was is forgotten")
	}
	refuse(t, s.begun("db", theirs), failure.Conflict, "it has what the guest of domain vm wrote")
	refuse(t, s.Accept("db", theirs), failure.Conflict, "it has what the guest of domain vm wrote")
	refuse(t, s.Remove(t.Context(), "db", true), failure.Conflict, "and nothing else has", "forget --discard-guest-data "+mine.Domain+" "+mine.Key)
	if now().Intent != nil {
		t.Error("it is half removed")
	}

	held, err := s.Lock("db")
	must(err)
	refuse(t, s.Forget("db", "", mine), failure.Conflict, "works on it (process ")
	must(s.Forget("db", "", theirs)) // nothing to do
	must(s.Forget("db", "11111111-0000-4000-8000-000000000001", mine))
	held.Release()
	if now().User == nil {
		t.Error("it was forgotten for another, or for another set of its name")
	}
	must(s.Forget("db", setUUID, mine))
	if now().User != nil {
		t.Error("it is not forgotten")
	}
	must(s.Accept("db", theirs))
	if u := now().User; u == nil || !u.isDisk(theirs) {
		t.Errorf("accepted: %v", u)
	}
}
