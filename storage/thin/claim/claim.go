// SPDX-License-Identifier: Apache-2.0

// Package claim is how a host remembers which domain has a volume of a thin
// cluster: /var/lib/diskhook/thin/CLUSTER.claims/VOLUME.json.
//
// Between a start's hook and its QEMU, and whenever libvirt has a domain's disk
// closed, nobody has the volume's device open: that it is needed is only written
// here. So it is from before the volume is attached until after it was detached.
//
// A claim holds in the boot in which it was made: no domain outlives its host. What
// is left of one of an earlier boot is that the volume came here for a domain's sake,
// so that the next domain's end still detaches it; or, of one whose domain had ended,
// that it is still to be detached.
//
// Claims are written by who has the cluster's lock on this host, and may be read by
// anybody at any time.
package claim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/layout"
)

const schema = "diskhook.thin-claim/v1"

// Claim is what is written of one volume.
type Claim struct {
	Schema string    `json:"schema"`
	Volume uuid.UUID `json:"volume"` // one that was made anew has another
	Domain string    `json:"domain"` // UUID
	Boot   string    `json:"boot"`
	// Attached says that the volume came to this host for a domain's sake: the
	// domain's end detaches it.
	Attached bool `json:"attached"`
	// Ended says that the domain has ended, and that the volume is still to be
	// detached.
	Ended bool `json:"ended"`
}

// Store is the claims on the volumes of one cluster.
type Store struct {
	Dir  string
	Boot string // this boot's id
}

// Open is the store of a cluster on this host.
func Open(l host.Layout, cluster string) (Store, error) {
	if !layout.ValidName(cluster) {
		return Store{}, failure.New(failure.Usage, "cluster %q: not a name of letters, digits, dot, _ and -", cluster)
	}
	boot, err := l.BootID()
	return Store{Dir: filepath.Join(dir(l), cluster+suffix), Boot: boot}, err
}

func dir(l host.Layout) string { return filepath.Join(l.State(), "thin") }

const suffix = ".claims"

// Clusters are those of which this host has claims.
func Clusters(l host.Layout) ([]string, error) { return names(dir(l), suffix) }

// names lists the names of entries that end alike; a directory that is not there
// has none.
func names(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claims: %w", failure.Denied(err))
	}
	var all []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && layout.ValidName(name) {
			all = append(all, name)
		}
	}
	return all, nil
}

func (s Store) path(volume string) string { return filepath.Join(s.Dir, volume+".json") }

// Last is the claim that was made last on a volume, of this boot or an earlier one;
// nil if there is none. One that cannot be read is a failure.Problems.
func (s Store) Last(volume string) (*Claim, error) {
	b, err := os.ReadFile(s.path(volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: its claim: %w", volume, failure.Denied(err))
	}
	var c Claim
	if err = json.Unmarshal(b, &c); err == nil && c.Schema != schema {
		err = fmt.Errorf("schema %q, and this diskhook knows %q", c.Schema, schema)
	}
	if err != nil {
		err = failure.New(failure.Problems, "volume %s: %s: not understood: %w", volume, s.path(volume), err)
		return nil, failure.Hint(err, "see that no domain of this host uses the volume, then remove the file")
	}
	return &c, nil
}

// Holds says whether a claim keeps others from the volume.
func (s Store) Holds(c *Claim) bool { return c != nil && c.Boot == s.Boot && !c.Ended }

// Holder is the domain that has a volume now, "" for none.
func (s Store) Holder(volume string) (string, error) {
	c, err := s.Last(volume)
	if err != nil || !s.Holds(c) {
		return "", err
	}
	return c.Domain, nil
}

// Set makes a claim, of this boot.
func (s Store) Set(volume string, c Claim) error {
	c.Schema, c.Boot = schema, s.Boot
	if err := atomicfile.MkdirAll(s.Dir, 0o755); err != nil {
		return fmt.Errorf("volume %s: its claim: %w", volume, failure.Denied(err))
	}
	return atomicfile.WriteJSON(s.path(volume), c, 0o644)
}

// Drop forgets the claim on a volume; none is fine.
func (s Store) Drop(volume string) error { return atomicfile.Remove(s.path(volume)) }

// Volumes are those on which there are claims, of whatever boot, by name.
func (s Store) Volumes() ([]string, error) { return names(s.Dir, ".json") }

// Refuse is that a domain has the volume.
func Refuse(volume, domain string) error {
	err := failure.New(failure.Conflict, "volume %s: domain %s has it", volume, domain)
	return failure.Hint(err, "shut that domain down, or run `diskhook thin detach --domain %s %s` if it is gone", domain, volume)
}
