// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"slices"
	"strings"

	"diskhook/storage/progress"
)

// withFailed adds the disks whose last copy failed and left nothing but its
// status file, until somebody tries again or gives it up.
func (s *Service) withFailed(entries []Entry) ([]Entry, error) {
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
		if err != nil || failureOf(&st) == "" {
			continue
		}
		if held, err := s.held(Disk{Domain: f.domain, Target: f.key}); err != nil || held {
			continue // somebody tries again, and has not said so yet
		}
		e := Entry{
			Domain: f.domain, DomainName: st.Owner, Target: targetOf(st), Key: f.key, Copy: Copy{State: Absent}, Status: &st,
			Problem: failureOf(&st),
		}
		if st.Hint != "" {
			e.Problem += "; " + st.Hint
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Failed says that the last attempt to make the copy failed, and left none.
func (e Entry) Failed() bool {
	return !e.Busy && e.Receipt == nil && e.Copy.State == Absent && failureOf(e.Status) != ""
}

// failureOf is why a copy failed, "" if it did not. One that was cancelled is
// as somebody wanted it.
func failureOf(st *progress.Status) string {
	if st == nil || st.State != progress.Failed || strings.HasSuffix(st.Error, errCancelled.Error()) {
		return ""
	}
	return strings.TrimPrefix(st.Error, st.Object+": ")
}

// targetOf is the last word of the object. For oVirt the key is the id of the
// image, and nothing else says what the guest calls the disk.
func targetOf(st progress.Status) string { return st.Object[strings.LastIndex(st.Object, " ")+1:] }

// forgetFailure takes away what tells that a copy failed which left nothing, and
// says whether there was anything. It is called under the disk's lock.
func (s *Service) forgetFailure(domain, key string) bool {
	st, err := progress.Read(s.statusPath(domain, key))
	s.removeStatus(domain, key)
	return err == nil && failureOf(&st) != ""
}
