// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lock"
)

// aboutFile is a file about a copy: its status, log or job, its cursor, or the
// sidecar of its file.
type aboutFile struct {
	kind, path  string
	domain, key string // of the disk; a cursor knows none
	home, name  string // of a sidecar's copy
	uuid        string // of a cursor's copy
	bytes       int64
	age         time.Duration
}

// aboutCopies lists them:
//
//	status/DOMAIN/KEY.json, KEY.log, KEY.cancel   see progress, wait and cancellable
//	status/DOMAIN/KEY.ID.job                      see start
//	cursors/UUID of the copy                      see transfer
//	DIR/NAME.json                                 see directory
//
// What is named otherwise is not ours, and not looked at.
func (s *Service) aboutCopies() ([]aboutFile, error) {
	all, err := s.statusFiles()
	if err != nil {
		return nil, err
	}
	cursors, err := filesIn(s.Layout.Cursors(), func(name string) (aboutFile, bool) {
		return aboutFile{kind: kindCursor, uuid: name}, validCopyUUID(name)
	})
	if err != nil {
		return nil, err
	}
	all = append(all, cursors...)
	places, err := s.places()
	if err != nil {
		return nil, err
	}
	for _, p := range places {
		if !filepath.IsAbs(p.home) {
			continue
		}
		sidecars, err := filesIn(p.home, func(name string) (aboutFile, bool) {
			name, is := strings.CutSuffix(name, sidecarSuffix)
			f, known := asCopy("dir", Copy{Name: name})
			return aboutFile{kind: kindSidecar, home: p.home, name: name, domain: f.Domain, key: f.Key}, is && known && f.Key != ""
		})
		if err != nil {
			return nil, err
		}
		all = append(all, sidecars...)
	}
	return all, nil
}

// statusFiles are those below status.
func (s *Service) statusFiles() ([]aboutFile, error) {
	domains, err := os.ReadDir(s.Layout.Status())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.Denied(failure.Wrap(failure.Precondition, err))
	}
	var all []aboutFile
	for _, d := range domains {
		if !d.IsDir() || !host.IsUUID(d.Name()) {
			continue
		}
		files, err := filesIn(filepath.Join(s.Layout.Status(), d.Name()), func(name string) (aboutFile, bool) { return statusFile(d.Name(), name) })
		if err != nil {
			return nil, err
		}
		all = append(all, files...)
	}
	return all, nil
}

// filesIn are the regular files of a directory, which need not be there, that
// are known by their names.
func filesIn(dir string, known func(name string) (aboutFile, bool)) ([]aboutFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.Denied(failure.Wrap(failure.Precondition, err))
	}
	var all []aboutFile
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // gone, or none of ours
		}
		if f, is := known(e.Name()); is {
			f.path, f.bytes, f.age = filepath.Join(dir, e.Name()), info.Size(), time.Since(info.ModTime())
			all = append(all, f)
		}
	}
	return all, nil
}

// statusFile reads the name of a file in the status folder of a domain.
func statusFile(domain, name string) (aboutFile, bool) {
	key, end, _ := strings.Cut(name, ".")
	f := aboutFile{kind: kindStatus, domain: domain, key: key}
	if id, is := strings.CutSuffix(end, ".job"); is {
		f.kind = kindJob
		return f, host.IsUUID(id) && validKey(domain, key) == nil
	}
	return f, slices.Contains([]string{"json", "log", "cancel"}, end) && validKey(domain, key) == nil
}

// validCopyUUID takes the UUIDs of files and of volumes. LVM's are seven groups
// of letters and digits, 38 bytes with their dashes.
func validCopyUUID(name string) bool {
	if host.IsUUID(name) {
		return true
	}
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
	}
	return len(name) == 38 && !strings.ContainsFunc(name, odd)
}

// jobAge is how old the job of a copy process is before it is taken for one
// that never started; see startTimeout.
const jobAge = 10 * time.Minute

// judgeFile judges a file about a copy by what there is of the copy. ours says
// that it is we who hold the lock of the disk.
func (s *Service) judgeFile(f aboutFile, seen sight, ours bool) Judged {
	j := Judged{Kind: f.kind, Object: "file " + f.path, Domain: f.domain, Disk: f.key, Bytes: f.bytes}
	there := slices.ContainsFunc(seen.copies, func(c foundCopy) bool {
		switch f.kind {
		case kindCursor:
			return c.Copy.UUID == f.uuid
		case kindSidecar:
			return c.Copy.Home == f.home && c.Copy.Name == f.name
		}
		return c.Domain == f.domain && c.Key == f.key
	})
	claimed := slices.ContainsFunc(seen.receipts, func(r Receipt) bool {
		if f.kind == kindCursor {
			return false // what has one is not complete
		}
		return r.Domain == f.domain && r.Key() == f.key
	})
	busy, lockErr := false, error(nil)
	if f.key != "" && !ours {
		busy, lockErr = lock.Held(s.Layout.Locks(), lockName(f.domain, f.key))
	}
	switch {
	case lockErr != nil:
		j.keep("%s", failure.OneLine(lockErr.Error()))
	case busy:
		j.keep("somebody works on the copy")
	case f.kind == kindJob && f.age < jobAge:
		j.keep("its copy process is about to start")
	case f.kind == kindJob:
		j.Take, j.Reason = true, "its copy process never started"
	case there:
		j.keep("its copy is there")
	case claimed, seen.damaged[f.domain] != nil:
		j.keep("the disk has a receipt")
	case seen.hides(f) != nil:
		j.keep("whether its copy is there is not known: %s", failure.OneLine(seen.hides(f).Error()))
	default:
		j.Take, j.Reason = true, "there is no copy that it is about"
	}
	if j.Take {
		j.take = func(ctx context.Context, _ Wipe) error { return s.takeFile(ctx, f) }
	}
	return j
}

// takeFile looks again, under the lock of the disk where one is known. A cursor
// has none: its copy was gone after the cursor was there, and the UUID of a copy
// is never given again.
func (s *Service) takeFile(ctx context.Context, f aboutFile) error {
	if f.key != "" {
		l, err := s.lockOne(ctx, f.domain, f.key)
		if err != nil {
			return err
		}
		defer l.Release()
		seen, err := s.see(ctx)
		if err != nil {
			return err
		}
		if j := s.judgeFile(f, seen, true); !j.Take {
			return failure.New(failure.Conflict, "it changed meanwhile: %s", j.Reason)
		}
	}
	if err := atomicfile.Remove(f.path); err != nil {
		return err
	}
	if f.kind == kindStatus || f.kind == kindJob {
		_ = os.Remove(filepath.Dir(f.path)) // only when it was the last
	}
	return nil
}
