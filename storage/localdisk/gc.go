// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// Judged is one object that gc looked at, and what is to become of it.
type Judged struct {
	Kind   string `json:"kind"`
	Object string `json:"object"` // "lv VG/NAME", or "file PATH"
	Domain string `json:"domain,omitempty"`
	Disk   string `json:"disk,omitempty"` // its key
	Bytes  int64  `json:"bytes"`
	Take   bool   `json:"take"`
	// Reason is why it is taken or kept, one line.
	Reason string `json:"reason"`
	// Hint is the command that removes what gc never takes; "" is none.
	Hint string `json:"hint,omitempty"`

	// take looks again, under the lock where there is one, and removes it.
	take func(context.Context, Wipe) error
	// discard is the same of a copy whatever it holds, and kept is why it would refuse.
	discard func(context.Context, Wipe) error
	kept    error
}

// The kinds of what gc looks at.
const (
	kindCopy     = "copy"
	kindTemplate = "template" // of the template cache
	kindSidecar  = "sidecar"  // of a file that is not there
	kindExport   = "export"   // the private folder of an export
	kindStatus   = "status"
	kindJob      = "job"
	kindCursor   = "cursor"
	kindHome     = "home" // the note of a place where copies were made
)

// AboutCopy says that the object is a file that tells of a copy, and holds no data.
func (j Judged) AboutCopy() bool {
	return slices.Contains([]string{kindSidecar, kindStatus, kindJob, kindCursor}, j.Kind)
}

func (j *Judged) keep(format string, args ...any) {
	j.Take, j.Reason = false, fmt.Sprintf(format, args...)
}

// Judge looks at everything that localdisk may have left on this host and says
// of each object whether Take would remove it, and why. It changes nothing.
//
// Taken is only what no guest ever wrote to: copies that are unfinished and on
// which nobody works, templates of which no copy is left, and files about such
// copies. A complete copy, and anything open, locked or of unknown state, is
// kept. gone, if not nil, says that a domain does not exist any more: its
// copies are kept as well, with the command that removes them.
func (s *Service) Judge(ctx context.Context, gone func(domain string) bool) ([]Judged, error) {
	if gone == nil {
		gone = func(string) bool { return false }
	}
	// Files about copies are listed before the copies: what appears meanwhile is
	// then not taken for the rest of a copy that is no more.
	files, err := s.aboutCopies()
	if err != nil {
		return nil, err
	}
	seen, err := s.see(ctx)
	if err != nil {
		return nil, err
	}
	var all []Judged
	for _, found := range seen.copies {
		if !isTemplate(found.Copy) {
			all = append(all, s.judgeFound(found, seen, gone))
		}
	}
	for _, f := range files {
		all = append(all, s.judgeFile(f, seen, false))
	}
	all = append(all, s.judgeHomes(seen)...)
	for _, more := range []func() ([]Judged, error){
		func() ([]Judged, error) { return s.judgeTemplates(ctx) }, s.judgeExports,
	} {
		judged, err := more()
		if err != nil {
			return nil, err
		}
		all = append(all, judged...)
	}
	return all, nil
}

// Take removes what Judge said it would, after another look; data of a copy is
// wiped first. What must be kept by now is a failure.Conflict.
func (s *Service) Take(ctx context.Context, j Judged, w Wipe) error {
	if !j.Take || j.take == nil {
		return failure.New(failure.Conflict, "%s: is kept: %s", j.Object, j.Reason)
	}
	if err := j.take(ctx, w); err != nil {
		return fmt.Errorf("%s: %w", j.Object, err)
	}
	return nil
}

// evidence is what a copy is judged by.
type evidence struct {
	copy    Copy
	key     string // "" is not known
	busy    bool
	unknown error // why the receipts, or the lock, say nothing for sure
	saved   bool
	// claims are the receipts of the disk, and those that name the copy.
	claims []Receipt
	gone   bool // the domain
	// other: a receipt names it as the one of two copies that is not the disk;
	// raw: it is unfinished, and was made to become the disk of a running
	// domain. Which of the two has the guest's last writes libvirt's definition
	// says: see Pivoting.
	other, raw bool
}

