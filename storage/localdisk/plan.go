// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"

	"diskhook/storage/qemuimg"
	"diskhook/storage/transfer"
)

// Commands lists what a start would run and write for one disk, in order, for
// dry runs. It changes nothing; for a copy that has to be filled it reads the
// source's headers.
func (s *Service) Commands(ctx context.Context, o Observed, dec Decision) []string {
	lines := s.FillCommands(ctx, o, dec)
	if dec.Action == Wait || dec.Action == Veto {
		return lines
	}
	if dec.Action == Use {
		lines = s.backend(o.Disk).explain(ctx, Use, o.Disk, o.Copy, 0, nil)
	}
	if o.Receipt == nil || !o.Receipt.Used {
		lines = append(lines, "write "+receiptPath(s.Layout, o.Disk.Domain, o.Disk.Key())+" (used)")
	}
	return append(lines, "link "+link(s.Layout, o.Disk))
}

// FillCommands is Commands for Prestage, which uses nothing.
func (s *Service) FillCommands(ctx context.Context, o Observed, dec Decision) []string {
	d := o.Disk
	if dec.Action != Resume && dec.Action != Adopt {
		d.Home = "" // a new copy goes where it is configured to go
	}
	b := s.backend(d)
	receipt := receiptPath(s.Layout, d.Domain, d.Key())
	var size int64
	var fill []string
	var clone *clonePlan
	switch dec.Action {
	case Create, Resume, Replace, Retire:
		info, err := s.Inspect(ctx, d)
		if err != nil {
			return []string{"# refused: " + err.Error()}
		}
		if d.From != nil {
			d.Source = info.Layers
		}
		if size = takes(d, info); d.overlaid() {
			fill = qemuimg.ExplainFormat(b.target(d), info.VirtualSize, d.Source[0])
			if d.Template {
				clone = s.planClone(ctx, d)
				fill = append(fill, "# read into it what of "+d.Source[0].Path+" is not of its base, put it on the template")
				fill = append(fill, verifies(d)...)
			}
			fill = append(fill, "write "+receipt)
			break
		}
		zeroed, _ := b.readsZero(ctx)
		engine := &transfer.Engine{Run: s.Run, Log: s.Log}
		source := transfer.Source{Layers: d.Source, Size: size}
		if clone = s.planClone(ctx, d); clone != nil {
			source.Present = 1
		}
		fill = engine.Explain(source, transfer.Target{Path: b.target(d), Block: sortOf(b.home()) != "dir", Zeroed: zeroed, Size: size})
		fill = append(fill, verifies(d)...)
		fill = append(fill, "write "+receipt)
	case Adopt:
		fill = []string{"write " + receipt}
	default:
		return nil
	}
	return append(b.explain(ctx, dec.Action, d, o.Copy, size, clone), fill...)
}

func verifies(d Disk) []string {
	if !d.Verify {
		return nil
	}
	return []string{"# read it back and compare it with " + d.Source[0].Path}
}
