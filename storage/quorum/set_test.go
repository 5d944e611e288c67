// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

const setUUID = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"

// three is a set of a file, a chain and an NBD export.
func three() Set {
	return Set{
		Schema: setSchema, Name: "db", UUID: setUUID, Size: 1 << 30, Threshold: 2, ReadPattern: Vote, NextID: 5,
		Replicas: []Replica{
			{ID: "r1", Chain: []Layer{{Type: File, Path: "/srv/a.raw", Format: "raw"}}},
			{ID: "r2", Chain: []Layer{{Type: File, Path: "/srv/b.qcow2", Format: "qcow2"}, {Type: Block, Path: "/dev/mapper/vg-base", Format: "raw"}}},
			{ID: "r4", Chain: []Layer{{Type: NBD, Host: "store.example", Port: 10809, Export: "db", Format: "raw"}}},
		},
	}
}

func TestCheckNamesEachFault(t *testing.T) {
	valid := three()
	if err := valid.Check(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Set){
		`replica set "a/b": a name is`:         func(s *Set) { s.Name = "a/b" },
		`uuid "x" is not a uuid`:               func(s *Set) { s.UUID = "x" },
		"a size of 1000 bytes is not one":      func(s *Set) { s.Size = 1000 },
		"threshold 0: it must be at least 1":   func(s *Set) { s.Threshold = 0 },
		"threshold 4: there are only 3":        func(s *Set) { s.Threshold = 4 },
		"threshold 1: two halves of 3":         func(s *Set) { s.Threshold = 1 },
		"fifo believes one replica without":    func(s *Set) { s.ReadPattern = FIFO },
		`read pattern "x" is neither`:          func(s *Set) { s.ReadPattern = "x" },
		"1 replicas: at least 2 are needed":    func(s *Set) { s.Replicas = s.Replicas[:1] },
		"r1 is there twice":                    func(s *Set) { s.Replicas[1].ID = "r1" },
		"r9: the next id is r5":                func(s *Set) { s.Replicas[1].ID = "r9" },
		`replica "x": an id is r and a number`: func(s *Set) { s.Replicas[1].ID = "x" },
		"replica r2: /srv/a.raw is also in replica r1": func(s *Set) {
			s.Replicas[1].Chain = []Layer{{Type: File, Path: "/srv/a.raw", Format: "qcow2"}}
		},
		`"a.raw" is not a clean absolute path`:   func(s *Set) { s.Replicas[0].Chain[0].Path = "a.raw" },
		`"/srv/../a" is not a clean absolute`:    func(s *Set) { s.Replicas[0].Chain[0].Path = "/srv/../a" },
		`format "vmdk" is neither raw nor qcow2`: func(s *Set) { s.Replicas[0].Chain[0].Format = "vmdk" },
		"/srv/b.qcow2: a raw image has no":       func(s *Set) { s.Replicas[1].Chain[0].Format = "raw" },
		`volume "vg" is not VG/LV`:               func(s *Set) { s.Replicas[0].Volume = "vg" },
		`host "-x" is neither`:                   func(s *Set) { s.Replicas[2].Chain[0].Host = "-x" },
		"port 70000 is not a port":               func(s *Set) { s.Replicas[2].Chain[0].Port = 70000 },
		"an nbd image is raw":                    func(s *Set) { s.Replicas[2].Chain[0].Format = "qcow2" },
		"either a host or a socket":              func(s *Set) { s.Replicas[2].Chain[0].Socket = "/run/x" },
		`type "ftp" is none of`:                  func(s *Set) { s.Replicas[0].Chain[0].Type = "ftp" },
		"it has no image":                        func(s *Set) { s.Replicas[0].Chain = nil },
	} {
		s := three()
		spoil(&s)
		err := s.Check()
		if err == nil || failure.KindOf(err) != failure.Usage {
			t.Errorf("%s: %v", want, err)
			continue
		}
		found := false
		for line := range strings.SplitSeq(err.Error(), "\n") {
			found = found || strings.Contains(line, want)
		}
		if !found {
			t.Errorf("no line has %q:\n%v", want, err)
		}
	}
	s := three()
	s.Threshold, s.ReadPattern, s.AllowMinority = 1, FIFO, true
	if err := s.Check(); err != nil {
		t.Errorf("asked for explicitly: %v", err)
	}
}

