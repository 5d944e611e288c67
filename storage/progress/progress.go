// SPDX-License-Identifier: Apache-2.0

// Package progress is how long work tells how far it is.
//
// The worker calls a Func; a Writer turns that into a status file below
// /run/diskhook/status that anybody on the host can read: the hook that waits
// with a deadline, `diskhook local status --watch`, a monitoring script. The
// file is a hint and never the truth: nothing decides about data by it, and a
// failure to write it stops nothing.
package progress

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"diskhook/storage/atomicfile"
)

// Func is told the bytes done of total; it is called often and returns fast.
type Func func(done, total int64)

// State is where the work stands.
type State string

// The states of a status file, in the order in which they come.
const (
	Starting State = "starting" // the process runs
	Locked   State = "locked"   // it holds the object's lock and goes on alone
	Copying  State = "copying"
	Flushing State = "flushing"
	Ready    State = "ready"
	Failed   State = "failed"
)

// Final says that nothing will follow.
func (s State) Final() bool { return s == Ready || s == Failed }

// Status is the content of a status file. Sizes are bytes, times RFC 3339.
type Status struct {
	Schema string `json:"schema"` // "diskhook.status/v1"
	Job    string `json:"job"`    // id of this run, so that a waiter knows its own
	Owner  string `json:"owner"`  // whose object it is: a domain's name
	Object string `json:"object"` // what is worked on: "domain vm1: disk vda"
	State  State  `json:"state"`
	Done   int64  `json:"done"`
	Total  int64  `json:"total"`
	Rate   int64  `json:"rate"`  // bytes per second, over the last seconds
	ETA    int64  `json:"eta"`   // seconds; -1 is unknown
	Error  string `json:"error"` // why it failed, one line
	Code   string `json:"code"`  // kind of failure, failure.Kind.Code
	Hint   string `json:"hint"`  // the way out
	// Cancelled: it failed since somebody asked for that.
	Cancelled bool      `json:"cancelled,omitempty"`
	Note      string    `json:"note,omitempty"` // what Done and Total are of, if not the object itself
	PID       int       `json:"pid"`            // of the worker
	Started   time.Time `json:"started"`
	Updated   time.Time `json:"updated"`
}

// Percent is done of total, 0 to 100, rounded down.
func (s Status) Percent() int {
	if s.Total <= 0 {
		return 0
	}
	return int(min(100, 100*float64(s.Done)/float64(s.Total)))
}

// Read returns the status at path. fs.ErrNotExist: there is none.
func Read(path string) (Status, error) {
	var s Status
	b, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// interval bounds how often Advance writes.
const interval = 500 * time.Millisecond

// Writer keeps one status file. Its methods may be called from any goroutine
// and never fail.
type Writer struct {
	path string

	mu     sync.Mutex
	status Status
	marks  []mark // for the rate
}

type mark struct {
	at   time.Time
	done int64
}

// NewWriter starts a status file at path (its directory is made) for a job on
// an object of owner.
func NewWriter(path, job, owner, object string) *Writer {
	now := time.Now().UTC()
	w := &Writer{path: path, status: Status{
		Schema: "diskhook.status/v1", Job: job, Owner: owner, Object: object, State: Starting,
		ETA: -1, PID: os.Getpid(), Started: now,
	}}
	_ = atomicfile.MkdirAll(filepath.Dir(path), 0o755)
	w.Set(Starting)
	return w
}

// Set moves to state and writes at once.
func (w *Writer) Set(state State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.State = state
	w.write(time.Now().UTC())
}

// Note says what is worked on for the object's sake, and counts it from its
// beginning; "" is the object itself.
func (w *Writer) Note(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status.Note == text {
		return
	}
	w.status.Note, w.status.Done, w.status.Total, w.status.Rate, w.status.ETA, w.marks = text, 0, 0, 0, -1, nil
	w.write(time.Now().UTC())
}

// Advance is a Func.
func (w *Writer) Advance(done, total int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now().UTC()
	w.status.Done, w.status.Total = done, total
	if done < total && now.Sub(w.status.Updated) < interval {
		return
	}
	w.measure(now)
	w.write(now)
}

// Fail ends the work with the line that a waiter shows.
func (w *Writer) Fail(line, code, hint string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.State, w.status.Error, w.status.Code, w.status.Hint = Failed, line, code, hint
	w.write(time.Now().UTC())
}

// Cancelled says that the failure which comes was asked for.
func (w *Writer) Cancelled() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Cancelled = true
}

// measure takes rate and ETA over the last ten seconds: long enough to be
// calm, short enough to notice a stalled source. In the first one it says
// nothing: holes, and what an earlier copy did, go by in no time there.
func (w *Writer) measure(now time.Time) {
	w.marks = append(w.marks, mark{now, w.status.Done})
	for len(w.marks) > 2 && now.Sub(w.marks[0].at) > 10*time.Second {
		w.marks = w.marks[1:]
	}
	first := w.marks[0]
	span := now.Sub(first.at).Seconds()
	w.status.Rate, w.status.ETA = 0, -1
	if moved := w.status.Done - first.done; span >= 1 && moved > 0 {
		w.status.Rate = int64(float64(moved) / span)
		w.status.ETA = (w.status.Total - w.status.Done) / max(1, w.status.Rate)
	}
}

func (w *Writer) write(now time.Time) {
	w.status.Updated = now
	b, err := json.Marshal(w.status)
	if err == nil {
		_ = atomicfile.WriteVolatile(w.path, append(b, '\n'), 0o644)
	}
}
