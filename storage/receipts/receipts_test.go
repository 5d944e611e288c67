// SPDX-License-Identifier: Apache-2.0

package receipts_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/receipts"
)

const domain = "0d2ad7c0-3c62-4e2c-9d2e-8f4f0ce1f0a1"

func TestWriteReadRemove(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	for _, file := range []string{"vda.json", "vda.quorum", "vdb.json"} {
		if err := receipts.Write(l, domain, file, map[string]string{"of": file}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := receipts.Read(l, domain, "vda.quorum")
	if diff := cmp.Diff("{\n  \"of\": \"vda.quorum\"\n}\n", string(b)); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for path, mode := range map[string]fs.FileMode{l.Receipts(): 0o711, filepath.Join(l.Receipts(), domain): 0o711, receipts.Path(l, domain, "vda.json"): 0o644} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, st, err)
		}
	}
	if err := os.WriteFile(filepath.Join(l.Receipts(), "a file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	domains, err := receipts.Domains(l)
	if diff := cmp.Diff([]string{domain}, domains); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	keys, err := receipts.Keys(l, domain, ".json")
	if diff := cmp.Diff([]string{"vda", "vdb"}, keys); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, file := range []string{"vda.json", "vda.json", "vda.quorum"} {
		if err := receipts.Remove(l, domain, file); err != nil {
			t.Error(err)
		}
	}
	if keys, err = receipts.Keys(l, domain, ""); err != nil || !cmp.Equal(keys, []string{"vdb.json"}) {
		t.Errorf("%v, %v", keys, err)
	}
	if err := receipts.Remove(l, domain, "vdb.json"); err != nil {
		t.Error(err)
	}
	if domains, err = receipts.Domains(l); err != nil || len(domains) > 0 {
		t.Errorf("the directory stayed: %v, %v", domains, err)
	}
}

// What cannot be read may say that a guest's data is elsewhere.
func TestReadFails(t *testing.T) {
	for name, c := range map[string]struct {
		make func(dir, file string) error
		want string // kind of the error; "none" is no error
	}{
		"nothing":      {func(_, _ string) error { return nil }, "none"},
		"no such file": {func(dir, _ string) error { return os.MkdirAll(dir, 0o711) }, "none"},
		"a directory":  {func(_, file string) error { return os.MkdirAll(file, 0o711) }, "precondition"},
		"a link to nothing": {func(dir, file string) error {
			return errors.Join(os.MkdirAll(dir, 0o711), os.Symlink("gone", file))
		}, "precondition"},
		"no directory of the domain's": {func(dir, _ string) error {
			return errors.Join(os.MkdirAll(filepath.Dir(dir), 0o711), os.WriteFile(dir, nil, 0o600))
		}, ""},
	} {
		l := host.Layout{Root: t.TempDir()}
		file := receipts.Path(l, domain, "vda.json")
		if err := c.make(filepath.Dir(file), file); err != nil {
			t.Fatal(err)
		}
		b, err := receipts.Read(l, domain, "vda.json")
		got := "none"
		if err != nil {
			got = ""
			if k := failure.KindOf(err); k != nil {
				got = k.Code
			}
		}
		if b != nil || got != c.want {
			t.Errorf("%s: %q, %q: %v", name, b, got, err)
		}
	}
}
