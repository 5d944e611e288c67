// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lock"
)

// An export works in a folder beside the file that it makes. The record of that
// folder, exports/ID.json, is durable before the folder is there, so that one
// that a crash left behind is found, wherever it is.
type exportRecord struct {
	Schema string `json:"schema"` // "diskhook.export/v1"
	Domain string `json:"domain"`
	Key    string `json:"key"`
	Folder string `json:"folder"` // absolute
}

const (
	exportSchema = "diskhook.export/v1"
	exportFolder = ".diskhook-export-" // and the id of the record
)

func (s *Service) exports() string { return filepath.Join(s.Layout.State(), "exports") }

// folder is the private folder of an export that goes on.
type folder struct {
	record string
	exportRecord
}

func (f folder) disk() string { return filepath.Join(f.Folder, "disk") }

func (f folder) remove() error { return endExport(f.record, f.exportRecord) }

// exportFolder makes the folder for the export of a copy to the file to. Only
// we may enter it: qemu-img makes files readable by all, and the copy is nobody
// else's.
func (s *Service) exportFolder(r Receipt, to string) (folder, error) {
	id := uuid.NewString()
	f := folder{filepath.Join(s.exports(), id+".json"), exportRecord{
		Schema: exportSchema, Domain: r.Domain, Key: r.Key(), Folder: filepath.Join(filepath.Dir(to), exportFolder+id),
	}}
	if st, err := os.Stat(filepath.Dir(to)); err != nil {
		return f, err
	} else if !st.IsDir() {
		return f, fmt.Errorf("%s: not a directory", filepath.Dir(to))
	}
	if err := atomicfile.MkdirAll(s.exports(), 0o700); err != nil {
		return f, err
	}
	if err := atomicfile.WriteJSON(f.record, f.exportRecord, 0o600); err != nil {
		return f, err
	}
	if err := failpoint.Hit("export.record"); err != nil {
		return f, err
	}
	if err := os.Mkdir(f.Folder, 0o700); err != nil {
		return f, errors.Join(err, atomicfile.Remove(f.record))
	}
	if err := failpoint.Hit("export.folder"); err != nil {
		return f, err
	}
	if err := f.probe(); err != nil {
		return f, errors.Join(err, f.remove())
	}
	return f, nil
}

// probe finds out, before hours of copying, whether the file can get its name.
func (f folder) probe() error {
	from, to := filepath.Join(f.Folder, "probe"), filepath.Join(f.Folder, "named")
	if err := os.WriteFile(from, nil, 0o600); err != nil {
		return err
	}
	return errors.Join(atomicfile.Name(from, to), os.Remove(to))
}

// judgeExports judges the folders of exports that did not end.
func (s *Service) judgeExports() ([]Judged, error) {
	entries, err := os.ReadDir(s.exports())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.Denied(failure.Wrap(failure.Precondition, err))
	}
	var all []Judged
	for _, e := range entries {
		id, is := strings.CutSuffix(e.Name(), ".json")
		if !is || !host.IsUUID(id) {
			continue
		}
		path := filepath.Join(s.exports(), e.Name())
		r, err := readExport(path, id)
		j := Judged{Kind: kindExport, Object: "folder " + r.Folder, Domain: r.Domain, Disk: r.Key}
		if err != nil {
			j.Object = "file " + path
			j.keep("%s", failure.OneLine(err.Error()))
			all = append(all, j)
			continue
		}
		if st, err := os.Lstat(filepath.Join(r.Folder, "disk")); err == nil {
			j.Bytes = st.Size()
		}
		held, err := lock.Held(s.Layout.Locks(), lockName(r.Domain, r.Key))
		switch {
		case err != nil:
			j.keep("%s", failure.OneLine(err.Error()))
		case held:
			j.keep("somebody works on the disk")
		default:
			j.Take, j.Reason = true, "left by an export that did not end"
			j.take = func(ctx context.Context, _ Wipe) error { return s.takeExport(ctx, path, r) }
		}
		all = append(all, j)
	}
	return all, nil
}

func readExport(path, id string) (r exportRecord, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: not understood: %w", path, err)
	}
	if r.Schema != exportSchema || validKey(r.Domain, r.Key) != nil || !filepath.IsAbs(r.Folder) || filepath.Base(r.Folder) != exportFolder+id {
		return r, fmt.Errorf("%s: not understood", path)
	}
	return r, nil
}

func (s *Service) takeExport(ctx context.Context, path string, r exportRecord) error {
	l, err := s.lockOne(ctx, r.Domain, r.Key)
	if err != nil {
		return err
	}
	defer l.Release()
	return endExport(path, r)
}

// endExport removes the folder of an export, then its record.
func endExport(path string, r exportRecord) error {
	if err := removeFolder(r.Folder); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return atomicfile.Remove(path)
}

// removeFolder follows no link on its way down: whoever owns the directory
// around the folder must not choose what is removed.
func removeFolder(folder string) error {
	around, err := os.OpenRoot(filepath.Dir(folder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer around.Close()
	return around.RemoveAll(filepath.Base(folder))
}
