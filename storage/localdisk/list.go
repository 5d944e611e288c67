// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
)

// Entry is a receipt with its copy, or a copy that no receipt names.
type Entry struct {
	Domain     string           `json:"domain"`
	DomainName string           `json:"domain_name"`
	Target     string           `json:"target"`
	Key        string           `json:"key"`
	Backend    string           `json:"backend"`
	Copy       Copy             `json:"copy"`
	Receipt    *Receipt         `json:"receipt,omitempty"`
	Busy       bool             `json:"busy"`
	Settling   bool             `json:"settling,omitempty"`  // an overlay's source is being read into it
	Exporting  bool             `json:"exporting,omitempty"` // the disk is being written to a file
	Status     *progress.Status `json:"status,omitempty"`
	// Problem is what would veto a start, one line; "" is none.
	Problem string `json:"problem,omitempty"`
}

// Matter is the problem without the words that say of which disk it is, for who
// has said that already.
func (e Entry) Matter() string {
	for _, name := range []string{e.DomainName, e.Domain} {
		if rest, cut := strings.CutPrefix(e.Problem, (Disk{Domain: e.Domain, DomainName: name, Target: e.Target}).String()+": "); cut {
			return rest
		}
	}
	return e.Problem
}

// List returns everything this host knows of local copies, sorted by domain
// and target: receipts, and copies without one. A home that is away, see Away,
// matters only where a receipt needs it.
func (s *Service) List(ctx context.Context) ([]Entry, error) {
	var entries []Entry
	var receipts []Receipt
	named := map[string]bool{}
	files, err := receiptsNamed(s.Layout, "")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		r, err := ReadReceipt(s.Layout, f.domain, f.key)
		switch {
		case err != nil:
			entries = append(entries, Entry{Domain: f.domain, Target: f.key, Key: f.key, Problem: failure.Line(err)})
		case r != nil:
			receipts = append(receipts, *r)
			named[r.Home+"/"+r.Name] = true
			if r.Pivot != nil {
				named[r.Home+"/"+r.Pivot.Name] = true
			}
		}
	}
	entries = append(entries, s.claimedEntries(ctx, receipts)...)
	places, err := s.places()
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		copies, err := s.in(ctx, p)
		if err != nil && !errors.Is(err, failure.Precondition) {
			return nil, failure.Denied(err)
		}
		for _, name := range slices.Sorted(maps.Keys(copies)) {
			c := copies[name]
			if domain := ownerOf(c); domain != "" && !named[c.Home+"/"+c.Name] {
				entries = append(entries, s.orphan(p, domain, c, receipts))
			}
		}
	}
	for _, with := range []func([]Entry) ([]Entry, error){s.withStarting, s.withWaiting, s.withDied, s.withFailed} {
		if entries, err = with(entries); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return strings.Compare(a.Domain+" "+a.Target, b.Domain+" "+b.Target)
	})
	return entries, nil
}

// claimedEntries are those of receipts. All are observed at once, unless one of
// them stands in the way of the others.
func (s *Service) claimedEntries(ctx context.Context, receipts []Receipt) []Entry {
	disks := make([]Disk, len(receipts))
	for i, r := range receipts {
		disks[i] = r.Disk()
	}
	entries := make([]Entry, len(receipts))
	// What lies below an overlay is not looked at: its storage may hang.
	observed, err := s.observe(ctx, disks, s.held)
	for i, r := range receipts {
		if err == nil {
			entries[i] = s.entry(r, observed[i])
			continue
		}
		alone, err := s.observe(ctx, disks[i:i+1], s.held)
		if err != nil {
			entries[i] = entryOf(r)
			entries[i].Problem = failure.Line(err)
			continue
		}
		entries[i] = s.entry(r, alone[0])
	}
	return entries
}

// withStarting adds the disks whose copy process was started and has not begun;
// see Starting.
func (s *Service) withStarting(entries []Entry) ([]Entry, error) {
	files, err := s.statusFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if f.kind != kindJob || f.age >= startTimeout {
			continue
		}
		i := slices.IndexFunc(entries, func(e Entry) bool { return e.Domain == f.domain && e.Key == f.key })
		if i >= 0 {
			entries[i].Busy = true
			continue
		}
		job, err := readJob(f.path)
		if err != nil {
			continue // it has begun just now, and is seen at the next look
		}
		d := job.Disk
		entries = append(entries, Entry{
			Domain: d.Domain, DomainName: d.DomainName, Target: d.Target, Key: d.Key(), Backend: d.Backend, Busy: true,
			Copy: Copy{State: Absent, Name: d.CopyName(), Home: s.backend(d).home()},
		})
	}
	return entries, nil
}

// Refresh looks again whether somebody works on the copies, and how far that
// is. It reads locks and status files, and asks no storage. changed says that
// somebody began or ended: then the copies themselves are worth another look.
func (s *Service) Refresh(entries []Entry) (changed bool) {
	for i := range entries {
		e := &entries[i]
		held, err := lock.Held(s.Layout.Locks(), lockName(e.Domain, e.Key))
		settling := e.Receipt.Unsettled() && s.settling(e.Domain, e.Key)
		if err != nil || held != e.Busy || settling != e.Settling {
			changed = true
		}
		if st, err := progress.Read(s.statusPath(e.Domain, e.Key)); err == nil {
			e.Status = &st
		}
	}
	return changed
}

