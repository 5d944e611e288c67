// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// Intent is what a verb is about to do, durable before it does anything.
type Intent struct {
	Verb string `json:"verb"` // "build", "resync", "replace", "remove"
	// Replica is the one that a resync believes, or a replace takes out.
	Replica string `json:"replica,omitempty"`
	// With is the replica that a replace brings in.
	With *Replica `json:"with,omitempty"`
	// Source is what a build copies; empty: zeros, or what the images hold.
	Source []Layer `json:"source,omitempty"`
	// Adopt: a build takes the images as they are.
	Adopt bool `json:"adopt,omitempty"`
	// DeleteImages: a remove takes the images as well.
	DeleteImages bool `json:"delete_images,omitempty"`
}

// The verbs of intents.
const (
	verbBuild   = "build"
	verbResync  = "resync"
	verbReplace = "replace"
	verbRemove  = "remove"
)

// maxDefinition bounds what is read of a definition, in bytes.
const maxDefinition = 1 << 20

func definitionPath(l host.Layout, name string) string {
	return filepath.Join(l.Definitions("quorum"), name+".json")
}

// Load reads one definition. A set that is not defined is a failure.NotFound;
// one that is damaged, or that others than root may change, a
// failure.Precondition.
func (s *Service) Load(name string) (Set, error) {
	if err := checkName(name); err != nil {
		return Set{}, err
	}
	path := definitionPath(s.Layout, name)
	b, err := readOwn(path, maxDefinition)
	if errors.Is(err, fs.ErrNotExist) {
		err = failure.New(failure.NotFound, "replica set %s: it is not defined on this host", name)
		return Set{}, failure.Hint(err, "see `diskhook quorum list`; build it with `diskhook quorum build --replicas A,B,C --threshold 2 --from SRC %s`", name)
	}
	if err != nil {
		return Set{}, fmt.Errorf("replica set %s: %w", name, err)
	}
	var set Set
	if err := strict(b, &set); err != nil {
		return Set{}, damaged(path, err)
	}
	if set.Schema != setSchema || set.Name != name {
		return Set{}, damaged(path, fmt.Errorf("schema %q, name %q", clip(set.Schema), clip(set.Name)))
	}
	if err := set.Check(); err != nil {
		return Set{}, damaged(path, err)
	}
	return set, nil
}

// List reads all definitions, by name, beside an error that joins what is
// wrong with those that cannot be read.
func (s *Service) List(context.Context) ([]Set, error) {
	dir := s.Layout.Definitions("quorum")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("replica sets: %w", err)
	}
	var sets []Set
	var faults []error
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok || strings.HasPrefix(name, ".") {
			continue // renameio's temporary files among them
		}
		set, err := s.Load(name)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		sets = append(sets, set)
	}
	return sets, errors.Join(faults...)
}

// save makes the definition durable.
func (s *Service) save(set Set) error {
	if err := set.Check(); err != nil {
		return err
	}
	if err := atomicfile.MkdirAll(s.Layout.Definitions("quorum"), 0o700); err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	if err := atomicfile.WriteJSON(definitionPath(s.Layout, set.Name), set, 0o600); err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	return nil
}

// intend makes an intent durable.
func (s *Service) intend(set Set) error {
	if err := s.save(set); err != nil {
		return err
	}
	return failpoint.Hit("quorum.intent")
}

// forget takes the definition and the host's state away, the state first: a
// definition without it is still refused or removed again.
func (s *Service) forget(set Set) error {
	for _, path := range []string{s.stateDir(set), s.eventsPath(set.Name), s.eventsPath(set.Name) + ".1"} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("%s: %w", &set, err)
		}
	}
	if err := atomicfile.Remove(definitionPath(s.Layout, set.Name)); err != nil {
		return fmt.Errorf("%s: %w", &set, err)
	}
	return nil
}

// stateDir is the host's state of a set: the newest generation that it has
// acknowledged, and the marks of replicas that have no place of their own.
func (s *Service) stateDir(set Set) string {
	return filepath.Join(s.Layout.State(), "quorum", set.UUID)
}

// readOwn reads a regular file that nobody but root, or whoever we are, may
// change, through no link.
func readOwn(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return nil, failure.New(failure.Precondition, "%s: not a regular file", path)
	case ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid(), st.Mode().Perm()&0o022 != 0:
		err := failure.New(failure.Precondition, "%s: others than root may change it", path)
		return nil, failure.Hint(err, "look at what it says, then `chown root:root %s` and `chmod 600 %s`", path, path)
	}
	return readAtMost(f, most)
}

func readAtMost(f *os.File, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = failure.New(failure.Precondition, "%s: more than %d bytes", f.Name(), most)
	}
	return b, err
}

// strict decodes one JSON document that has no unknown keys and nothing after.
func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

func damaged(path string, err error) error {
	err = failure.New(failure.Precondition, "%s: not understood: %w", path, err)
	return failure.Hint(err, "restore the file from a backup")
}
