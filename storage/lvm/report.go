// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"diskhook/storage/failure"
)

// LV is one visible logical volume. Sizes are bytes.
type LV struct {
	VG, VGUUID string
	Name, UUID string
	Attr       Attr
	Tags       []string // nil: none
	Size       int64    // a thin volume's virtual size
	Pool       string   // thin volume: its pool
	Origin     string   // snapshot: what it was taken of
	// Active and Open are nil where device-mapper cannot be asked.
	Active, Open *bool
	// DataPercent and MetadataPercent are how full a pool is, or how much of
	// a thin volume is mapped, 0 to 100; -1 is unknown or not applicable
	// (LVM tells only while the volume is active).
	DataPercent, MetadataPercent float64
	Path                         string // device node; "" for what has none
	SkipActivation               bool
	// Segtype is the type of the first segment: linear, striped, thin,
	// thin-pool, raid1 …
	Segtype   string
	ChunkSize int64 // thin pool: unit of allocation; else 0
}

// String names the volume in messages.
func (lv LV) String() string { return "lv " + lv.VG + "/" + lv.Name }

// Health returns what is wrong with the volume (a sentinel such as
// ErrPartial), or nil. A thin volume does not show that its pool is full or
// failed: ask the pool too.
func (lv LV) Health() error {
	if err := lv.Attr.Health(); err != nil {
		return fmt.Errorf("%s: %w", lv, err)
	}
	return nil
}

// VG is a volume group. Sizes are bytes.
type VG struct {
	Name, UUID             string
	Size, Free, ExtentSize int64
	Attr                   string // vg_attr (vgs(8))
	MissingPVs             int
	// Seqno rises by one with every change of the group's metadata.
	Seqno int64
	// LockType is how hosts that share the group keep out of each other's way
	// (lvmlockd(8)): "sanlock", "dlm"; "" is a group that nothing but the
	// operator keeps from being changed by two hosts at once.
	LockType string
}

// RoundUp is the size that LVM makes of size: whole extents.
func (v VG) RoundUp(size int64) int64 {
	if v.ExtentSize <= 0 {
		return size
	}
	return (size + v.ExtentSize - 1) / v.ExtentSize * v.ExtentSize
}

// Health says why no volume of the group can be made or changed, or nil.
func (v VG) Health() error {
	switch {
	case len(v.Attr) > 2 && v.Attr[2] == 'x':
		return fmt.Errorf("vg %s: %w", v.Name, ErrExported)
	case v.MissingPVs > 0:
		return fmt.Errorf("vg %s: %d of its devices are missing: %w", v.Name, v.MissingPVs, ErrPartial)
	}
	return nil
}

// Report is a volume group with its visible volumes (pools too, their hidden
// data and metadata not), by name.
type Report struct {
	VG  VG
	LVs []LV
}

// LV returns the volume called name.
func (r Report) LV(name string) (LV, bool) {
	i := slices.IndexFunc(r.LVs, func(lv LV) bool { return lv.Name == name })
	if i < 0 {
		return LV{}, false
	}
	return r.LVs[i], true
}

// reportArgs asks for everything in one command. lvs alone prints no row, and
// so no fact of the group, where there is no volume, and with segtype among
// its fields it prints a volume once per segment. fullreport has a subreport
// for each kind; a selection that nothing meets keeps the devices out (a
// group may have thousands of segments there).
//
// Active and open come from lv_attr alone: without a driver lv_active is ""
// for unknown, just as for inactive.
var reportArgs = []string{
	"--reportformat", "json", "--units", "b", "--nosuffix",
	"--configreport", "vg", "-o", "vg_name,vg_uuid,vg_attr,vg_size,vg_free,vg_extent_size,vg_missing_pv_count,vg_seqno,vg_lock_type",
	"--configreport", "lv", "-o", "lv_uuid,lv_name,lv_attr,lv_tags,lv_size,pool_lv,origin,data_percent,metadata_percent,lv_path",
	"--configreport", "seg", "-o", "lv_uuid,segtype,chunk_size",
	"--configreport", "pv", "-o", "pv_name", "-S", `pv_name=""`,
	"--configreport", "pvseg", "-o", "pv_uuid", "-S", `pv_uuid=""`,
}

// Report observes the volume group vg. It is the one read that a start needs.
//
// A group that is not there is ErrNoVG, a failure.Precondition and no
// failure.NotFound: with its disk away, nothing is known about the volumes.
func (l *LVM) Report(ctx context.Context, vg string) (Report, error) {
	if err := checkNames(vg); err != nil {
		return Report{}, err
	}
	result, err := l.read(ctx, "fullreport", append(slices.Clone(reportArgs), vg)...)
	if err != nil {
		return Report{}, explain("vg "+vg+": report", err)
	}
	report, err := parseReport(bytes.NewReader(result.Stdout))
	if err != nil {
		return Report{}, fmt.Errorf("vg %s: report: %w", vg, err)
	}
	if report.VG.Name != vg {
		return Report{}, failure.New(failure.Problems, "vg %s: report: it is about %q", vg, report.VG.Name)
	}
	return report, nil
}
