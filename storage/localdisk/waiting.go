// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"slices"
	"strings"

	"diskhook/storage/progress"
)

// withWaiting adds the disks whose copy process has begun and has made nothing
// yet: it waits for a template, or looks at the source. Of these nothing but
// what their status file says is known.
func (s *Service) withWaiting(entries []Entry) ([]Entry, error) {
	files, err := s.statusFiles()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		there := func(e Entry) bool { return e.Domain == f.domain && e.Key == f.key }
		if f.kind != kindStatus || !strings.HasSuffix(f.path, ".json") || slices.ContainsFunc(entries, there) {
			continue
		}
		d := Disk{Domain: f.domain, Target: f.key}
		st, err := progress.Read(f.path)
		if err != nil || st.State.Final() {
			continue
		}
		if held, err := s.held(d); err != nil || !held {
			continue
		}
		entries = append(entries, Entry{
			Domain: f.domain, DomainName: st.Owner, Target: targetOf(st), Key: f.key, Copy: Copy{State: Absent}, Busy: true, Status: &st,
		})
	}
	return entries, nil
}
