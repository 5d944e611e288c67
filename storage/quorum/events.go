// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
)

// Event is one line of a set's event log.
type Event struct {
	Time time.Time `json:"time"`
	// Event says what happened, in one word; see the constants.
	Event   string `json:"event"`
	Replica string `json:"replica,omitempty"`
	Reason  Reason `json:"reason,omitempty"`
	// Offset and Length are bytes of the disk, where known.
	Offset int64 `json:"offset,omitempty"`
	Length int64 `json:"length,omitempty"`
	// Text is what QEMU or the system said.
	Text       string `json:"text,omitempty"`
	Generation uint64 `json:"generation,omitempty"`
}

// The events.
const (
	EventServed    = "served"    // the export is there
	EventStopped   = "stopped"   // and gone
	EventBad       = "bad"       // QEMU reported a replica (QUORUM_REPORT_BAD)
	EventPassing   = "passing"   // it was outvoted once, but is like the others
	EventSuspect   = "suspect"   // a replica does not vote any more
	EventFailure   = "failure"   // no majority: the guest got an error (QUORUM_FAILURE)
	EventRepaired  = "repaired"  // a difference after an unclean end was removed
	EventTorn      = "torn"      // one was found in which no majority agrees
	EventResynced  = "resynced"  // a replica votes again
	EventNotSynced = "notsynced" // its resync failed
	EventRestarted = "restarted" // the daemon had gone and was started anew
	EventUnheard   = "unheard"   // nobody heard for a while what a domain's QEMU reports
)

// mostEvents bounds the log, in bytes; one older log of that size is kept.
const mostEvents = 1 << 20

func (s *Service) eventsPath(name string) string {
	return filepath.Join(s.Layout.State(), "quorum", name+".events")
}

// record makes an event durable. The caller logs a failure of it: no log may
// keep a set from being served.
func (s *Service) record(name string, e Event) error {
	e.Time = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	path := s.eventsPath(name)
	if err := errors.Join(atomicfile.MkdirAll(s.Layout.State(), 0o711), atomicfile.MkdirAll(filepath.Dir(path), 0o700)); err != nil {
		return err
	}
	if st, err := os.Lstat(path); err == nil && st.Size()+int64(len(line)) > mostEvents {
		if err := os.Rename(path, path+".1"); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = endLine(f)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return atomicfile.Sync(filepath.Dir(path))
}

// endLine ends a line that a crash cut short, so that only that one is lost.
func endLine(f *os.File) error {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], st.Size()-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err = f.Write([]byte("\n"))
	return err
}

// Events are those of a set, oldest first: some thousands. A line that a crash
// cut short is left out.
func (s *Service) Events(name string) ([]Event, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	var events []Event
	for _, path := range []string{s.eventsPath(name) + ".1", s.eventsPath(name)} {
		b, err := readOwn(path, mostEvents+maxMark)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("replica set %s: its events: %w", name, err)
		}
		for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
			var e Event
			if json.Unmarshal(in.Bytes(), &e) == nil && e.Event != "" {
				events = append(events, e)
			}
		}
	}
	return events, nil
}
