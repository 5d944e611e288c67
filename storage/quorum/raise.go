// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// Raise begins a new generation, numbered next, on the replicas called with,
// whose content is that of from. When it returns, all replicas of
// Generation.With have it durably, and this host has noted it: only then may a
// guest write, or a write be acknowledged again.
//
// A replica that does not take the mark is left out, and the generation raised
// once more on the others; the caller cuts off whatever is not in With. With
// fewer than the threshold left it fails, and nothing must be written.
//
// The caller holds the set's lock.
func (s *Service) Raise(ctx context.Context, set Set, from Origin, next uint64, with []string) (Generation, error) {
	g, _, err := s.raise(ctx, set, from, next, with, false)
	return g, err
}

// raise also says why replicas were left out, by id.
func (s *Service) raise(ctx context.Context, set Set, from Origin, next uint64, with []string, clean bool) (Generation, map[string]error, error) {
	left := map[string]error{}
	for number := next; ; number++ {
		if len(with) < set.Threshold {
			err := failure.New(failure.Precondition, "%s: %d replicas take a new generation, %d are needed", &set, len(with), set.Threshold)
			return Generation{}, left, errors.Join(err, joined(left))
		}
		if err := s.noteBegun(set, number); err != nil {
			return Generation{}, left, err
		}
		g := Generation{Number: number, Raise: newRaise(), From: from, With: slices.Clone(with)}
		failed := s.markAll(ctx, set, with, func(Replica) Mark { return Mark{Generation: g, Clean: clean} })
		if err := stopped(ctx); err != nil {
			return Generation{}, left, err
		}
		if len(failed) == 0 {
			return g, left, s.know(set, g)
		}
		with = slices.DeleteFunc(slices.Clone(with), func(id string) bool { return failed[id] != nil })
		for id, err := range failed {
			s.Log.WarnContext(ctx, "replica takes no mark and is left out", "set", set.Name, "replica", id, "err", err)
			left[id] = err
		}
	}
}

// MarkClean says of all replicas of a generation that nobody writes any more
// and everything is flushed, which the caller has seen to. One mark that is
// written is enough for the set to be clean; the error joins those that failed.
func (s *Service) MarkClean(ctx context.Context, set Set, g Generation) error {
	failed := s.markAll(ctx, set, g.With, func(Replica) Mark { return Mark{Generation: g, Clean: true} })
	return joined(failed)
}

// MarkSuspect says on a replica itself that it must not vote. It is a service to
// whoever looks at the replica alone: what keeps it out for sure is the Raise
// on the others, which comes first. The generation in its mark stays.
func (s *Service) MarkSuspect(ctx context.Context, set Set, id string, why Reason) error {
	r, ok := set.Replica(id)
	if !ok {
		return noReplica(set, id)
	}
	m, err := s.readMark(ctx, set, r)
	if err != nil {
		return err
	}
	if m == nil || m.Set != set.UUID || m.Replica != id {
		m = &Mark{}
	}
	m.Suspect, m.Clean = why, false
	return s.writeMark(ctx, set, r, *m)
}

// markAll writes marks side by side and returns what failed, by id.
func (s *Service) markAll(ctx context.Context, set Set, ids []string, mark func(Replica) Mark) map[string]error {
	var mu sync.Mutex
	var pending sync.WaitGroup
	failed := map[string]error{}
	for _, id := range ids {
		pending.Go(func() {
			r, ok := set.Replica(id)
			err := noReplica(set, id)
			if ok {
				err = s.writeMark(ctx, set, r, mark(r))
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[id] = err
			}
		})
	}
	pending.Wait()
	return failed
}

func joined(failed map[string]error) error {
	var all []error
	for _, err := range failed {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func noReplica(set Set, id string) error {
	err := failure.New(failure.NotFound, "%s: it has no replica %q", &set, clip(id))
	return failure.Hint(err, "see `diskhook quorum status %s`", set.Name)
}

func newRaise() string {
	b := make([]byte, raiseChars/2)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

func (s *Service) knownPath(set Set) string { return filepath.Join(s.stateDir(set), "generation.json") }

// know notes that this host has acknowledged a generation.
func (s *Service) know(set Set, g Generation) error {
	if err := failpoint.Hit("quorum.raised"); err != nil {
		return err
	}
	if err := s.noteKnown(set, Known{Number: g.Number, Raise: g.Raise}, g.With); err != nil {
		return err
	}
	return failpoint.Hit("quorum.known")
}

// knowledge is what the host keeps of a set's generation.
type knowledge struct {
	Known
	// Out is since when replicas do not vote, by id.
	Out map[string]time.Time `json:"out,omitempty"`
}

// noteBegun writes down that a raise of this number begins, before any replica has
// it.
func (s *Service) noteBegun(set Set, number uint64) error {
	k, err := s.knowledge(set)
	if err != nil {
		return err
	}
	k.Begun = max(k.Begun, number)
	if err = s.makeState(set); err == nil {
		err = atomicfile.WriteJSON(s.knownPath(set), k, 0o600)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	return nil
}

// noteKnown writes down the generation, and who votes in it.
func (s *Service) noteKnown(set Set, k Known, voting []string) error {
	if err := s.makeState(set); err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	before, err := s.knowledge(set)
	if err != nil { // it is written anew
		s.Log.Warn("since when replicas do not vote is lost", "set", set.Name, "err", err)
	}
	k.Begun = max(k.Begun, before.Begun)
	now := knowledge{k, map[string]time.Time{}}
	for _, id := range set.IDs() {
		if slices.Contains(voting, id) {
			continue
		}
		now.Out[id] = time.Now().UTC().Truncate(time.Second)
		if since, was := before.Out[id]; was {
			now.Out[id] = since
		}
	}
	if err := atomicfile.WriteJSON(s.knownPath(set), now, 0o600); err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	return nil
}

// Known is the newest generation that this host has acknowledged.
func (s *Service) Known(set Set) (Known, error) {
	k, err := s.knowledge(set)
	return k.Known, err
}

func (s *Service) knowledge(set Set) (knowledge, error) {
	var k knowledge
	b, err := readOwn(s.knownPath(set), maxMark)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = strict(b, &k)
	}
	if err != nil {
		return knowledge{}, failure.New(failure.Precondition, "%s: the generation that this host has written: %w", &set, err)
	}
	return k, nil
}
