// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
)

const (
	fromDomain = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	fromImage  = "0d5f4b1e-7f0c-4f0e-9a51-5c1f1f1b6f55"
)

// poses is a repository with one image.
type poses struct {
	held    Held
	refuses error
	calls   []string
}

func (p *poses) Look(context.Context, From) (Held, error) { return p.held, p.refuses }

func (p *poses) Hold(_ context.Context, f From, holder string) (Held, error) {
	p.calls = append(p.calls, "hold "+f.String()+" for "+holder)
	return p.held, p.refuses
}

func (p *poses) Drop(_ context.Context, f From, holder string) error {
	p.calls = append(p.calls, "drop "+f.String()+" of "+holder)
	return nil
}

// imageWorld is a host whose repository is outside of what it may read otherwise.
func imageWorld(t *testing.T) (*Service, *poses, Disk) {
	t.Helper()
	root := t.TempDir()
	layout := host.Layout{Root: filepath.Join(root, "host")}
	config := host.Defaults(layout)
	config.Paths.Roots, config.Local.Reserve = []string{layout.Root}, 0
	p := &poses{held: Held{Layers: []imagecheck.Layer{{Path: content(t, root, "a"), Format: "raw"}}, Size: 1 << 20, Version: "v1"}}
	content(t, filepath.Join(layout.Root, "etc"), "machine-id")
	if err := os.WriteFile(filepath.Join(layout.Root, "etc/machine-id"), []byte("0123456789abcdef0123456789abcdef\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &Service{Layout: layout, Config: config, Run: command.System{}, Log: slog.New(slog.DiscardHandler), Program: "/nonexistent", Images: p}
	d := Disk{Domain: fromDomain, DomainName: "vm", Target: "vda", Backend: "dir", OnStop: Keep, Create: true, From: &From{"r", fromImage}}
	return s, p, d
}

// content makes a file of 1 MiB.
func content(t *testing.T, dir, name string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, bytes.Repeat([]byte("what the image has"), 1<<20/18+1)[:1<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fills is the copy process.
func fills(t *testing.T, s *Service, d Disk) error {
	t.Helper()
	job, err := json.Marshal(Job{ID: "1", Disk: d})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(path, job, 0o600); err != nil {
		t.Fatal(err)
	}
	return s.Fill(t.Context(), path)
}

func decided(t *testing.T, s *Service, d Disk) Action {
	t.Helper()
	observed, err := s.ObserveSources(t.Context(), []Disk{d})
	if err != nil {
		t.Fatal(err)
	}
	return Decide(observed[0]).Action
}

// A copy of an image is good as long as the image has that content, wherever it
// is, and only as long.
func TestCopyOfAnImage(t *testing.T) {
	s, p, d := imageWorld(t)
	if got := decided(t, s, d); got != Create {
		t.Fatalf("at first: %s", got)
	}
	if err := fills(t, s, d); err != nil {
		t.Fatal(err)
	}
	holder := fromDomain + "/vda"
	if diff := cmp.Diff([]string{"hold r/" + fromImage + " for " + holder, "drop r/" + fromImage + " of " + holder}, p.calls); diff != "" {
		t.Error(diff)
	}
	r, err := ReadReceipt(s.Layout, fromDomain, "vda")
	if err != nil || r == nil || r.From == nil || *r.From != *d.From || r.Fingerprint != "image "+fromImage+" v1" || r.Size != 1<<20 {
		t.Fatalf("%+v %v", r, err)
	}
	was, _ := os.ReadFile(p.held.Layers[0].Path)
	if copied, err := os.ReadFile(r.Place()); err != nil || !bytes.Equal(copied, was) {
		t.Errorf("another content: %v", err)
	}

	// A merge moved it.
	moved := content(t, t.TempDir(), "b")
	if err := os.Remove(p.held.Layers[0].Path); err != nil {
		t.Fatal(err)
	}
	p.held.Layers = []imagecheck.Layer{{Path: moved, Format: "raw"}}
	if got := decided(t, s, d); got != Use {
		t.Errorf("moved: %s", got)
	}
	if changed, why, err := s.SourceChanged(t.Context(), *r); changed || err != nil {
		t.Errorf("moved: %s %v", why, err)
	}
	// Another repository has the same snapshot.
	d.From = &From{"q", fromImage}
	if got := decided(t, s, d); got != Use {
		t.Errorf("in another repository: %s", got)
	}
	p.held.Version = "v2"
	if got := decided(t, s, d); got != Replace {
		t.Errorf("written to: %s", got)
	}
	if changed, _, err := s.SourceChanged(t.Context(), *r); !changed || err != nil {
		t.Errorf("written to: %v %v", changed, err)
	}
	p.held.Version = "v1"
	d.From = &From{"r", fromDomain}
	if got := decided(t, s, d); got != Replace {
		t.Errorf("another image: %s", got)
	}
}

// A start with a ready copy asks no repository.
func TestReadyCopyNeedsNoRepository(t *testing.T) {
	s, p, d := imageWorld(t)
	if err := fills(t, s, d); err != nil {
		t.Fatal(err)
	}
	p.refuses = errors.New("the repository does not answer")
	placed, err := s.Fulfil(t.Context(), []Disk{d}, Waiting{})
	if err != nil || len(placed) != 1 {
		t.Errorf("%v %v", placed, err)
	}
}

func TestImageThatCannotBeRead(t *testing.T) {
	s, p, d := imageWorld(t)
	p.refuses = failure.Hint(failure.New(failure.Conflict, "image r/%s: it is in use", fromImage), "shut that down")
	err := fills(t, s, d)
	if !errors.Is(err, failure.Conflict) || failure.Line(err) != "domain vm: disk vda: there is no local copy yet, and its source image r/"+fromImage+" cannot be read: image r/"+fromImage+": it is in use; shut that down" {
		t.Error(failure.Line(err))
	}
	p.refuses, p.calls = nil, nil
	p.held.Layers[0].Path += ".gone"
	if err := fills(t, s, d); err == nil || len(p.calls) != 2 || !strings.HasPrefix(p.calls[1], "drop") {
		t.Errorf("%v: %v", err, p.calls)
	}
	if names, err := filepath.Glob(filepath.Join(s.Config.Local.Dir, "dh_*")); len(names) != 0 || err != nil {
		t.Errorf("left: %v %v", names, err)
	}
	s.Images = nil
	if err := fills(t, s, d); !errors.Is(err, failure.Precondition) {
		t.Error(err)
	}
}

// diskhook-helper gets disks from a user who may not read every image: those of
// oVirt never have one.
func TestDiskFromAnImage(t *testing.T) {
	_, _, d := imageWorld(t)
	for name, change := range map[string]func(*Disk){
		"oVirt":   func(d *Disk) { d.Image, d.Volume = fromImage, fromImage },
		"instant": func(d *Disk) { d.Instant = true },
		"id":      func(d *Disk) { d.From = &From{"r", "../x"} },
		"repo":    func(d *Disk) { d.From = &From{"", fromImage} },
		"target":  func(d *Disk) { d.Target = strings.Repeat("v", 17) },
	} {
		odd := d
		change(&odd)
		if err := odd.Validate(); !errors.Is(err, failure.Usage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	// A job cannot say that an image is held, which would let it read anything.
	s, p, d := imageWorld(t)
	d.Source = p.held.Layers
	if _, err := s.checker(d).Open(t.Context(), d.Source); err == nil {
		t.Error("a path outside of the roots was opened")
	}
}
