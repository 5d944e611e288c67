// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command/commandtest"
	"diskhook/storage/lvm"
)

func mark(id string, number uint64, raise, from string) *Mark {
	g := Generation{Number: number, Raise: raise, From: Origin{number - 1, from, true}, With: []string{"r1", "r2", "r4"}}
	if number == 1 {
		g.From = Origin{}
	}
	return &Mark{Schema: markSchema, Set: setUUID, Replica: id, Generation: g}
}

const (
	raise1 = "a1b2c3d4e5f60718"
	raise2 = "0011223344556677"
	raise3 = "8899aabbccddeeff"
)

func TestTagIsAMark(t *testing.T) {
	suspect := mark("r2", 7, raise1, raise2)
	suspect.Suspect = WriteError
	empty := Mark{Schema: markSchema, Set: setUUID, Replica: "r3", Suspect: Unfilled}
	clean := mark("r1", 1, raise1, "")
	clean.Clean = true
	for want, m := range map[string]Mark{
		"DH_QUORUM:" + setUUID + ":r2:7:" + raise1 + ":6:" + raise2 + ":clean:r1+r2+r4:open:write-error": *suspect,
		"DH_QUORUM:" + setUUID + ":r3:0::0::open::open:unfilled":                                         empty,
		"DH_QUORUM:" + setUUID + ":r1:1:" + raise1 + ":0::open:r1+r2+r4:clean:":                          *clean,
	} {
		if got := m.tag(); got != want || !lvm.ValidTag(got) {
			t.Errorf("%s, want %s", got, want)
		}
		back, err := parseTag(want)
		if diff := cmp.Diff(m, back); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	}
	for _, tag := range []string{
		"", "DH_QUORUM:", "UPDATING", strings.Repeat("DH_QUORUM:", 10),
		"DH_QUORUM:" + setUUID + ":r1:01:" + raise1 + ":0::open:r1:clean:",
		"DH_QUORUM:" + setUUID + ":r1:1:" + raise1 + ":0::open:r1:clean:whatever",
		"DH_QUORUM:" + setUUID + ":r1:1:" + raise1 + ":0::open:x:clean:",
		"DH_QUORUM:" + setUUID + ":r1:1:short:0::open:r1:clean:",
		"DH_QUORUM:" + setUUID + ":r1:1:" + raise1 + ":4:" + raise2 + ":open:r1:clean:",
	} {
		if m, err := parseTag(tag); err == nil {
			t.Errorf("%s: %+v", tag, m)
		}
	}
}

// The tag of a volume is exchanged in one commit, and others stay.
func TestTagIsReplacedInOneCommand(t *testing.T) {
	old, next := *mark("r1", 1, raise1, ""), *mark("r1", 2, raise2, raise1)
	report := `{"report":[{"vg":[{"vg_name":"vg","vg_uuid":"abcdef-abcd-abcd-abcd-abcd-abcd-abcdef","vg_attr":"wz--n-","vg_size":"1","vg_free":"1","vg_extent_size":"1","vg_missing_pv_count":"0","vg_seqno":"1"}],` +
		`"lv":[{"lv_uuid":"ghijkl-abcd-abcd-abcd-abcd-abcd-abcdef","lv_name":"lv","lv_attr":"-wi-a-----","lv_tags":"KEEP,` + old.tag() + `","lv_size":"1","pool_lv":"","origin":"","data_percent":"","metadata_percent":"","lv_path":"/dev/vg/lv"}],"seg":[{"lv_uuid":"ghijkl-abcd-abcd-abcd-abcd-abcd-abcdef","segtype":"linear","chunk_size":"0"}],"pv":[],"pvseg":[]}]}`
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: "lvm fullreport", Stdout: report}, {Prefix: "lvm lvchange"}}}
	place := tagMark{&lvm.LVM{Run: run}, "vg", "lv"}
	if m, err := place.read(t.Context()); err != nil || cmp.Diff(&old, m) != "" {
		t.Fatalf("%+v %v", m, err)
	}
	if err := place.write(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	lines := run.Lines()
	if last := lines[len(lines)-1]; !strings.HasSuffix(last, "-y --addtag "+next.tag()+" --deltag "+old.tag()+" vg/lv") {
		t.Errorf("ran %s", last)
	}
	if err := place.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines = run.Lines()
	if last := lines[len(lines)-1]; !strings.HasSuffix(last, "-y --deltag "+old.tag()+" vg/lv") {
		t.Errorf("ran %s", last)
	}
}

func TestSidecar(t *testing.T) {
	path := sidecar(filepath.Join(t.TempDir(), "a.raw"))
	place := fileMark{path}
	if m, err := place.read(t.Context()); m != nil || err != nil {
		t.Fatalf("%+v %v", m, err)
	}
	want := mark("r1", 2, raise2, raise1)
	if err := place.write(t.Context(), *want); err != nil {
		t.Fatal(err)
	}
	if m, err := place.read(t.Context()); err != nil || cmp.Diff(want, m) != "" {
		t.Errorf("%+v %v", m, err)
	}
	if err := place.write(t.Context(), Mark{}); err == nil {
		t.Error("a mark of nothing is written")
	}
	for name, spoil := range map[string]func() error{
		"cut off":  func() error { return os.Truncate(path, 20) },
		"too long": func() error { return os.Truncate(path, maxMark+1) },
		"a folder": func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"a link":   func() error { return errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)) },
	} {
		if err := errors.Join(os.RemoveAll(path), place.write(t.Context(), *want), spoil()); err != nil {
			t.Fatal(err)
		}
		if m, err := place.read(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}
