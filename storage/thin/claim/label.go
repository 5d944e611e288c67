// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/layout"
)

const (
	labelSchema = "diskhook.thin-label/v1"
	labelSuffix = ".labels"
)

// Label is what a host keeps of a volume that is a local copy of a disk (package
// localdisk), in /var/lib/diskhook/thin/CLUSTER.labels/VOLUME.json. It is there,
// durably, before the master is asked for the volume, and goes after it: a volume of
// this UUID is the copy, and another one of this name is not. What the tags say is
// for who made it; they change all at once.
//
// Nothing takes a volume with a label away from this host but who made it, in
// whatever boot.
type Label struct {
	Schema string    `json:"schema"`
	Volume uuid.UUID `json:"volume"`
	Tags   []string  `json:"tags"`
}

// Labels is those of one cluster. A zero one has none, and takes none. They are
// written by who has the cluster's lock on this host, and may be read by anybody.
type Labels struct{ Dir string }

// OpenLabels is the labels of a cluster on this host.
func OpenLabels(l host.Layout, cluster string) (Labels, error) {
	if !layout.ValidName(cluster) {
		return Labels{}, failure.New(failure.Usage, "cluster %q: not a name of letters, digits, dot, _ and -", cluster)
	}
	return Labels{Dir: filepath.Join(dir(l), cluster+labelSuffix)}, nil
}

func (s Labels) path(volume string) string { return filepath.Join(s.Dir, volume+".json") }

// Of is the label of a volume; nil if there is none. One that cannot be read is a
// failure.Problems: it may be of a copy that a guest has written to.
func (s Labels) Of(volume string) (*Label, error) {
	if s.Dir == "" {
		return nil, nil
	}
	b, err := os.ReadFile(s.path(volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("volume %s: its label: %w", volume, failure.Denied(err))
	}
	var label Label
	if err = json.Unmarshal(b, &label); err == nil && (label.Schema != labelSchema || label.Volume == uuid.Nil) {
		err = fmt.Errorf("schema %.64q, volume %s", label.Schema, label.Volume)
	}
	if err != nil {
		err = failure.New(failure.Problems, "volume %s: %s: not understood: %w", volume, s.path(volume), err)
		return nil, failure.Hint(err, "restore the file from a backup; or remove it, and take the copy over with `diskhook local adopt`")
	}
	return &label, nil
}

// Set writes a label.
func (s Labels) Set(volume string, label Label) error {
	if s.Dir == "" {
		return failure.New(failure.Precondition, "volume %s: there is no place for labels", volume)
	}
	label.Schema = labelSchema
	if err := atomicfile.MkdirAll(s.Dir, 0o755); err != nil {
		return fmt.Errorf("volume %s: its label: %w", volume, failure.Denied(err))
	}
	return atomicfile.WriteJSON(s.path(volume), label, 0o644)
}

// Drop takes the label of a volume away; none is fine.
func (s Labels) Drop(volume string) error {
	if s.Dir == "" {
		return nil
	}
	return atomicfile.Remove(s.path(volume))
}

// Volumes are those that have labels, by name.
func (s Labels) Volumes() ([]string, error) {
	if s.Dir == "" {
		return nil, nil
	}
	return names(s.Dir, ".json")
}

// Labelled refuses a volume that is a local copy, for verbs that would take it away.
func (s Labels) Labelled(volume string) error {
	label, err := s.Of(volume)
	if err != nil || label == nil {
		return err
	}
	err = failure.New(failure.Conflict, "volume %s: it is the local copy of a disk on this host", volume)
	return failure.Hint(err, "see `diskhook local list`; `diskhook local remove` gives a copy up")
}
