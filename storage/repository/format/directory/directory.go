// SPDX-License-Identifier: Apache-2.0

// Package directory keeps a repository's documents and volumes as files, as
// every format on a file system does; formats differ in their locks and in how
// a document is read.
//
//	ROOT/repo.json                what repository this is
//	ROOT/images/ID.json           one document each; so volumes, operations, pins, stops, aside
//	ROOT/data/ID.raw, ID.qcow2    the volumes' content; overlays name each other by file name
//	ROOT/cursors/ID               how far a copy to a volume is
//	ROOT/locks/                   the format's
//	ROOT/reserve/                 files of one block each, for documents when there is no room
//
// Everything is root's. The directories may be passed by all, so that QEMU
// reaches the file that libvirt gives it.
package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/repository/format"
)

// Place is a repository's directory. It has all that format.Place asks for but
// locks and capabilities.
type Place struct {
	Root string
	// ReadFile reads all of a document that Read has opened; nil is io.ReadAll.
	ReadFile func(file *os.File) ([]byte, error)
	// Revalidate is called before a directory is listed, where what this host knows
	// of it may be old; nil: it never is.
	Revalidate func(dir string) error

	spent atomic.Bool // a spare was used
}

// folders of documents, by kind.
var folders = map[format.Kind]string{
	format.Image: "images", format.Volume: "volumes", format.Operation: "operations",
	format.Pin: "pins", format.Stop: "stops", format.Aside: asideFolder,
}

const (
	dataFolder   = "data"
	cursorFolder = "cursors"
	lockFolder   = "locks"
	// asideFolder is made when it is needed: older repositories have none.
	asideFolder = "aside"
)

// RootOf is the one parameter that these formats have, path, checked.
func RootOf(formatName string, parameters map[string]string) (string, error) {
	for name := range parameters {
		if name != "path" {
			return "", failure.New(failure.Usage, "%s: parameter %q: there is only path", formatName, name)
		}
	}
	path := parameters["path"]
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' }) {
		return "", failure.New(failure.Usage, "%s: path %q: not an absolute path", formatName, path)
	}
	return path, nil
}

// Leave implements format.Place: nothing is active.
func (*Place) Leave(context.Context) error { return nil }

// Wrecks implements format.Documents: a file has its document's name.
func (*Place) Wrecks(context.Context) ([]format.Wreck, error) { return nil, nil }

// ClearWreck implements format.Documents.
func (*Place) ClearWreck(_ context.Context, id string, _ format.Fence) error {
	return &fs.PathError{Op: "clear", Path: id, Err: fs.ErrNotExist}
}

// Locks is the directory that formats may keep locks in.
func (p *Place) Locks() string { return filepath.Join(p.Root, lockFolder) }

// Create makes the directories. A root that exists has to be empty, or what an
// earlier Create made.
func (p *Place) Create() error {
	if err := p.Ours(); err != nil {
		return err
	}
	made := []string{dataFolder, cursorFolder, lockFolder, reserveFolder}
	for _, folder := range folders {
		made = append(made, folder)
	}
	slices.Sort(made)
	if err := atomicfile.MkdirAll(p.Root, 0o711); err != nil {
		return err
	}
	for _, folder := range made {
		if err := atomicfile.MkdirAll(filepath.Join(p.Root, folder), 0o711); err != nil {
			return err
		}
	}
	p.refill()
	return nil
}

// Ours refuses a root at which somebody else keeps something, or that can be no directory.
func (p *Place) Ours() error {
	entries, err := os.ReadDir(p.Root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.ENOTDIR):
		err := failure.New(failure.Conflict, "%s: it is no directory, or something above it is none", p.Root)
		return failure.Hint(err, "name an empty directory, or one that does not exist")
	case err != nil:
		return failure.Denied(err)
	}
	known := []string{dataFolder, cursorFolder, lockFolder, reserveFolder, descriptorFile, "lost+found"}
	for _, folder := range folders {
		known = append(known, folder)
	}
	for _, e := range entries {
		if !slices.Contains(known, e.Name()) && !isTemporary(e.Name()) {
			err := failure.New(failure.Conflict, "%s: there is something else in it (%q)", p.Root, e.Name())
			return failure.Hint(err, "name an empty directory, or one that does not exist")
		}
	}
	return nil
}