// judgeCopy says whether a copy may be taken, and why. It is pure, and every
// doubt is for keeping.
func judgeCopy(e evidence) (take bool, reason string) {
	claimed := func(by func(Receipt) bool) bool { return slices.ContainsFunc(e.claims, by) }
	used := claimed(func(r Receipt) bool { return r.Used })
	switch {
	case e.busy:
		return false, "somebody works on it"
	case e.unknown != nil:
		return false, failure.OneLine(e.unknown.Error())
	case e.other:
		return false, "left by a change to a raw copy that was interrupted"
	case e.raw:
		return false, "a raw copy to which a domain may have gone over, and no receipt says so"
	case e.copy.State == Ready && used:
		return false, "complete, and the guest's writes live in it"
	case e.copy.State == Ready && len(e.claims) > 0:
		return false, "complete; the next start uses it"
	case e.copy.State == Ready:
		return false, "complete, but without a receipt: a guest may have written to it"
	case e.copy.State != Updating:
		return false, "its state is unknown"
	case e.key == "":
		return false, "whose disk it is cannot be told"
	case used:
		return false, "marked UPDATING, but a receipt says that the guest has written"
	case e.saved:
		return false, "the domain has saved memory"
	case e.copy.Sick != "" || e.copy.UUID == "":
		return false, "its state is unknown: " + e.copy.Sick
	case !e.copy.closed():
		return false, "it is open, or may be"
	}
	return true, "unfinished, nobody works on it, and no guest ever used it"
}

// judgeFound judges one copy that a backend found.
func (s *Service) judgeFound(f foundCopy, seen sight, gone func(string) bool) Judged {
	e := s.evidenceOf(f, seen)
	// libvirt knows a VM of oVirt only while it runs.
	e.gone = f.Domain != "" && !host.IsUUID(f.Key) && gone(f.Domain)
	j := Judged{Kind: kindCopy, Object: f.Copy.String(), Domain: f.Domain, Disk: e.key, Bytes: f.Copy.Size}
	j.Take, j.Reason = judgeCopy(e)
	j.kept = s.discardable(e, f)
	j.discard = func(ctx context.Context, w Wipe) error { return s.discardCopy(ctx, f, w) }
	switch {
	case j.Take:
		j.take = func(ctx context.Context, w Wipe) error { return s.takeCopy(ctx, f, w) }
	case e.gone && !e.busy:
		j.Reason += "; its domain is not there any more"
		j.Hint = giveUpCommand(f.Domain, e)
	case e.other && !e.busy:
		j.Hint = "diskhook local settle --raw " + f.Domain + " " + e.key
	case e.raw && !e.busy:
		j.Hint = removeCommand(e.copy)
	case f.Copy.State == Ready && len(e.claims) == 0 && e.key != "":
		j.Hint = "diskhook local adopt " + f.Domain + " " + e.key
		if host.IsUUID(e.key) {
			j.Hint = "diskhook local adopt --all"
		}
	}
	return j
}

// giveUpCommand is how an operator removes a copy that gc keeps. One without a
// receipt is adopted first: only with a receipt there is a verb for it.
func giveUpCommand(domain string, e evidence) string {
	if e.key == "" || len(e.claims) == 0 && e.copy.State == Ready || e.raw && !e.other {
		return removeCommand(e.copy)
	}
	return "diskhook local remove --discard-guest-data " + domain + " " + e.key
}

func removeCommand(c Copy) string {
	if c.file() {
		return "rm " + c.Path
	}
	if cluster, is := strings.CutPrefix(c.Home, thinHome); is {
		return "diskhook local gc --yes --discard-guest-data " + cluster + "/" + c.Name
	}
	return "lvremove " + c.Home + "/" + c.Name
}

// takeCopy removes one copy, if it still is what was judged: its receipt, which
// no guest used, first, then the copy, then what told how far it was.
func (s *Service) takeCopy(ctx context.Context, f foundCopy, w Wipe) error {
	l, err := s.lockOne(ctx, f.Domain, f.Key)
	if err != nil {
		return err
	}
	defer l.Release()
	now, e, err := s.evidenceAgain(ctx, f)
	if err != nil || now == nil {
		return err
	}
	if take, reason := judgeCopy(e); !take {
		return changedMeanwhile(reason)
	}
	return s.removeUnused(ctx, *now, e, w)
}

// evidenceAgain looks at a copy once more, under the lock of its disk; nil: somebody
// else removed it. One that is another by now is a failure.Conflict.
func (s *Service) evidenceAgain(ctx context.Context, f foundCopy) (*foundCopy, evidence, error) {
	seen, err := s.see(ctx)
	if err != nil {
		return nil, evidence{}, err
	}
	i := slices.IndexFunc(seen.copies, func(now foundCopy) bool {
		return now.Copy.Home == f.Copy.Home && now.Copy.Name == f.Copy.Name
	})
	if i < 0 {
		return nil, evidence{}, seen.unseen[f.Copy.Home]
	}
	now := seen.copies[i]
	e := s.evidenceOf(now, seen)
	e.busy = false // it is we who hold the lock
	if now.Copy.UUID != f.Copy.UUID || now.Domain != f.Domain || now.Key != f.Key {
		_, reason := judgeCopy(e)
		return nil, e, changedMeanwhile(reason)
	}
	return &now, e, nil
}

func changedMeanwhile(reason string) error {
	return failure.New(failure.Conflict, "it changed meanwhile: %s", strings.TrimPrefix(reason, "unfinished, "))
}
