// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"strings"

	"diskhook/storage/progress"
)

// withFailed adds the disks whose last copy failed and left nothing but its
// status file, until somebody tries again or gives it up.
func (s *Service) withFailed(entries []Entry) ([]Entry, error) {
	return s.withUnseen(entries, func(d Disk, st progress.Status) (Entry, bool) {
		if failureOf(&st) == "" {
			return Entry{}, false
		}
		if held, err := s.held(d); err != nil || held {
			return Entry{}, false // somebody tries again, and has not said so yet
		}
		e := Entry{Problem: failureOf(&st)}
		if st.Hint != "" {
			e.Problem += "; " + st.Hint
		}
		return e, true
	})
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
