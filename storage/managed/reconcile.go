// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Problem is a way in which database, links and kernel disagree.
type Problem string

// The problems, and what is done about each.
const (
	EarlierBoot  Problem = "it was attached in an earlier boot"    // detached, and forgotten
	Incomplete   Problem = "it was left half attached"             // detached, and forgotten; reported, if VDSM did it
	Vanished     Problem = "its device has vanished"               // the same, unless a domain has it
	NoLink       Problem = "its link is missing or leads astray"   // linked
	Ended        Problem = "its domain does not run"               // released, as the domain's end would have done
	StrayLink    Problem = "there is a link, and no such volume"   // the link goes
	StrayClaim   Problem = "there is a claim, and no such volume"  // the claim goes
	OtherDevice  Problem = "its device is another volume"          // reported
	BadRow       Problem = "its connection can not be understood"  // reported
	NoAnswer     Problem = "its storage does not answer"           // reported
	NoPath       Problem = "none of its paths works"               // reported
	VanishedUsed Problem = "its device has vanished under a guest" // reported
)

// Finding is one problem of one volume.
type Finding struct {
	Volume  string  `json:"volume"`
	Problem Problem `json:"problem"`
	// Action is what is done about it; empty where that is for the operator.
	Action string `json:"action,omitempty"`
	// Error says why it could not be done.
	Error string `json:"error,omitempty"`
	Done  bool   `json:"done"`
}

// Actions.
const (
	detachIt = "detach"
	release  = "release"
	linkIt   = "link"
	unlinkIt = "remove link"
	unclaim  = "remove claim"
)

// Reconcile compares the database with links and kernel, and says what is
// wrong and what would be done about it; with apply it does that. A volume
// that somebody works on right now is left out. The error is about the
// comparison; what could not be done is in the findings.
func (s *Service) Reconcile(ctx context.Context, apply bool) ([]Finding, error) {
	boot, err := s.Boot()
	if err != nil {
		return nil, err
	}
	findings, err := s.findings(ctx, boot)
	if err != nil || !apply {
		return findings, err
	}
	for i := range findings {
		f := &findings[i]
		if f.Action == "" {
			continue
		}
		if err := s.repair(ctx, *f, boot); err != nil {
			f.Error = failure.Line(err)
			continue
		}
		f.Done = true
	}
	return findings, nil
}