func entryOf(r Receipt) Entry {
	return Entry{Domain: r.Domain, DomainName: r.DomainName, Target: r.Target, Key: r.Key(), Backend: r.Backend, Receipt: &r}
}

func (s *Service) entry(r Receipt, o Observed) Entry {
	e := entryOf(r)
	e.Copy, e.Busy, e.Status = o.Copy, o.Busy, o.Status
	e.Exporting = e.Busy && s.Exporting(r.Domain, r.Key())
	e.Settling = (r.Unsettled() || r.Pivot != nil) && s.settling(r.Domain, r.Key())
	if d := Decide(o); d.Err != nil {
		e.Problem = failure.Line(d.Err)
	}
	return e
}

// orphan is a copy without a receipt: one that is being filled, one that a
// crash left, or one of oVirt's hook.
func (s *Service) orphan(p place, domain string, c Copy, receipts []Receipt) Entry {
	e := Entry{Domain: domain, Backend: p.kind, Copy: c}
	if _, target, ok := strings.Cut(c.Name, copyPrefix+domain+"_"); ok {
		e.Target = target
	} else {
		e.Key = tagged(c, tagImage)
	}
	if e.Key == "" {
		e.Key = e.Target
	}
	if held, err := lock.Held(s.Layout.Locks(), lockName(domain, e.Key)); err == nil {
		e.Busy = held
	}
	if st, err := progress.Read(s.statusPath(domain, e.Key)); err == nil {
		e.Status, e.DomainName = &st, st.Owner
	}
	unfinished := "unfinished, nobody works on it"
	if p.former {
		unfinished += fmt.Sprintf(", and copies go to %s now", backends()[p.kind](s).home())
	}
	if why := failureOf(e.Status); why != "" {
		unfinished += ": " + why
	}
	switch {
	case stuck(c, e.Busy, e.Status):
		e.Problem = stuckWords(*e.Status) + "; " + stuckHint
	case e.Busy:
	case c.State == Updating && slices.ContainsFunc(receipts, func(r Receipt) bool { return r.Domain == domain && r.Key() == e.Key }):
		e.Problem = unfinished + "; the disk has another copy, `diskhook local gc` shows why this one may go"
	case s.begun(c):
		e.Problem = unfinished + "; " + goesOn(e)
	case c.State == Updating:
		e.Problem = unfinished + fmt.Sprintf("; the next start removes it, as does `diskhook local remove %s %s`", domain, e.Key)
	default:
		e.Problem = fmt.Sprintf("complete, but without a receipt; if it is this disk's, take it with `diskhook local adopt %s %s`", domain, cmp.Or(e.Target, e.Key))
	}
	return e
}

// goesOn says what becomes of an unfinished copy that a start can continue, and
// what else can be done with it. prestage is for disks that libvirt's domains
// call by their targets.
func goesOn(e Entry) string {
	d := Disk{Domain: e.Domain, DomainName: e.DomainName, Target: cmp.Or(e.Target, e.Key)}
	now := ""
	if e.Target != "" {
		now = fmt.Sprintf(" (`diskhook local prestage %s/%s` does now)", d.NameArg(), d.Target)
	}
	return fmt.Sprintf("the next start goes on with it%s, `diskhook local remove %s` gives it up", now, d.args())
}

// ownerOf is the domain that a copy says it belongs to: by its tag, or where a
// sidecar is lost by its name.
func ownerOf(c Copy) string {
	if domain := tagged(c, tagVM); domain != "" {
		return domain
	}
	rest, ours := strings.CutPrefix(c.Name, copyPrefix)
	if domain, _, ok := strings.Cut(rest, "_"); ours && ok && host.IsUUID(domain) {
		return domain
	}
	return ""
}

// NamesCopy says whether a volume is called as a copy is. One of oVirt's is called
// otherwise.
func NamesCopy(volume string) bool { return ownerOf(Copy{Name: volume}) != "" }

// OwnerOf is the UUID of the domain whose disk's copy a volume is by its tags; "" is
// that they do not say.
func OwnerOf(tags []string) string { return tagged(Copy{Tags: tags}, tagVM) }

func tagged(c Copy, prefix string) string {
	for _, t := range c.Tags {
		if id, ok := strings.CutPrefix(t, prefix); ok && host.IsUUID(id) {
			return id
		}
	}
	return ""
}

// SourceChanged compares the source with what the copy was made from. It
// reads remote paths: give it a context with a deadline. That the source is
// gone is an error, not a change. A changed source never stops a start.
func (s *Service) SourceChanged(ctx context.Context, r Receipt) (changed bool, why string, err error) {
	if len(r.Source) == 0 && r.From == nil {
		return false, "", nil
	}
	info, err := s.Inspect(ctx, r.Disk())
	switch {
	case err != nil && r.Unsettled():
		return false, "", sourceGone(r.Disk(), r, err)
	case err != nil:
		return false, "", err
	case r.Unsettled() && info.Fingerprint != r.Fingerprint:
		return false, "", sourceChanged(r.Disk(), r, info)
	case info.VirtualSize > r.Size:
		return true, fmt.Sprintf("the source has grown to %d bytes; `diskhook local resize %s %d` follows", info.VirtualSize, r.Disk().args(), info.VirtualSize), nil
	case r.Fingerprint != "" && info.Fingerprint != r.Fingerprint:
		return true, "the source was written to since it was copied; the copy is the truth", nil
	}
	return false, "", nil
}
