// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"fmt"
	"os"
	"slices"

	"diskhook/storage/command"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// ExplainAttach tells what Attach would do now, as command lines and, with #,
// what no command does. No line is nothing to do. It changes nothing, takes no
// lock, and refuses what Attach would refuse before it connects anything.
func (s *Service) ExplainAttach(ctx context.Context, r Request) ([]string, error) {
	if err := CheckID(r.ID); err != nil {
		return nil, err
	}
	lines, err := s.explainAttach(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", r.ID, err)
	}
	return lines, nil
}

func (s *Service) explainAttach(ctx context.Context, r Request) ([]string, error) {
	a, err := s.attaching(r)
	if err != nil {
		return nil, err
	}
	if err := s.unclaimed(ctx, r.ID, a.boot, r.Domain); err != nil {
		return nil, err
	}
	row, err := s.row(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	var lines []string
	switch {
	case row == nil:
	case stale(*row, a.boot):
		lines = append(lines, "# it was attached in an earlier boot, of which nothing holds any more")
	default:
		there, err := a.there(ctx, *row)
		if err == nil && there {
			err = a.unopened(ctx, outcome(*row))
		}
		if err != nil || there && a.Host.Works(row.Path) {
			return a.explainClaim(ctx, *row), err
		}
		lines = append(lines, map[bool]string{false: "# it was left half attached: go on", true: "# none of its paths works: look for others"}[there])
	}
	if err := s.reading(ctx, func(db *database.DB) error {
		rows, err := db.Volumes(ctx)
		if err != nil {
			return err
		}
		return a.free(rows)
	}); err != nil {
		return nil, err
	}
	if err := a.ready(ctx); err != nil {
		return nil, err
	}
	lines = append(lines, fmt.Sprintf("# note in %s that volume %s is being attached", s.Database, r.ID))
	connect, err := a.connector.Explain(ctx)
	lines = append(append(lines, connect...),
		"# look whether it is the volume that it was, and note what it is",
		fmt.Sprintf("# link %s to its device", s.Link(r.ID)))
	return lines, err
}

// explainClaim tells of a volume that is attached already.
func (a *attaching) explainClaim(ctx context.Context, row database.Volume) []string {
	var lines []string
	if claims, err := a.claims(ctx); err == nil && (claims[a.ID].Domain != a.Domain || claims[a.ID].Boot != a.boot) {
		lines = append(lines, fmt.Sprintf("# note in %s that domain %s has it", a.Database, a.Domain))
	}
	if to, err := os.Readlink(a.Link(a.ID)); err != nil || to != row.Path {
		lines = append(lines, command.Quote([]string{"ln", "-sfn", row.Path, a.Link(a.ID)}))
	}
	return lines
}

// ExplainDetach does for Detach what ExplainAttach does for Attach.
func (s *Service) ExplainDetach(ctx context.Context, id, domain string) ([]string, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	lines, err := s.explainDetach(ctx, id, domain)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	return lines, nil
}

func (s *Service) explainDetach(ctx context.Context, id, domain string) ([]string, error) {
	boot, err := s.Boot()
	if err != nil {
		return nil, err
	}
	row, err := s.row(ctx, id)
	if err != nil {
		return nil, err
	}
	var lines []string
	if row != nil {
		if err := s.unclaimed(ctx, id, boot, domain); err != nil {
			return nil, err
		}
		c, err := s.connector(*row)
		if err != nil {
			return nil, err
		}
		others, err := s.staying(ctx, id)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(others, func(other connector.Connector) bool { return overlap(c, other) }) {
			if lines, err = c.ExplainDetach(ctx, outcome(*row), others); err != nil {
				return nil, err
			}
		}
	}
	if _, err := os.Lstat(s.Link(id)); err == nil {
		lines = append(lines, command.Quote([]string{"rm", "-f", "--", s.Link(id)}))
	}
	claims, err := s.claims(ctx)
	if _, stray := claims[id]; row != nil || stray {
		lines = append(lines, fmt.Sprintf("# forget volume %s in %s", id, s.Database))
	}
	return lines, err
}
