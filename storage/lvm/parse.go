// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/host"
)

// maxReport bounds what is read of a report: 10 000 volumes take about 5 MiB.
const maxReport = 64 << 20

// reportJSON is `lvm fullreport --reportformat json` (lvmreport(7)): one
// element per volume group. All values are strings in that format.
type reportJSON struct {
	Report []struct {
		VG  []vgJSON  `json:"vg"`
		LV  []lvJSON  `json:"lv"`
		Seg []segJSON `json:"seg"`
	} `json:"report"`
}

type vgJSON struct {
	Name       string `json:"vg_name"`
	UUID       string `json:"vg_uuid"`
	Attr       string `json:"vg_attr"`
	Size       number `json:"vg_size"`
	Free       number `json:"vg_free"`
	ExtentSize number `json:"vg_extent_size"`
	MissingPVs number `json:"vg_missing_pv_count"`
	Seqno      number `json:"vg_seqno"`
	LockType   string `json:"vg_lock_type"`
}

type lvJSON struct {
	UUID            string  `json:"lv_uuid"`
	Name            string  `json:"lv_name"`
	Attr            string  `json:"lv_attr"`
	Tags            string  `json:"lv_tags"`
	Size            number  `json:"lv_size"`
	Pool            string  `json:"pool_lv"`
	Origin          string  `json:"origin"`
	DataPercent     percent `json:"data_percent"`
	MetadataPercent percent `json:"metadata_percent"`
	Path            string  `json:"lv_path"`
}

type segJSON struct {
	UUID      string `json:"lv_uuid"`
	Type      string `json:"segtype"`
	ChunkSize number `json:"chunk_size"`
}

// number is a count or a size in bytes, written as a string of digits. It
// must be there: a size that is missing is no size of 0.
type number struct {
	n   int64
	set bool
}

func (v *number) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%s is not a count of bytes or things", b)
	}
	*v = number{n, true}
	return nil
}

// percent is a decimal fraction; LVM writes "" for what it cannot know.
type percent struct {
	p   float64
	set bool
}

func (v *percent) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	if text == "" {
		return nil
	}
	p, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(p) || math.IsInf(p, 0) {
		return fmt.Errorf("%s is not a percentage", b)
	}
	// LVM before 2.02.98 wrote -1 for unknown.
	*v = percent{p, p >= 0}
	return nil
}

func (v percent) value() float64 {
	if !v.set {
		return -1
	}
	return v.p
}

var errReport = errors.New("not a report of one volume group")

// parseReport decodes the output of the command that Report runs. Whatever is
// missing, doubled or out of range is an error: a wrong report must not look
// like an absent copy. Two groups of the same name are ErrSameName.
func parseReport(r io.Reader) (Report, error) {
	limited := &io.LimitedReader{R: r, N: maxReport + 1}
	raw, err := io.ReadAll(limited)
	if err != nil {
		return Report{}, err
	}
	if len(raw) > maxReport {
		return Report{}, fmt.Errorf("%w: longer than %d bytes", errReport, maxReport)
	}
	var parsed reportJSON
	if err := json.Unmarshal(raw, &parsed); err != nil {
		return Report{}, fmt.Errorf("%w: %w", errReport, err)
	}
	switch {
	case len(parsed.Report) > 1:
		return Report{}, ErrSameName
	case len(parsed.Report) == 0 || len(parsed.Report[0].VG) != 1:
		return Report{}, errReport
	}
	vg, err := parsed.Report[0].VG[0].vg()
	if err != nil {
		return Report{}, err
	}
	segments := map[string]segJSON{}
	for _, seg := range parsed.Report[0].Seg {
		if _, later := segments[seg.UUID]; !later {
			segments[seg.UUID] = seg
		}
	}
	report := Report{VG: vg}
	seen := map[string]bool{}
	for _, raw := range parsed.Report[0].LV {
		lv, err := raw.lv(vg, segments[raw.UUID])
		if err != nil {
			return Report{}, err
		}
		if seen[lv.Name] || seen[lv.UUID] {
			return Report{}, fmt.Errorf("%w: %s occurs twice", errReport, lv)
		}
		seen[lv.Name], seen[lv.UUID] = true, true
		report.LVs = append(report.LVs, lv)
	}
	slices.SortFunc(report.LVs, func(a, b LV) int { return strings.Compare(a.Name, b.Name) })
	return report, nil
}

func (v vgJSON) vg() (VG, error) {
	if !host.LVMName(v.Name) || !validUUID(v.UUID) {
		return VG{}, fmt.Errorf("%w: group %q with UUID %q", errReport, v.Name, v.UUID)
	}
	for _, n := range []number{v.Size, v.Free, v.ExtentSize, v.MissingPVs, v.Seqno} {
		if !n.set {
			return VG{}, fmt.Errorf("%w: vg %s: a number is missing", errReport, v.Name)
		}
	}
	return VG{
		Name: v.Name, UUID: v.UUID, Attr: v.Attr,
		Size: v.Size.n, Free: v.Free.n, ExtentSize: v.ExtentSize.n,
		MissingPVs: int(v.MissingPVs.n), Seqno: v.Seqno.n, LockType: v.lockType(),
	}, nil
}

// lockType: LVM says "none" for some groups without one.
func (v vgJSON) lockType() string {
	if v.LockType == "none" {
		return ""
	}
	return v.LockType
}

func (v lvJSON) lv(vg VG, seg segJSON) (LV, error) {
	if !host.LVMName(v.Name) || !validUUID(v.UUID) || !v.Size.set {
		return LV{}, fmt.Errorf("%w: vg %s: volume %q with UUID %q", errReport, vg.Name, v.Name, v.UUID)
	}
	fail := func(err error) (LV, error) { return LV{}, fmt.Errorf("lv %s/%s: %w", vg.Name, v.Name, err) }
	attr, err := parseAttr(v.Attr)
	if err != nil {
		return fail(err)
	}
	tags, err := parseTags(v.Tags)
	if err != nil {
		return fail(err)
	}
	return LV{
		VG: vg.Name, VGUUID: vg.UUID, Name: v.Name, UUID: v.UUID,
		Attr: attr, Tags: tags, Size: v.Size.n,
		Pool: v.Pool, Origin: v.Origin,
		Active: attr.Active(), Open: attr.Open(),
		DataPercent: v.DataPercent.value(), MetadataPercent: v.MetadataPercent.value(),
		Path: v.Path, SkipActivation: attr.skipActivation(),
		Segtype: seg.Type, ChunkSize: seg.ChunkSize.n,
	}, nil
}

// validUUID: LVM's UUIDs are 32 letters and digits in seven groups, hyphens
// between them (6-4-4-4-4-4-6).
func validUUID(s string) bool {
	groups := strings.Split(s, "-")
	if len(groups) != 7 {
		return false
	}
	for i, want := range []int{6, 4, 4, 4, 4, 4, 6} {
		if len(groups[i]) != want {
			return false
		}
		for _, c := range []byte(groups[i]) {
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
				return false
			}
		}
	}
	return true
}
