// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"path/filepath"

	"diskhook/storage/transfer"
)

// Commands lists what would be run and written for one disk, in order, for
// dry runs. It changes nothing; for a copy that has to be filled it reads the
// source's headers.
func (s *Service) Commands(ctx context.Context, o Observed, dec Decision) []string {
	d, b := o.Disk, s.backend(o.Disk)
	receipt := receiptPath(s.Layout, d.Domain, d.Key())
	var size int64
	var fill []string
	switch dec.Action {
	case Create, Replace, Retire:
		info, err := s.checker(d).Chain(ctx, d.Source)
		if err != nil {
			return []string{"# refused: " + err.Error()}
		}
		size = info.VirtualSize
		zeroed, _ := b.readsZero(ctx)
		engine := &transfer.Engine{Run: s.Run, Log: s.Log}
		fill = engine.Explain(transfer.Source{Layers: d.Source, Size: size}, transfer.Target{Path: b.target(d), Block: !filepath.IsAbs(b.home()), Zeroed: zeroed, Size: size})
		fill = append(fill, "write "+receipt)
	case Adopt:
		fill = []string{"write " + receipt}
	case Wait, Veto:
		return nil
	}
	lines := append(b.explain(ctx, dec.Action, d, o.Copy, size), fill...)
	if dec.Action == Use && (o.Receipt == nil || !o.Receipt.Used) {
		lines = append(lines, "write "+receipt+" (used)")
	}
	return append(lines, fmt.Sprintf("link %s", link(s.Layout, d)))
}