func (s *Service) findings(ctx context.Context, boot string) ([]Finding, error) {
	var rows []database.Volume
	var claims map[string]database.Claim
	err := s.reading(ctx, func(db *database.DB) (err error) {
		if rows, err = db.Volumes(ctx); err == nil {
			claims, err = db.Claims(ctx)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	links, err := s.links()
	if err != nil {
		return nil, err
	}
	var all []Finding
	wrong, err := s.wrongRows(ctx, rows, claims, boot)
	if err != nil {
		return nil, err
	}
	all = append(all, wrong...)
	for _, row := range rows {
		delete(links, row.ID)
		delete(claims, row.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(links)) {
		if !s.busy(id) {
			all = append(all, Finding{Volume: id, Problem: StrayLink, Action: unlinkIt})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(claims)) {
		if !s.busy(id) {
			all = append(all, Finding{Volume: id, Problem: StrayClaim, Action: unclaim})
		}
	}
	return all, nil
}

// wrongRows judges each row that nobody works on.
func (s *Service) wrongRows(ctx context.Context, rows []database.Volume, claims map[string]database.Claim, boot string) ([]Finding, error) {
	running := s.runningNow(ctx, claims)
	found := make([]Finding, len(rows))
	err := atOnce(len(rows), func(i int) (err error) {
		id := rows[i].ID
		if s.busy(id) {
			return nil
		}
		claim, claimed := claims[id]
		used := claimed && claim.Boot == boot
		f := Finding{Volume: id}
		f.Problem, f.Action, err = s.judge(ctx, rows[i], boot, used)
		if used && !running(claim.Domain) && slices.Contains([]Problem{"", NoLink, NoPath, VanishedUsed}, f.Problem) {
			f.Problem, f.Action = Ended, release
		}
		found[i] = f
		return err
	})
	return slices.DeleteFunc(found, func(f Finding) bool { return f.Problem == "" }), err
}

// judge finds the first thing that is wrong with a row, in order of weight.
func (s *Service) judge(ctx context.Context, row database.Volume, boot string, used bool) (Problem, string, error) {
	if foreign(row) {
		return s.judgeForeign(ctx, row)
	}
	info, err := connector.ParseInfo(row.Connection)
	if err == nil {
		_, err = s.Host.Open(row.ID, info)
	}
	switch {
	case err != nil:
		return BadRow, "", nil
	case stale(row, boot):
		return EarlierBoot, detachIt, nil
	case row.Path == "":
		return Incomplete, detachIt, nil
	}
	there, err := here(ctx, row.Path)
	switch {
	case errors.Is(err, command.ErrNoAnswer) && ctx.Err() == nil:
		return NoAnswer, "", nil
	case err != nil:
		return "", "", err
	case !there && used:
		return VanishedUsed, "", nil
	case !there:
		return Vanished, detachIt, nil
	}
	other, err := s.otherDevice(ctx, row, info)
	if err != nil || other {
		return OtherDevice, "", err
	}
	if !s.Host.Works(row.Path) {
		return NoPath, "", nil
	}
	if to, err := os.Readlink(s.Link(row.ID)); err != nil || to != row.Path {
		return NoLink, linkIt, nil
	}
	return "", "", nil
}

// judgeForeign looks at a row of VDSM's, which has no link of ours, and which
// VDSM may be working on: nobody else puts it right.
func (s *Service) judgeForeign(ctx context.Context, row database.Volume) (Problem, string, error) {
	if row.Path == "" {
		return Incomplete, "", nil
	}
	there, err := here(ctx, row.Path)
	switch {
	case errors.Is(err, command.ErrNoAnswer) && ctx.Err() == nil:
		return NoAnswer, "", nil
	case err == nil && !there:
		return Vanished, "", nil
	}
	return "", "", err
}

// otherDevice says whether a defined volume is not what it was any more.
func (s *Service) otherDevice(ctx context.Context, row database.Volume, info connector.Info) (bool, error) {
	if known, err := s.definition(row.ID); err != nil || !known.Same(info) {
		return false, nil // it was attached by a connection of the request's own
	}
	a := &attaching{Service: s, Request: Request{ID: row.ID}, info: info}
	now, err := command.Abandon(ctx, func() (connector.Identity, error) { return s.Host.Look(row.Path) })
	if err != nil {
		return false, err
	}
	err = a.verify(ctx, now)
	if errors.Is(err, connector.ErrMismatch) {
		return true, nil
	}
	return false, err
}

// links lists the names of the stable paths.
func (s *Service) links() (map[string]bool, error) {
	entries, err := os.ReadDir(s.Links())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	all := map[string]bool{}
	for _, e := range entries {
		if CheckID(e.Name()) == nil && e.Type()&fs.ModeSymlink != 0 {
			all[e.Name()] = true
		}
	}
	return all, nil
}

// busy says whether somebody works on the volume.
func (s *Service) busy(id string) bool {
	held, err := lock.Held(s.Layout.Locks(), volumeLock(id))
	return held || err != nil
}

// repair does what was found to be needed, if it still is.
func (s *Service) repair(ctx context.Context, f Finding, boot string) error {
	switch f.Action {
	case release:
		return s.releaseEnded(ctx, f.Volume)
	case detachIt:
		domain := ""
		if f.Problem == Incomplete { // the start that was to have it came to nothing
			claims, err := s.claims(ctx)
			if err != nil {
				return err
			}
			domain = claims[f.Volume].Domain
		}
		return s.detach(ctx, f.Volume, domain, func(row database.Volume) (bool, error) {
			problem, _, err := s.judge(ctx, row, boot, false)
			return problem == f.Problem, err
		})
	}
	unlock, err := s.lockVolume(ctx, f.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	row, err := s.row(ctx, f.Volume)
	switch {
	case err != nil:
		return err
	case f.Action == linkIt && row != nil && row.Path != "" && !stale(*row, boot):
		return s.link(f.Volume, row.Path)
	case f.Action == unlinkIt && row == nil:
		return s.unlink(ctx, f.Volume)
	case f.Action == unclaim && row == nil:
		return s.update(ctx, func(tx *database.Tx) error { return tx.DropClaim(f.Volume) })
	}
	return nil
}