func newService(t *testing.T) *Service {
	layout := host.Layout{Root: t.TempDir()}
	return &Service{Layout: layout, Config: host.Defaults(layout), Log: slog.New(slog.DiscardHandler)}
}

func TestDefinitionsComeBack(t *testing.T) {
	s := newService(t)
	for _, name := range []string{"b", "a"} {
		set := three()
		set.Name = name
		if err := s.save(set); err != nil {
			t.Fatal(err)
		}
	}
	sets, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := three()
	want.Name = "a"
	if diff := cmp.Diff(want, sets[0]); diff != "" || len(sets) != 2 {
		t.Errorf("%d sets: %s", len(sets), diff)
	}
	if st, err := os.Stat(definitionPath(s.Layout, "a")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
}

func TestDamagedDefinitionsAreRefused(t *testing.T) {
	s := newService(t)
	if err := s.save(three()); err != nil {
		t.Fatal(err)
	}
	path := definitionPath(s.Layout, "db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		"unknown key": func() error {
			return os.WriteFile(path, []byte(strings.Replace(string(good), "{", `{"x":1,`, 1)), 0o600)
		},
		"two documents": func() error { return os.WriteFile(path, append(good, good...), 0o600) },
		"another name": func() error {
			return os.WriteFile(path, []byte(strings.Replace(string(good), `"db"`, `"dc"`, 1)), 0o600)
		},
		"cut off": func() error { return os.WriteFile(path, good[:len(good)/2], 0o600) },
		"a fault": func() error {
			return os.WriteFile(path, []byte(strings.Replace(string(good), `"threshold": 2`, `"threshold": 9`, 1)), 0o600)
		},
		"others write": func() error { return os.Chmod(path, 0o666) },
		"a link": func() error {
			other := filepath.Join(t.TempDir(), "x")
			return joinAll(os.WriteFile(other, good, 0o600), os.Remove(path), os.Symlink(other, path))
		},
	} {
		if err := joinAll(os.RemoveAll(path), os.WriteFile(path, good, 0o600), os.Chmod(path, 0o600), change()); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load("db"); err == nil {
			t.Errorf("%s: taken", name)
		}
		if sets, err := s.List(t.Context()); err == nil || len(sets) > 0 {
			t.Errorf("%s: listed %v, %v", name, sets, err)
		}
	}
	if _, err := s.Load("other"); failure.KindOf(err) != failure.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := s.Load("../db"); failure.KindOf(err) != failure.Usage {
		t.Errorf("%v", err)
	}
}

func joinAll(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestParseReplica(t *testing.T) {
	for spec, want := range map[string]Layer{
		"/srv/a.img":                         {Path: "/srv/a.img", Format: "qcow2"},
		"nbd://store.example/db":             {Type: NBD, Host: "store.example", Port: 10809, Export: "db", Format: "raw"},
		"nbd://[2001:db8::1]:10810/":         {Type: NBD, Host: "2001:db8::1", Port: 10810, Format: "raw"},
		"nbd+unix:///x?socket=/run/nbd.sock": {Type: NBD, Socket: "/run/nbd.sock", Export: "x", Format: "raw"},
	} {
		got, err := ParseReplica(spec, "qcow2")
		if err != nil {
			t.Errorf("%s: %v", spec, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", spec, diff)
		}
		if got.Type == NBD {
			if again, err := ParseReplica(got.String(), ""); err != nil || again != got {
				t.Errorf("%s: %v, %v", got, again, err)
			}
		}
	}
	for _, spec := range []string{"", "a.img", "/srv/../x", "http://x/y", "nbd://user@h/x", "nbd:///x", "nbd+unix:///x", "nbd://h:0/x", "json:{}", "/a\nb"} {
		if l, err := ParseReplica(spec, "raw"); failure.KindOf(err) != failure.Usage {
			t.Errorf("%q: %+v, %v", spec, l, err)
		}
	}
}

func TestVolumeName(t *testing.T) {
	for name, want := range map[string]string{
		"vg/lv": "vg lv", "mapper/vg-lv": "vg lv", "mapper/my--vg-my--lv": "my-vg my-lv",
		"mapper/mpatha": "", "mapper/a-b-c": "", "sda": "", "disk/by-id/x": "",
	} {
		vg, lv, ok := volumeName(name)
		if got := strings.TrimSpace(vg + " " + lv); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q %v, want %q", name, got, ok, want)
		}
	}
}
