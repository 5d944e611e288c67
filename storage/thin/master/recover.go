// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/metadata"
)

// Source is where the mapping of a recovered volume comes from.
type Source string

// The sources.
const (
	FromMetadata Source = "metadata" // the host's: all that it acknowledged is there
	FromRepair   Source = "repair"   // what thin_repair made of them
	FromStored   Source = "stored"   // UUID.thin, as of before the host had the volume
)

// Recovered is a volume that was taken from a fenced host.
type Recovered struct {
	Number  uint32 `json:"number"`
	Name    string `json:"name"`
	Source  Source `json:"source"`
	Suspect bool   `json:"suspect"` // what was written last may be lost
}

// Recover takes the volumes of a fenced host offline, with what its metadata map,
// and its other blocks back. The host has to join again. Metadata that are damaged
// are a failure.Problems and nothing changes, unless repair is set: then
// thin_repair is asked, or else the mappings serve that the volumes came with, and
// what is restored that way is suspect. Run again after a crash, it goes on; what
// it returns is then the rest.
func (m *Master) Recover(ctx context.Context, host string, repair bool) ([]Recovered, error) {
	var all []Recovered
	err := m.change(ctx, func(s *session) error {
		h, err := s.hostNamed(host)
		if err != nil || h.State == layout.Recovered {
			return err
		}
		if h.State != layout.Fenced {
			err := failure.New(failure.Precondition, "host %s: it is not fenced", h.Name)
			return failure.Hint(err, "have it fenced, then run `diskhook thin on-fenced %s` with the evidence", h.Name)
		}
		all, err = s.recover(ctx, h, repair)
		return err
	})
	return all, err
}

func (s *session) recover(ctx context.Context, h layout.HostRecord, repair bool) (all []Recovered, err error) {
	err = s.onHost(ctx, h.UUID, true, func(dev group.Volume) error {
		w, err := s.wreck(ctx, dev, h, repair)
		if err != nil {
			return err
		}
		defer w.close()
		for _, v := range s.m.Volumes {
			if v.Host != h.Number {
				continue
			}
			saved, err := s.salvage(ctx, w, v, repair)
			if err != nil {
				return err
			}
			all = append(all, saved)
		}
		return nil
	})
	if err != nil {
		return all, err
	}
	next, err := ledger.FinishRecovery(s.m, h.Number)
	if err != nil {
		return all, err
	}
	return all, s.commit(ctx, next)
}

// wreck is what a fenced host left.
type wreck struct {
	reader *metadata.Reader // nil: there are no metadata
	source Source
	close  func()
}

// wreck looks at a fenced host's metadata, after the host has lost the right to
// change them.
func (s *session) wreck(ctx context.Context, dev group.Volume, h layout.HostRecord, repair bool) (wreck, error) {
	none := wreck{source: FromStored, close: func() {}}
	header, stamp, err := layout.ReadHost(dev, s.Cluster, h.UUID)
	switch {
	case errors.Is(err, layout.ErrEmpty):
		return wreck{source: FromMetadata, close: none.close}, nil // it never had a pool
	case repair && (errors.Is(err, layout.ErrDamaged) || errors.Is(err, layout.ErrInvalid)):
		return none, nil // nobody knows which window counts
	case err != nil:
		return none, unreadable(h, err)
	}
	if err := s.seal(dev, h, header, stamp); err != nil {
		return none, err
	}
	active := window{dev, header.Windows[header.Active]}
	if err := sound(ctx, active); err != nil {
		if !repair {
			return none, unreadable(h, err)
		}
		return s.repaired(ctx, active, h)
	}
	reader, err := metadata.Open(active)
	return wreck{reader, FromMetadata, func() {}}, err
}

func unreadable(h layout.HostRecord, err error) error {
	err = failure.Wrap(failure.Problems, fmt.Errorf("host %s: %w", h.Name, err))
	before := ""
	if h.State == layout.Member {
		before = fmt.Sprintf("stop its pool, run `diskhook thin on-fenced %s` on the master, then ", h.Name)
	}
	return failure.Hint(err, "%srun `diskhook thin recover --repair %s`, which restores what can be read and marks the volumes suspect", before, h.Name)
}

// sound fails on metadata that cannot be relied on. Space that leaked is harmless.
func sound(ctx context.Context, w window) error {
	report, err := metadata.Check(ctx, w, w.blocks(), metadata.CheckOptions{})
	if err != nil {
		return err
	}
	for _, p := range report.Problems {
		if p.Kind != metadata.Leak {
			return fmt.Errorf("%w: %s", metadata.ErrDamaged, p.Text)
		}
	}
	return nil
}

// salvage takes one volume offline.
func (s *session) salvage(ctx context.Context, w wreck, v layout.VolumeRecord, repair bool) (Recovered, error) {
	saved := Recovered{Number: v.Number, Name: v.Name, Source: w.source, Suspect: w.source == FromRepair}
	mapping, has, err := s.had(w, v)
	if err == nil && !has {
		// An attach that did not come to the hand-over has written nothing; anything
		// else was in use.
		saved.Source, saved.Suspect = FromStored, v.State != layout.Attaching || w.source != FromMetadata
		mapping, err = s.mapping(ctx, v, v.Stored())
	}
	if err == nil && saved.Suspect && !repair {
		err = failure.New(failure.Problems, "volume %s: its host's metadata lack it", v.Name)
		err = failure.Hint(err, "run `diskhook thin recover --repair` with the host's name, which goes back to what was stored before the host had the volume and marks it suspect")
	}
	if err != nil {
		return saved, err
	}
	if err := s.store(ctx, v, v.Generation+1, mapping); err != nil {
		return saved, err
	}
	next, err := ledger.FinishDetach(s.m, v.Number, v.Host, mapping, saved.Suspect)
	if err == nil {
		err = s.commit(ctx, next)
	}
	if err == nil {
		err = failpoint.Hit("thin.master.salvaged")
	}
	return saved, err
}

// had is what the metadata map for a volume, if they have it as of when it came.
func (s *session) had(w wreck, v layout.VolumeRecord) (layout.Mapping, bool, error) {
	if w.reader == nil {
		return layout.Mapping{}, false, nil
	}
	d, err := w.reader.Device(v.Number)
	if errors.Is(err, failure.NotFound) || err == nil && d.Transaction != v.Generation {
		return layout.Mapping{}, false, nil
	}
	if err != nil {
		return layout.Mapping{}, false, err
	}
	mapping, err := handover.Mapping(w.reader, s.m, v)
	if err != nil && w.source == FromRepair {
		return layout.Mapping{}, false, nil // not even thin_repair restored it
	}
	return mapping, err == nil, err
}
