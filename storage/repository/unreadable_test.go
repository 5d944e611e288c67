// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/repository"
)

// One damaged document, of whatever kind, hides nothing but what it says.
func TestADamagedDocumentHidesNothingElse(t *testing.T) {
	for _, kind := range []string{"images", "volumes", "pins", "operations"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, "localfs-1.0")
			s, ctx := w.on("h1"), t.Context()
			good, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{})
			must(t, err)
			bad, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{})
			must(t, err)
			p, err := s.PrepareImage(ctx, "a", bad, repository.Preparing{Holder: "vm"})
			must(t, err)
			id := bad
			switch kind {
			case "volumes":
				_, id, _ = strings.Cut(p.Path, "/data/")
				id = strings.TrimSuffix(id, "."+p.Format)
			case "operations":
				must(t, s.ReleaseImage(ctx, "a", bad, "vm"))
				must(t, s.ResizeVirtualDisk(ctx, "a", bad, 2*mib, repository.Options{NoAutoFix: true}))
			}
			_, err = s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{NoAutoFix: true})
			must(t, err)
			must(t, os.WriteFile(w.path("repos", "a", kind, id+".json"), []byte("damaged"), 0o600))

			page, err := s.ListImages(ctx, "a", repository.Filter{})
			must(t, err)
			states := map[string]repository.Info{}
			for _, i := range page.Images {
				states[i.ID] = i
			}
			if len(page.Images) != 3 || states[good].State != repository.Optimized || states[good].LastError != "" {
				t.Errorf("%+v", page)
			}
			if of := states[bad]; kind != "operations" && !strings.Contains(of.LastError, "damaged document") {
				t.Errorf("%+v", of)
			}
			if tasks, err := s.ListTasks(ctx, "a"); err != nil || len(tasks) == 0 {
				t.Errorf("%+v: %v", tasks, err)
			}
			for _, check := range []func() (repository.Report, error){
				func() (repository.Report, error) { return s.CheckStorageRepository(ctx, "a") },
				func() (repository.Report, error) { return s.DeepCheckStorageRepository(ctx, "a") },
			} {
				report, err := check()
				if must(t, err); kind != "operations" && !strings.Contains(strings.Join(report.Problems, "\n"), id) {
					t.Errorf("%+v", report)
				}
			}
			if kind == "pins" {
				err := s.DisconnectStorageRepository(ctx, "a", repository.Disconnect{})
				refused(t, err, failure.Problems, "--force a")
			}
		})
	}
}
