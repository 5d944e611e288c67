// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
)

// Doubt is what is held against a replica that votes nevertheless: the QEMU of
// a domain, which has the set open itself (Inline), reported it.
//
// It does not take its vote away, and the generation does not rise. That QEMU
// goes on to write to all replicas, and acknowledges what a threshold of them
// took, the suspect among them: the others alone may lack what it has. Before
// the next use each sector is voted on by all of them, where whatever was
// acknowledged has the threshold.
type Doubt struct {
	Reason Reason    `json:"reason"`
	Since  time.Time `json:"since"`
	// Raise is the generation that it is about. Whoever makes the replicas equal
	// raises another, with which the doubt ends.
	Raise string `json:"raise"`
}

func (s *Service) doubtsPath(set Set) string { return filepath.Join(s.stateDir(set), "suspects.json") }

// doubts are those about replicas by id, also about generations that are past.
func (s *Service) doubts(set Set) (map[string]Doubt, error) {
	all := map[string]Doubt{}
	b, err := readOwn(s.doubtsPath(set), maxDefinition)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err == nil {
		err = strict(b, &all)
	}
	if err != nil {
		return nil, failure.New(failure.Precondition, "%s: its suspects: %w", &set, err)
	}
	return all, nil
}

// doubt makes one durable.
func (s *Service) doubt(set Set, all map[string]Doubt) error {
	err := s.makeState(set)
	if err == nil {
		err = atomicfile.WriteJSON(s.doubtsPath(set), all, 0o600)
	}
	if err != nil {
		return fmt.Errorf("%s: its suspects: %w", &set, err)
	}
	return nil
}

// doubted adds to what was seen of replicas what is held against them. Votes do
// not depend on it, so that what cannot be read is only logged.
func (s *Service) doubted(set Set, observed []Observed) {
	all, err := s.doubts(set)
	if err != nil {
		s.Log.Warn("suspects are not known", "err", err)
		return
	}
	for i, o := range observed {
		if d, ok := all[o.ID]; ok && o.Mark != nil && o.Mark.Generation.Raise == d.Raise {
			observed[i].Doubt = &d
		}
	}
}