// isTemporary says that a name is one that package atomicfile writes first.
func isTemporary(name string) bool { return strings.HasPrefix(name, ".") }

const descriptorFile = "repo.json"

// path is where a document is.
func (p *Place) path(kind format.Kind, id string) (string, error) {
	if kind == format.Repository && id == format.Descriptor {
		return filepath.Join(p.Root, descriptorFile), nil
	}
	folder, ok := folders[kind]
	if !ok || !host.IsUUID(id) {
		return "", failure.New(failure.Usage, "%s %q: not an id", kind, id)
	}
	return filepath.Join(p.Root, folder, id+".json"), nil
}

// Read implements format.Documents.
func (p *Place) Read(_ context.Context, kind format.Kind, id string) ([]byte, error) {
	path, err := p.path(kind, id)
	if err != nil {
		return nil, err
	}
	file, err := openDocument(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if p.ReadFile != nil {
		return p.ReadFile(file)
	}
	return io.ReadAll(io.LimitReader(file, format.MaxDocument+1)) // what is longer is none of ours
}

// openDocument waits for nobody, as opening a pipe would, and follows no link. What is no
// regular file is format.ErrNoFile.
func openDocument(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) { // a link, a socket
		return nil, noFile(path)
	}
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = noFile(path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func noFile(path string) error {
	return failure.Hint(fmt.Errorf("%s: %w", path, format.ErrNoFile), "move it away, and bring back what was there")
}

// Write implements format.Documents.
func (p *Place) Write(_ context.Context, kind format.Kind, id string, data []byte, fence format.Fence) error {
	path, err := p.path(kind, id)
	if err != nil {
		return err
	}
	if len(data) > format.MaxDocument {
		return failure.New(failure.Usage, "%s %s: %d bytes are more than a document holds (%d)", kind, id, len(data), format.MaxDocument)
	}
	if kind == format.Aside {
		if err := atomicfile.MkdirAll(filepath.Dir(path), 0o711); err != nil {
			return err
		}
	}
	return atomicfile.WriteIf(path, data, 0o600, fence)
}

// Remove implements format.Documents.
func (p *Place) Remove(_ context.Context, kind format.Kind, id string, fence format.Fence) error {
	path, err := p.path(kind, id)
	if err == nil {
		err = fence()
	}
	if err == nil {
		err = atomicfile.Remove(path)
	}
	if err == nil && p.spent.Load() {
		p.refill()
	}
	return err
}

// List implements format.Documents.
func (p *Place) List(ctx context.Context, kind format.Kind) ([]string, error) {
	folder, ok := folders[kind]
	if !ok {
		return nil, failure.New(failure.Usage, "%s: not listed", kind)
	}
	names, err := p.names(ctx, folder)
	if kind == format.Aside && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ids := names[:0]
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, ".json"); ok && host.IsUUID(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func (p *Place) names(ctx context.Context, folder string) ([]string, error) {
	path := filepath.Join(p.Root, folder)
	if p.Revalidate != nil {
		if err := p.Revalidate(path); err != nil {
			return nil, err
		}
	}
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err == nil {
		err = ctx.Err()
	}
	return names, err
}

// Capacity is that of the file system.
func (p *Place) Capacity(context.Context) (format.Capacity, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.Root, &st); err != nil {
		return format.Capacity{}, fmt.Errorf("%s: statfs: %w", p.Root, err)
	}
	return format.Capacity{Total: int64(st.Blocks) * st.Frsize, Available: int64(st.Bavail) * st.Frsize}, nil
}

// Check fails where the directory is not a repository's.
func (p *Place) Check() error {
	for _, folder := range []string{folders[format.Image], folders[format.Volume], dataFolder, lockFolder} {
		st, err := os.Stat(filepath.Join(p.Root, folder))
		if err == nil && !st.IsDir() {
			err = fs.ErrNotExist
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return failure.New(failure.NotFound, "%s: no repository is here: there is no directory %s", p.Root, folder)
		}
		if err != nil {
			return failure.Denied(err)
		}
	}
	// Who used one may have died before he made another.
	p.spent.Store(len(p.spareNames()) < spares)
	return nil
}
