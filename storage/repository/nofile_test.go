// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/repository"
)

// What is put in a document's place neither hangs the repository, nor is followed, nor hides
// anything else.
func TestWhatIsNoFileIsADamagedDocument(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link": func(path string) error {
			return os.Symlink(strings.TrimSuffix(path, ".json")+".moved", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, format := range []string{"localfs-1.0", "nfs-3.4"} {
				t.Run(format, func(t *testing.T) {
					w := newWorld(t, format)
					s, ctx := w.on("h1"), t.Context()
					good, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{})
					must(t, err)
					bad, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{})
					must(t, err)
					path := w.path("repos", "a", "images", bad)
					must(t, os.Rename(path+".json", path+".moved"))
					must(t, put(path+".json"))
					_, err = s.GetImage(ctx, "a", bad)
					refused(t, err, repository.ErrDamaged, "no regular file")
					_, err = s.GetImage(ctx, "a", good)
					must(t, err)
					report, err := s.CheckStorageRepository(ctx, "a")
					must(t, err)
					if !strings.Contains(strings.Join(report.Problems, "\n"), "no regular file") {
						t.Errorf("%+v", report)
					}
					for _, f := range report.Fixes {
						if f.ByName {
							t.Errorf("it offers what it would refuse: %+v", f)
						}
					}
					if !strings.Contains(strings.Join(report.Problems, "\n"), "move it away, and bring back what was there") {
						t.Errorf("it does not say what to do: %q", report.Problems)
					}
					must(t, os.Remove(path+".json"))
					must(t, os.Rename(path+".moved", path+".json"))
					_, err = s.GetImage(ctx, "a", bad)
					must(t, err)
				})
			}
		})
	}
}
