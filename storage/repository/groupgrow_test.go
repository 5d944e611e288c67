// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
)

// fullOfDocuments leaves no slot for another one in repository a, and room in its group.
func (w *world) fullOfDocuments() {
	w.Helper()
	ctx, p := w.Context(), w.place("a")
	c, err := p.Capacity(ctx)
	must(w, err)
	rest := uuid.NewString()
	_, err = p.Make(ctx, rest, "raw", c.Available)
	must(w, err)
	const row = 60 // so many in a row do not miss a bucket that has a slot left
	for refusals := 0; refusals < row; refusals++ {
		err = p.Write(ctx, format.Stop, uuid.NewString(), []byte("of a plan that is done"), func() error { return nil })
		if err == nil {
			refusals = 0
			continue
		}
		refused(w, err, failure.NoSpace)
	}
	must(w, p.Delete(ctx, rest, "raw"))
}

// A host that is killed while it adds room for documents leaves a repository that works, and
// has that room once anybody needs it again.
func TestAHostIsKilledWhileDocumentsGrow(t *testing.T) {
	for _, point := range []string{"clvm.grow.made", "clvm.grow.formatted", "clvm.grow.named"} {
		t.Run(point, func(t *testing.T) {
			w := &world{TB: t, Dir: t.TempDir(), Format: clvm.Name, LockType: "sanlock"}
			w.connect()
			ctx := t.Context()
			disk, base := w.diskOnBase()
			w.fullOfDocuments()
			err := w.process("h1", "create", []string{}, "DISKHOOK_FAILPOINT="+point+"=kill@1")
			if err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the failpoint did not fire: %v", err)
			}
			w.holds("a", disk, w.path("now.raw")) // by h2
			must(t, verbs["create"](ctx, w.on("h2"), nil))
			created := w.newest("a", disk, base)
			must(t, w.on("h1").SetUserData(ctx, "a", created, []byte(`"h1 sees it"`)))
			w.settled()
			w.holds("a", base, w.path("before.raw"))
			w.state("a", created, repository.Optimized)
			g, err := lvmtest.Load(w.path("groups", "a"))
			if err == nil && g.Volumes["dh_documents_1"] == nil {
				err = errors.New("nothing was added")
			}
			must(t, err)
		})
	}
}
