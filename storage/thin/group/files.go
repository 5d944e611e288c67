// SPDX-License-Identifier: Apache-2.0

package group

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// Files is a directory whose files pose as the volumes of a group: for tests, and
// to look at a cluster that was copied elsewhere. Device-mapper takes no files.
type Files struct {
	Dir string
	// Capacity bounds how long all files together may be, in bytes.
	Capacity uint64
}

// page is what lengths are multiples of.
const page = 4096

// Path is Group's.
func (g Files) Path(name string) string { return filepath.Join(g.Dir, name) }

// Open is Group's.
func (g Files) Open(_ context.Context, name string, write bool) (Volume, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	v, err := layout.Open(g.Path(name), write)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, failure.NotFound) {
		return nil, absent(g.Path(name))
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Create is Group's. A file gets its name when it is complete.
func (g Files) Create(ctx context.Context, name string, bytes uint64) error {
	if err := check(name); err != nil {
		return err
	}
	if _, err := os.Stat(g.Path(name)); err == nil {
		return g.Extend(ctx, name, bytes)
	}
	if err := g.room(ctx, name, bytes); err != nil {
		return err
	}
	draft := g.Path(".new-" + name)
	if err := os.WriteFile(draft, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(draft, pages(bytes)); err != nil {
		return err
	}
	if err := os.Rename(draft, g.Path(name)); err != nil {
		return err
	}
	return atomicfile.Sync(g.Dir)
}

func pages(bytes uint64) int64 { return int64((bytes + page - 1) &^ (page - 1)) }

// room fails if so many more bytes are too many.
func (g Files) room(ctx context.Context, name string, bytes uint64) error {
	free, err := g.Free(ctx)
	if err == nil && uint64(pages(bytes)) > free {
		err = failure.New(failure.NoSpace, "%s: %d bytes are wanted, %d are free", g.Path(name), bytes, free)
		err = failure.Hint(err, "raise the capacity of %s", g.Dir)
	}
	return err
}

// Extend is Group's.
func (g Files) Extend(ctx context.Context, name string, bytes uint64) error {
	if err := check(name); err != nil {
		return err
	}
	info, err := os.Stat(g.Path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return absent(g.Path(name))
	case err != nil:
		return err
	case uint64(info.Size()) >= bytes:
		return nil
	}
	if err := g.room(ctx, name, bytes-uint64(info.Size())); err != nil {
		return err
	}
	return os.Truncate(g.Path(name), pages(bytes))
}

// Remove is Group's.
func (g Files) Remove(_ context.Context, name string) error {
	if err := check(name); err != nil {
		return err
	}
	return atomicfile.Remove(g.Path(name))
}

// Deactivate is Group's: files have no devices.
func (g Files) Deactivate(_ context.Context, name string) error { return check(name) }

// List is Group's.
func (g Files) List(context.Context) ([]LV, error) {
	entries, err := os.ReadDir(g.Dir)
	if err != nil {
		return nil, err
	}
	var list []LV
	for _, e := range entries {
		if check(e.Name()) != nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		list = append(list, LV{Name: e.Name(), Bytes: uint64(info.Size())})
	}
	return list, nil
}

// Free is Group's.
func (g Files) Free(ctx context.Context) (uint64, error) {
	list, err := g.List(ctx)
	if err != nil {
		return 0, err
	}
	var used uint64
	for _, lv := range list {
		used += lv.Bytes
	}
	return g.Capacity - min(g.Capacity, used), nil
}
