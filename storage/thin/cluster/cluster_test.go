// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

func TestSaveAndLoad(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	d := New("san")
	d.VG, d.Host, d.Membership = "shared_vg", "h1", []byte(`{"kind":"etcd"}`)
	if err := Save(l, d); err != nil {
		t.Fatal(err)
	}
	got, err := Load(l, "san")
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Membership) == "" || !strings.Contains(string(got.Membership), `"etcd"`) {
		t.Errorf("membership %s", got.Membership)
	}
	got.Membership = d.Membership
	if diff := cmp.Diff(d, got); diff != "" {
		t.Error(diff)
	}
	st, err := os.Stat(path(l, "san"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	d.Host = ""
	if err := Save(l, d); err != nil { // the same cluster
		t.Error(err)
	}
	other := New("san")
	other.VG = "shared_vg"
	if err := Save(l, other); !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), d.UUID.String()) {
		t.Errorf("another cluster of this name: %v", err)
	}
	if got, err := Load(l, "san"); err != nil || got.UUID != d.UUID {
		t.Errorf("%+v, %v", got, err)
	}
	for range 2 {
		if err := Forget(l, "san"); err != nil {
			t.Error(err)
		}
	}
	if _, err := Load(l, "san"); !errors.Is(err, failure.NotFound) {
		t.Error(err)
	}
}

func TestRefuses(t *testing.T) {
	good := `{"schema":"diskhook.cluster/v1","name":"san","uuid":"6f1f1c1e-52b5-4c44-93ee-32f1b5f2f001","vg":"san"}`
	for says, c := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"":                         {good, 0o600},
		"others than root":         {good, 0o666},
		"schema":                   {strings.Replace(good, "/v1", "/v2", 1), 0o600},
		"cluster other":            {strings.Replace(good, `"san","uuid`, `"other","uuid`, 1), 0o600},
		`the name "../x"`:          {strings.Replace(good, `"san","uuid`, `"../x","uuid`, 1), 0o600},
		"either vg or dir":         {strings.Replace(good, `"vg":"san"`, `"vg":""`, 1), 0o600},
		"is needed":                {strings.Replace(good, `"vg":"san"`, `"vg":"san","dir":"/x"`, 1), 0o600},
		`volume group "-san"`:      {strings.Replace(good, `"vg":"san"`, `"vg":"-san"`, 1), 0o600},
		`volume group "a b"`:       {strings.Replace(good, `"vg":"san"`, `"vg":"a b"`, 1), 0o600},
		`directory "x/../y"`:       {strings.Replace(good, `"vg":"san"`, `"dir":"x/../y"`, 1), 0o600},
		`host's name "a/b"`:        {strings.Replace(good, `"vg":"san"`, `"vg":"san","host":"a/b"`, 1), 0o600},
		"unknown field":            {strings.Replace(good, `"vg":"san"`, `"vg":"san","lun":"x"`, 1), 0o600},
		"no uuid":                  {strings.Replace(good, `"uuid":"6f1f1c1e-52b5-4c44-93ee-32f1b5f2f001",`, ``, 1), 0o600},
		"something follows":        {good + "{}", 0o600},
		"not understood":           {good[:40], 0o600},
		"not a regular file of at": {good + strings.Repeat(" ", most), 0o600},
	} {
		l := host.Layout{Root: t.TempDir()}
		file := path(l, "san")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(l, "san")
		if says == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	if _, err := Load(host.Layout{Root: t.TempDir()}, "../x"); !errors.Is(err, failure.Usage) {
		t.Errorf("a path for a name: %v", err)
	}
}

func TestChoose(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	choose := func(config, name, want string, kind *failure.Kind, says string) {
		t.Helper()
		d, err := Choose(l, host.Thin{Cluster: config}, name)
		if d.Name != want || failure.KindOf(err) != kind || kind != nil && !strings.Contains(failure.HintOf(err), says) {
			t.Errorf("%q: %v (%s)", d.Name, err, failure.HintOf(err))
		}
	}
	choose("", "", "", failure.NotFound, "thin init-cluster")
	for _, name := range []string{"a", "b"} {
		d := New(name)
		d.Dir = "/srv/" + name
		if err := Save(l, d); err != nil {
			t.Fatal(err)
		}
		if name == "a" {
			choose("", "", "a", nil, "")
		}
	}
	choose("", "", "", failure.Usage, "--cluster")
	choose("b", "", "b", nil, "")
	choose("b", "a", "a", nil, "")
	choose("c", "", "", failure.NotFound, "c.json")
}

func TestThisHost(t *testing.T) {
	d := New("san")
	name, err := d.ThisHost()
	if err != nil || name == "" || strings.Contains(name, ".") {
		t.Errorf("%q, %v", name, err)
	}
	d.Host = "h7"
	if name, err := d.ThisHost(); err != nil || name != "h7" {
		t.Errorf("%q, %v", name, err)
	}
}
