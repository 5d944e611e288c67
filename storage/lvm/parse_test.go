// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
)

const fixtures = "../../testdata/lvm"

func fixture(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures, "fullreport-2.03.16-"+name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func parsed(t testing.TB, name string) Report {
	t.Helper()
	r, err := parseReport(strings.NewReader(fixture(t, name)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

func attr(s string) Attr {
	a, err := parseAttr(s)
	if err != nil {
		panic(err)
	}
	return a
}

func TestParseReportOfAnEmptyGroup(t *testing.T) {
	want := Report{VG: VG{
		Name: "dhtest", UUID: "tcjaRt-uJUV-BsI2-k816-saPa-8JCt-dLwvZl", Attr: "wz--n-",
		Size: 532676608, Free: 532676608, ExtentSize: 4194304, Seqno: 1,
	}}
	if diff := cmp.Diff(want, parsed(t, "empty")); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestParseReportOfThinVolumes(t *testing.T) {
	r := parsed(t, "thin")
	names := make([]string, len(r.LVs))
	for i, lv := range r.LVs {
		names[i] = lv.Name
	}
	want := []string{"big", "pool0", "pool1", "snap", "snap2", "thick", "thick2", "thick3", "thin0", "thin0b", "thin1", "thin2", "tn"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("volumes (-want +got)\n%s", diff)
	}
	vg := "tcjaRt-uJUV-BsI2-k816-saPa-8JCt-dLwvZl"
	for _, want := range []LV{
		{
			VG: "dhtest", VGUUID: vg, Name: "thick", UUID: "0M0lxZ-bWjl-JL7J-0Yi8-05Ww-doLA-HHpPEf",
			Attr: attr("-wi-ao---k"), Tags: []string{"UPDATING", "VM_x"}, Size: 8388608, Active: new(true), Open: new(true),
			DataPercent: -1, MetadataPercent: -1, Path: "/dev/dhtest/thick", SkipActivation: true, Segtype: "linear",
		}, {
			VG: "dhtest", VGUUID: vg, Name: "snap", UUID: "KNJrhE-54tY-3aUJ-BUfo-7Tbn-6Jfs-vyJ47n",
			Attr: attr("Vwi---tz-k"), Tags: []string{"S"}, Size: 1 << 30, Pool: "pool0", Origin: "thin0", Active: new(false), Open: new(false),
			DataPercent: -1, MetadataPercent: -1, Path: "/dev/dhtest/snap", SkipActivation: true, Segtype: "thin",
		}, {
			VG: "dhtest", VGUUID: vg, Name: "pool0", UUID: "asgEeg-O4Sj-kils-LYv3-FfoH-3wcq-hedTYM",
			Attr: attr("twi-aotz--"), Size: 64 << 20, Active: new(true), Open: new(true),
			DataPercent: 31.25, MetadataPercent: 11.33, Segtype: "thin-pool", ChunkSize: 65536,
		},
	} {
		got, ok := r.LV(want.Name)
		if !ok {
			t.Errorf("no %s", want.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", want.Name, diff)
		}
	}
	if _, ok := r.LV("thic"); ok {
		t.Error("a volume that is not there was found")
	}
	zeroing, _ := r.LV("pool0")
	full, _ := r.LV("pool1")
	if !zeroing.Attr.Zeroes() || full.Attr.Zeroes() {
		t.Errorf("pool0 zeroes: %v, pool1: %v", zeroing.Attr.Zeroes(), full.Attr.Zeroes())
	}
	if zeroing.DataPercent != 31.25 || full.DataPercent != 100 {
		t.Errorf("pool0 is %v %% full, pool1 %v %%", zeroing.DataPercent, full.DataPercent)
	}
	if err := full.Health(); !errors.Is(err, ErrDataFull) || !errors.Is(err, failure.NoSpace) {
		t.Errorf("pool1: %v", err)
	}
	thin, _ := r.LV("thin0")
	if thin.Health() != nil || thin.DataPercent != 1.95 {
		t.Errorf("thin0: %v, %v mapped", thin.Health(), thin.DataPercent)
	}
}

func TestParseReportWithADeviceMissing(t *testing.T) {
	r := parsed(t, "partial")
	if err := r.VG.Health(); r.VG.MissingPVs != 1 || !errors.Is(err, ErrPartial) {
		t.Errorf("%d missing, health %v", r.VG.MissingPVs, err)
	}
	lost, _ := r.LV("onc")
	well, _ := r.LV("thick")
	if err := lost.Health(); !errors.Is(err, ErrPartial) || well.Health() != nil {
		t.Errorf("onc: %v, thick: %v", err, well.Health())
	}
}

// Without a driver LVM itself prints lv_active as "", as for an inactive
// volume; what is unknown must not come out as false.
func TestParseReportWithoutDriver(t *testing.T) {
	r := parsed(t, "nodriver")
	if len(r.LVs) != 3 {
		t.Fatalf("%d volumes, want 3: one of them has two segments", len(r.LVs))
	}
	for _, lv := range r.LVs {
		if lv.Active != nil || lv.Open != nil {
			t.Errorf("%s: active %v, open %v", lv, lv.Active, lv.Open)
		}
	}
	if a, _ := r.LV("a"); a.Size != 16<<20 || a.Segtype != "linear" {
		t.Errorf("a: %d bytes, %s", a.Size, a.Segtype)
	}
}

func TestParseReportRefuses(t *testing.T) {
	good := fixture(t, "nodriver")
	edit := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("the fixture has no %s", from)
		}
		return strings.Replace(good, from, to, 1)
	}
	twice := strings.Replace(good, `"report": [`, `"report": [`+inner(good)+`,`, 1)
	for name, in := range map[string]string{
		"nothing":         "",
		"no group":        `{"report":[]}`,
		"no rows":         `{"report":[{"vg":[],"lv":[]}]}`,
		"cut off":         good[:len(good)/2],
		"more after it":   good + "{}",
		"size negative":   edit(`"lv_size":"16777216"`, `"lv_size":"-1"`),
		"size with unit":  edit(`"lv_size":"16777216"`, `"lv_size":"16.00m"`),
		"size missing":    edit(`"lv_size":"16777216", `, ``),
		"size empty":      edit(`"lv_size":"16777216"`, `"lv_size":""`),
		"size too large":  edit(`"lv_size":"16777216"`, `"lv_size":"99999999999999999999"`),
		"free missing":    edit(`"vg_free":"239075328", `, ``),
		"name of options": edit(`"lv_name":"a"`, `"lv_name":"--force"`),
		"name of a path":  edit(`"lv_name":"a"`, `"lv_name":"../a"`),
		"name twice":      edit(`"lv_name":"b"`, `"lv_name":"a"`),
		"no uuid":         edit(`"lv_uuid":"NKPipY-ZLvb-K717-6wx6-jhJk-PfL0-IH1Vwy", "lv_name"`, `"lv_uuid":"", "lv_name"`),
		"attr short":      edit(`"-wi-XX----"`, `"-wi-XX"`),
		"tags odd":        edit(`"UPDATING,VM_1`, `"UPDATING,,VM_1`),
		"percent odd":     edit(`"data_percent":""`, `"data_percent":"NaN"`),
		"two groups":      twice,
	} {
		if r, err := parseReport(strings.NewReader(in)); err == nil {
			t.Errorf("%s: taken for %+v", name, r)
		}
	}
	if _, err := parseReport(strings.NewReader(twice)); !errors.Is(err, ErrSameName) {
		t.Errorf("two groups: %v", err)
	}
}

// inner is the one element of the report list.
func inner(doc string) string {
	from := strings.Index(doc, `"report": [`) + len(`"report": [`)
	return doc[from:strings.LastIndex(doc, "]")]
}

// Later versions have a format with bare numbers, and fields we do not know.
func TestParseReportIsTolerant(t *testing.T) {
	in := strings.NewReplacer(`"16777216"`, `16777216`, `"lv_name":"a"`, `"lv_name":"a", "lv_new":{"x":[1]}`).Replace(fixture(t, "nodriver"))
	got, err := parseReport(strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(parsed(t, "nodriver"), got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestRoundUp(t *testing.T) {
	vg := VG{ExtentSize: 4 << 20}
	for in, want := range map[int64]int64{0: 0, 1: 4 << 20, 4 << 20: 4 << 20, 4<<20 + 1: 8 << 20} {
		if got := vg.RoundUp(in); got != want {
			t.Errorf("RoundUp(%d) = %d, want %d", in, got, want)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	for _, name := range []string{"empty", "thin", "partial", "nodriver"} {
		f.Add(fixture(f, name))
	}
	f.Add(`{"report":[{"vg":[{}],"lv":[{}],"seg":[{}]}]}`)
	f.Fuzz(func(t *testing.T, in string) {
		r, err := parseReport(strings.NewReader(in))
		if err != nil {
			return
		}
		if err := checkNames(r.VG.Name); err != nil {
			t.Error(err)
		}
		seen := map[string]bool{}
		for _, lv := range r.LVs {
			if checkNames(lv.VG, lv.Name) != nil || lv.Size < 0 || lv.UUID == "" || seen[lv.Name] {
				t.Errorf("%+v", lv)
			}
			seen[lv.Name] = true
			for _, tag := range lv.Tags {
				if !ValidTag(tag) {
					t.Errorf("%s: tag %q", lv, tag)
				}
			}
		}
	})
}
