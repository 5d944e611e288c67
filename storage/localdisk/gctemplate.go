// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
)

// judgeTemplates judges the entries of the template cache. No guest ever writes
// to one; what is worth keeping is the time that it saves.
func (s *Service) judgeTemplates(ctx context.Context) ([]Judged, error) {
	templates, err := s.Templates(ctx)
	if err != nil {
		return nil, err
	}
	var all []Judged
	for _, t := range templates {
		j := Judged{Kind: kindTemplate, Object: t.copy.String(), Bytes: t.Size}
		if j.Take, j.Reason = judgeTemplate(t, s.asFileOpen(t.copy)); j.Take {
			j.take = func(ctx context.Context, w Wipe) error { return s.EvictTemplate(ctx, t.Name, w) }
		}
		all = append(all, j)
	}
	return all, nil
}

// judgeTemplate says whether a template may go, and why. c is the template as a
// copy, with what is known of who has it open.
func judgeTemplate(t Template, c Copy) (take bool, reason string) {
	switch {
	case t.Kept != "":
		return false, t.Kept
	case t.Clones > 0:
		return false, fmt.Sprintf("%d copies were made of it, more may be", t.Clones)
	case c.Sick != "":
		return false, "its state is unknown: " + c.Sick
	case !c.closed():
		return false, "it is open, or may be"
	case t.State == Updating:
		return true, "unfinished, and nobody makes it"
	}
	return true, "no copy that was made of it is left, and it has not been used for a while"
}
