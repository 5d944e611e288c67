// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Definition is what this host knows of a volume, attached or not. It is a
// file that only root can read: it holds secrets, or the names of files that do.
type Definition struct {
	ID         string          `json:"id"`
	Connection json.RawMessage `json:"connection_info"`
}

// maxID keeps file names and links with a prefix and a suffix within 255 bytes.
const maxID = 200

// CheckID admits what is one element of a path, and no option.
func CheckID(id string) error {
	ok := id != "" && len(id) <= maxID && id[0] != '-' && id[0] != '.'
	for _, r := range id {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	}
	if !ok {
		return failure.New(failure.Usage, "volume %q: not an id of letters, digits, dot, _ and -", id)
	}
	return nil
}

func (s *Service) definitionPath(id string) string {
	return filepath.Join(s.Layout.Definitions("volumes"), id+".json")
}

// Define makes a volume known by its connection_info, or changes that. Where
// a secret is expected at KEY, KEY_file may name a file that has it. What
// could never be attached is refused, as is a change while it is attached.
func (s *Service) Define(ctx context.Context, id string, connection []byte) error {
	info, err := s.definable(id, connection)
	if err != nil {
		return err
	}
	unlock, err := s.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if changes, err := s.defines(ctx, id, info); err != nil || !changes {
		return err
	}
	if err := atomicfile.MkdirAll(s.Layout.Definitions("volumes"), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteJSON(s.definitionPath(id), Definition{id, connection}, 0o600)
}

// ExplainDefine tells what Define would do, as ExplainAttach does.
func (s *Service) ExplainDefine(ctx context.Context, id string, connection []byte) ([]string, error) {
	info, err := s.definable(id, connection)
	if err != nil {
		return nil, err
	}
	if changes, err := s.defines(ctx, id, info); err != nil || !changes {
		return nil, err
	}
	return []string{"# write " + s.definitionPath(id)}, nil
}

// definable refuses what could never be attached.
func (s *Service) definable(id string, connection []byte) (connector.Info, error) {
	if err := CheckID(id); err != nil {
		return connector.Info{}, err
	}
	info, err := connector.ParseInfo(connection)
	if err == nil {
		_, err = s.Host.Open(id, info)
	}
	if err != nil {
		return info, fmt.Errorf("volume %s: %w", id, err)
	}
	return info, nil
}

// defines says whether a definition is another than the one that is there, and
// refuses to change that of an attached volume.
func (s *Service) defines(ctx context.Context, id string, info connector.Info) (bool, error) {
	if known, err := s.definition(id); err == nil && known.Same(info) {
		return false, nil
	}
	row, err := s.row(ctx, id)
	if err != nil {
		return false, err
	}
	if row != nil {
		return false, s.stillAttached(id, "changed")
	}
	return true, nil
}

func (s *Service) stillAttached(id, what string) error {
	err := failure.New(failure.Conflict, "volume %s: it is attached, and its definition cannot be %s", id, what)
	return failure.Hint(err, "run `diskhook volume detach %s` first", id)
}

// Undefine forgets a volume and what it was. One that is not defined is a
// failure.NotFound, one that is attached a failure.Conflict.
func (s *Service) Undefine(ctx context.Context, id string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	unlock, err := s.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.removable(ctx, id); err != nil {
		return err
	}
	// What it was goes first: a definition that comes later under the same
	// id must not be measured by it.
	if err := s.update(ctx, func(tx *database.Tx) error { return tx.ForgetIdentity(id) }); err != nil {
		return err
	}
	if err := failpoint.Hit("undefine.forgotten"); err != nil {
		return err
	}
	return atomicfile.Remove(s.definitionPath(id))
}

// ExplainUndefine tells what Undefine would do, as ExplainAttach does.
func (s *Service) ExplainUndefine(ctx context.Context, id string) ([]string, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	if err := s.removable(ctx, id); err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("# forget in %s what volume %s was", s.Database, id),
		command.Quote([]string{"rm", "--", s.definitionPath(id)}),
	}, nil
}

// removable refuses what is not defined, or is attached.
func (s *Service) removable(ctx context.Context, id string) error {
	if _, err := os.Stat(s.definitionPath(id)); err != nil {
		return fmt.Errorf("volume %s: %w", id, s.notDefined(id, err))
	}
	row, err := s.row(ctx, id)
	if err == nil && row != nil {
		err = s.stillAttached(id, "removed")
	}
	return err
}

func (s *Service) notDefined(id string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return failure.Hint(failure.Wrap(failure.Precondition, err), "run this as root")
	}
	err = failure.New(failure.NotFound, "not defined on this host")
	return failure.Hint(err, "run `diskhook volume define --connection-info FILE %s`", id)
}

// definition reads one. A damaged one is an error that tells nothing of it.
func (s *Service) definition(id string) (connector.Info, error) {
	raw, err := os.ReadFile(s.definitionPath(id))
	if err != nil {
		return connector.Info{}, s.notDefined(id, err)
	}
	var d Definition
	err = json.Unmarshal(raw, &d)
	if err != nil {
		err = fmt.Errorf("not a definition: %w", err)
	}
	var info connector.Info
	if err == nil {
		info, err = connector.ParseInfo(d.Connection)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", s.definitionPath(id), err)
		return connector.Info{}, failure.Hint(err, "define it again with `diskhook volume define --connection-info FILE %s`", id)
	}
	return info, nil
}

// Node is what a domain's XML has to know of a volume that need not be attached.
type Node struct {
	Block   bool `json:"block"`   // a block device; else a file
	Discard bool `json:"discard"` // the storage says that it takes discards
}

// Node reads the definition. One that is missing is a failure.NotFound.
func (s *Service) Node(id string) (Node, error) {
	if err := CheckID(id); err != nil {
		return Node{}, err
	}
	info, err := s.definition(id)
	if err != nil {
		return Node{}, fmt.Errorf("volume %s: %w", id, err)
	}
	return Node{Block: info.Type != "nfs", Discard: info.Discards()}, nil
}

// Definitions lists them by id, secrets masked. One that cannot be read is in
// the error, beside those that can.
func (s *Service) Definitions() ([]Definition, error) {
	entries, err := os.ReadDir(s.Layout.Definitions("volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.Hint(failure.Wrap(failure.Precondition, fmt.Errorf("definitions of volumes: %w", err)), "run this as root")
	}
	var all []Definition
	var damaged []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || CheckID(id) != nil {
			continue // an editor's backup, or a file that is being written
		}
		info, err := s.definition(id)
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		all = append(all, Definition{id, connector.Redact(info.Raw())})
	}
	return all, errors.Join(damaged...)
}
