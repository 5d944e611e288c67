// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"fmt"
	"slices"
	"strings"

	"diskhook/storage/progress"
)

// withWaiting adds the disks whose copy process has begun and has made nothing
// yet: it waits for a template, or looks at the source. Of these nothing but
// what their status file says is known.
func (s *Service) withWaiting(entries []Entry) ([]Entry, error) {
	return s.withUnseen(entries, func(d Disk, st progress.Status) (Entry, bool) {
		if st.State.Final() {
			return Entry{}, false
		}
		held, err := s.held(d)
		return Entry{Busy: true}, err == nil && held
	})
}

// withDied adds the disks whose copy process died while it waited for the
// template of their base or made it. Of others there is a copy, wherever that is.
func (s *Service) withDied(entries []Entry) ([]Entry, error) {
	return s.withUnseen(entries, func(d Disk, st progress.Status) (Entry, bool) {
		if held, err := s.held(d); st.Note == "" || st.State.Final() || err != nil || held {
			return Entry{}, false
		}
		// Who ends says so before it gives the lock back.
		if st, err := progress.Read(s.statusPath(d.Domain, d.Key())); err != nil || st.State.Final() {
			return Entry{}, false
		}
		of := Disk{Domain: d.Domain, DomainName: st.Owner, Target: targetOf(st)}
		return Entry{Problem: fmt.Sprintf("who made its copy died while %s was made, at %d %%; the next start goes on (`diskhook local prestage %s/%s` does now)",
			st.Note, st.Percent(), of.NameArg(), of.Target)}, true
	})
}

// AtWork are the domains, by UUID, on whose disks somebody works who calls them
// by that name. It reads locks and status files alone.
func (s *Service) AtWork(name string) ([]string, error) {
	files, err := s.statusFiles()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, f := range files {
		if name != "" && s.workFor(f) == name && !slices.Contains(ids, f.domain) {
			ids = append(ids, f.domain)
		}
	}
	return ids, nil
}

// workFor is the name of the domain for which a file says that somebody works,
// or is about to; "" is nobody.
func (s *Service) workFor(f aboutFile) string {
	switch {
	case f.kind == kindJob && f.age < startTimeout:
		if job, err := readJob(f.path); err == nil {
			return job.Disk.DomainName
		}
	case f.kind == kindStatus && strings.HasSuffix(f.path, ".json"):
		st, err := progress.Read(f.path)
		if working, lockErr := s.Working(f.domain, f.key); err == nil && lockErr == nil && working && !st.State.Final() {
			return st.Owner
		}
	}
	return ""
}

// withUnseen adds disks of which there is a status file, and nothing else. told
// is what that says of a disk, and whether it is to be added.
func (s *Service) withUnseen(entries []Entry, told func(Disk, progress.Status) (Entry, bool)) ([]Entry, error) {
	files, err := s.statusFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		there := func(e Entry) bool { return e.Domain == f.domain && e.Key == f.key }
		if f.kind != kindStatus || !strings.HasSuffix(f.path, ".json") || slices.ContainsFunc(entries, there) {
			continue
		}
		st, err := progress.Read(f.path)
		if err != nil {
			continue
		}
		if e, is := told(Disk{Domain: f.domain, Target: f.key}, st); is {
			e.Domain, e.DomainName, e.Target, e.Key = f.domain, st.Owner, targetOf(st), f.key
			e.Copy, e.Status = Copy{State: Absent}, &st
			entries = append(entries, e)
		}
	}
	return entries, nil
}
