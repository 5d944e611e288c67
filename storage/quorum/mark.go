// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// Mark is what lies beside a replica and says what its content is.
type Mark struct {
	Schema  string `json:"schema"` // "diskhook.quorum-mark/v1"
	Set     string `json:"set"`    // UUID
	Replica string `json:"replica"`
	// Generation is that of the content; the zero value: the replica has never
	// had any.
	Generation Generation `json:"generation"`
	// Clean says that nobody has written since everything was flushed.
	Clean bool `json:"clean"`
	// Suspect is why the replica must not vote; "" when it may.
	Suspect Reason `json:"suspect,omitempty"`
}

// Generation is the content between two raises.
type Generation struct {
	Number uint64 `json:"number"`
	// Raise is unique: two hosts, or two crashes, may give one number twice.
	Raise string `json:"raise"`
	// From is the generation that it was raised from.
	From Origin `json:"from"`
	// With are the replicas it was raised on. It is acknowledged only when all
	// of them have it.
	With []string `json:"with"`
}

// Origin refers to an earlier generation.
type Origin struct {
	Number uint64 `json:"number"`
	Raise  string `json:"raise"`
	Clean  bool   `json:"clean"`
}

// Reason is why a replica is suspect: one word for machines.
type Reason string

// The reasons.
const (
	ReadError  Reason = "read-error"
	WriteError Reason = "write-error"
	FlushError Reason = "flush-error"
	Mismatch   Reason = "mismatch" // it was outvoted
	Hung       Reason = "hung"
	Gone       Reason = "gone"     // its connection broke, or it could not be opened
	Unfilled   Reason = "unfilled" // its build or replacement did not end
	Unsynced   Reason = "unsynced" // a resync of it did not end
)

// Reasons lists every reason.
func Reasons() []Reason {
	return []Reason{ReadError, WriteError, FlushError, Mismatch, Hung, Gone, Unfilled, Unsynced}
}

const (
	markSchema = "diskhook.quorum-mark/v1"
	maxMark    = 64 << 10 // bytes that are read of a sidecar
	raiseChars = 16       // of Generation.Raise, in hex
)

// check refuses a mark that no raise has written.
func (m Mark) check() error {
	_, known := idNumber(m.Replica)
	switch {
	case m.Schema != markSchema:
		return fmt.Errorf("schema %q", clip(m.Schema))
	case !host.IsUUID(m.Set):
		return fmt.Errorf("set %q", clip(m.Set))
	case !known:
		return fmt.Errorf("replica %q", clip(m.Replica))
	case m.Suspect != "" && !slices.Contains(Reasons(), m.Suspect):
		return fmt.Errorf("suspect %q", clip(string(m.Suspect)))
	}
	return m.Generation.check()
}

func (g Generation) check() error {
	if g.Number == 0 {
		if g.Raise != "" || len(g.With) > 0 || g.From != (Origin{}) {
			return errors.New("generation 0 with content")
		}
		return nil
	}
	if !isRaise(g.Raise) || g.From.Raise != "" && !isRaise(g.From.Raise) || g.From.Number >= g.Number {
		return fmt.Errorf("generation %d, raise %q, from %q", g.Number, clip(g.Raise), clip(g.From.Raise))
	}
	for _, id := range g.With {
		if _, ok := idNumber(id); !ok {
			return fmt.Errorf("raised with %q", clip(id))
		}
	}
	return nil
}

func isRaise(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == raiseChars/2 && strings.ToLower(s) == s
}

// markPlace is where the mark of one replica lies.
type markPlace interface {
	// read returns nil without error where there is none.
	read(ctx context.Context) (*Mark, error)
	// write replaces the mark in one durable step.
	write(ctx context.Context, m Mark) error
	remove(ctx context.Context) error
}

// markOf is a tag for a volume, a sidecar for a file, else the host's state.
func (s *Service) markOf(set Set, r Replica) markPlace {
	switch top := r.Top(); {
	case r.Volume != "":
		vg, lv, _ := strings.Cut(r.Volume, "/")
		return tagMark{s.lvm(), vg, lv}
	case top.Type == File:
		return fileMark{sidecar(top.Path)}
	}
	return fileMark{filepath.Join(s.stateDir(set), r.ID+".json")}
}

// sidecar is a name that nobody takes for an image.
func sidecar(image string) string { return image + ".quorum" }

// fileMark is a mark in a file, root only.
type fileMark struct{ path string }

func (f fileMark) read(context.Context) (*Mark, error) {
	b, err := readSidecar(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mark %w", err)
	}
	var m Mark
	err = strict(b, &m)
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, damagedMark(f.path, err)
	}
	return &m, nil
}

// readSidecar does not ask who owns the file: on a share that squashes root it
// is never us. Who can write there can write the image, too.
func readSidecar(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, failure.New(failure.Precondition, "%s: not a regular file", path))
	}
	return readAtMost(f, maxMark)
}

func (f fileMark) write(_ context.Context, m Mark) error {
	if err := m.check(); err != nil {
		return fmt.Errorf("mark %s: %w", f.path, err)
	}
	if err := atomicfile.WriteJSON(f.path, m, 0o600); err != nil {
		return fmt.Errorf("mark %w", err)
	}
	return nil
}

func (f fileMark) remove(context.Context) error { return atomicfile.Remove(f.path) }

func damagedMark(where string, err error) error {
	return failure.New(failure.Precondition, "mark %s: not understood: %w", where, err)
}

// readMark reads a replica's mark, for at most the set's hang timeout.
func (s *Service) readMark(ctx context.Context, set Set, r Replica) (*Mark, error) {
	ctx, cancel := context.WithTimeout(ctx, s.hangTimeout(set))
	defer cancel()
	m, err := command.Abandon(ctx, func() (*Mark, error) { return s.markOf(set, r).read(ctx) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return m, nil
}

// writeMark writes a replica's mark, for at most the set's hang timeout. What
// is left behind may still write it later; by then the others have gone on to
// another generation, so that it says nothing wrong.
func (s *Service) writeMark(ctx context.Context, set Set, r Replica, m Mark) error {
	m.Schema, m.Set, m.Replica = markSchema, set.UUID, r.ID
	ctx, cancel := context.WithTimeout(ctx, s.hangTimeout(set))
	defer cancel()
	place := s.markOf(set, r)
	if f, ok := place.(fileMark); ok && filepath.Dir(f.path) == s.stateDir(set) {
		if err := s.makeState(set); err != nil {
			return err
		}
	}
	_, err := command.Abandon(ctx, func() (struct{}, error) { return struct{}{}, place.write(ctx, m) })
	if err == nil {
		err = failpoint.Hit("quorum.mark." + r.ID)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	return nil
}

// removeMark takes a replica's mark away, unless it is of something else.
func (s *Service) removeMark(ctx context.Context, set Set, r Replica) error {
	m, err := s.readMark(ctx, set, r)
	if err != nil || m == nil || m.Set != set.UUID || m.Replica != r.ID {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.hangTimeout(set))
	defer cancel()
	_, err = command.Abandon(ctx, func() (struct{}, error) { return struct{}{}, s.markOf(set, r).remove(ctx) })
	return err
}

func (s *Service) makeState(set Set) error {
	if err := atomicfile.MkdirAll(s.Layout.State(), 0o711); err != nil {
		return err
	}
	return atomicfile.MkdirAll(s.stateDir(set), 0o700)
}
