// SPDX-License-Identifier: Apache-2.0

package hooktest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// Machine is the id of the host that a World is.
const Machine = "0123456789abcdef0123456789abcdef"

// World is a host below a directory of its own.
type World struct {
	testing.TB
	Root string
	Log  *bytes.Buffer // what was logged, as text
	*bindings.Host
	Service *localdisk.Service // the real copies below Root
}

// New makes a host whose local copies are l, or the real ones below the root
// when l is nil. The packages' TestMain must call Main for these.
func New(t testing.TB, l bindings.Local) *World {
	t.Helper()
	w := &World{TB: t, Root: t.TempDir(), Log: &bytes.Buffer{}}
	w.Write("etc/machine-id", Machine+"\n")
	service := serviceAt(w.Root, w.Log)
	if l == nil {
		l = bindings.Direct(service)
	}
	w.Service = service
	w.Host = &bindings.Host{Layout: service.Layout, Config: service.Config, Log: service.Log, Local: l, Quorum: &Quorum{Layout: service.Layout}}
	return w
}

// serviceAt is a service below root, which is all it may read from.
func serviceAt(root string, log *bytes.Buffer) *localdisk.Service {
	layout := host.Layout{Root: root}
	config := host.Defaults(layout)
	config.Paths.Roots = []string{root}
	config.Local.Reserve = 0
	logger := slog.New(slog.DiscardHandler)
	if log != nil {
		logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	exe, _ := os.Executable()
	return &localdisk.Service{
		Layout: layout, Config: config, Run: command.System{}, Log: logger, Program: exe,
		Images: bindings.ImagesOf(func() (bindings.Images, error) { return repositoryAt(root), nil }),
	}
}

// Main runs the tests, or is the copy process that a fulfil has started:
// `local fill ROOT/run/diskhook/status/DOMAIN/JOB`.
func Main(m *testing.M) int {
	if len(os.Args) != 4 || os.Args[1] != "local" || os.Args[2] != "fill" {
		return m.Run()
	}
	root, _, _ := strings.Cut(os.Args[3], "/run/diskhook/")
	if err := serviceAt(root, &bytes.Buffer{}).Fill(context.Background(), os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, failure.Line(err))
		return 1
	}
	return 0
}

// Path is a path below the root.
func (w *World) Path(name string) string { return filepath.Join(w.Root, name) }

// Write makes a file below the root, with its directories.
func (w *World) Write(name, content string) string {
	w.Helper()
	path := w.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		w.Fatal(err)
	}
	return path
}

// Receipt makes a receipt as localdisk writes them; what r leaves open is that
// of a complete copy of the disk vda of the domain UUID.
func (w *World) Receipt(r localdisk.Receipt) string {
	w.Helper()
	r.Schema, r.Domain = "diskhook.receipt/v1", cmp.Or(r.Domain, UUID)
	r.Target, r.Copy, r.Backend = cmp.Or(r.Target, "vda"), cmp.Or(r.Copy, "u"), cmp.Or(r.Backend, "dir")
	b, err := json.Marshal(r)
	if err != nil {
		w.Fatal(err)
	}
	return w.Write(filepath.Join("var/lib/diskhook/receipts", r.Domain, r.Key()+".json"), string(b))
}

// Fixture reads a file of the repository's testdata, with ROOT replaced by the
// root.
func (w *World) Fixture(name string) []byte {
	w.Helper()
	b, err := os.ReadFile(filepath.Join("../../testdata", name))
	if err != nil {
		w.Fatal(err)
	}
	return bytes.ReplaceAll(b, []byte("ROOT"), []byte(w.Root))
}

// Files lists what is below a directory of the root, for tests that nothing
// was made.
func (w *World) Files(dir string) []string {
	var names []string
	_ = filepath.WalkDir(w.Path(dir), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, w.Root+"/"))
		}
		return nil
	})
	return names
}
