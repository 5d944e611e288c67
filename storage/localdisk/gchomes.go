// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"slices"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
)

// judgeHomes judges the notes of places where no copies go any more, or which
// are away. What is noted of others is nobody's concern.
func (s *Service) judgeHomes(seen sight) []Judged {
	var all []Judged
	for _, p := range seen.places {
		j := Judged{Kind: kindHome, Object: p.String()}
		away := seen.unseen[p.home]
		switch {
		case p.note == "" || !p.former && away == nil:
			continue
		case away != nil:
			j.keep("%s; mount it, or forget it if it is gone for good", failure.OneLine(away.Error()))
			j.Hint = "rm " + p.note
		case seen.needs(p) > 0:
			j.keep("copies go to %s now; left in it: %d", backends()[p.kind](s).home(), seen.needs(p))
		default:
			j.Take, j.Reason = true, fmt.Sprintf("copies go to %s now, and none is left in it", backends()[p.kind](s).home())
			j.take = func(ctx context.Context, _ Wipe) error { return s.forgetHome(ctx, p) }
		}
		all = append(all, j)
	}
	return all
}

// needs counts what is in a place, or is to be there by its receipt.
func (seen sight) needs(p place) int {
	lost := 0
	for _, r := range seen.receipts {
		found := func(f foundCopy) bool { return f.Copy.Home == r.Home && f.Copy.Name == r.Name }
		if r.Home == p.home && !slices.ContainsFunc(seen.copies, found) {
			lost++
		}
	}
	return seen.left[p.home] + lost
}

// forgetHome removes the note of a place, after another look.
func (s *Service) forgetHome(ctx context.Context, p place) error {
	seen, err := s.see(ctx)
	if err != nil {
		return err
	}
	for _, j := range s.judgeHomes(seen) {
		if j.Object == p.String() && !j.Take {
			return failure.New(failure.Conflict, "it changed meanwhile: %s", j.Reason)
		}
	}
	return atomicfile.Remove(p.note)
}
