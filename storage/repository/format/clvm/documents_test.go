// SPDX-License-Identifier: Apache-2.0

package clvm_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
)

func pass() error { return nil }

// written opens a single writer's repository with an image of two versions.
func written(t *testing.T) (s site, p format.Place, id string) {
	s, id = newSite(t, ""), uuid.NewString()
	must(t, s.on("h1", 0).Create(t.Context(), single))
	p = s.open(s.on("h1", 0), single)
	for _, text := range []string{"old", "new"} {
		must(t, p.Write(t.Context(), format.Image, id, []byte(text), pass))
	}
	return s, p, id
}

// overwrite lays bytes into the file of the documents.
func (s site) overwrite(at int64, bytes []byte) {
	s.Helper()
	f, err := os.OpenFile(s.documents(), os.O_WRONLY, 0)
	must(s, err)
	_, err = f.WriteAt(bytes, at)
	must(s, errors.Join(err, f.Close()))
}

const halfBlock = 2048

// A write that was torn leaves the version before it, and is written over.
func TestATornWriteLeavesTheOldVersion(t *testing.T) {
	s, p, id := written(t)
	at, half, err := clvm.SlotOf(p, format.Image, id)
	must(t, err)
	s.overwrite(at+int64(half)*4096+halfBlock, make([]byte, 512))
	s.overwrite(at+int64(half)*4096+16, []byte("torn"))
	read := func(wanted string) {
		t.Helper()
		if got, err := p.Read(t.Context(), format.Image, id); err != nil || string(got) != wanted {
			t.Errorf("%q: %v", got, err)
		}
		if all, err := p.List(t.Context(), format.Image); err != nil || len(all) != 1 || all[0] != id {
			t.Errorf("%q: %v", all, err)
		}
	}
	read("old")
	must(t, p.Write(t.Context(), format.Image, id, []byte("newer"), pass))
	read("newer")
}

// Where both blocks of a slot cannot be read nothing is said not to exist.
func TestADamagedSlotIsNotMissing(t *testing.T) {
	for name, damage := range map[string]struct {
		bytes func(whole []byte) []byte
		words string
	}{
		"torn twice": {func(b []byte) []byte { b[20], b[4096+20] = b[20]^1, b[4096+20]^1; return b }, "is damaged in both copies"},
		"another repository's": {func([]byte) []byte {
			s, p, id := written(t)
			at, _, err := clvm.SlotOf(p, format.Image, id)
			must(t, err)
			all, err := os.ReadFile(s.documents())
			must(t, err)
			return all[at : at+8192]
		}, "is of another repository"},
	} {
		t.Run(name, func(t *testing.T) {
			s, p, id := written(t)
			at, _, err := clvm.SlotOf(p, format.Image, id)
			must(t, err)
			all, err := os.ReadFile(s.documents())
			must(t, err)
			s.overwrite(at, damage.bytes(all[at:at+8192]))
			_, read := p.Read(t.Context(), format.Image, id)
			for _, err := range []error{read, p.Write(t.Context(), format.Image, id, []byte("x"), pass), p.Remove(t.Context(), format.Image, id, pass)} {
				if !errors.Is(err, failure.Problems) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), damage.words) || !strings.Contains(failure.HintOf(err), fmt.Sprintf("skip=%d ", at/8192)) {
					t.Errorf("%v (%s)", err, failure.HintOf(err))
				}
			}
			isCleared(t, p, id)
		})
	}
}

// isCleared wants one wreck, which hides nothing else, and has it cleared.
func isCleared(t *testing.T, p format.Place, id string) {
	t.Helper()
	ctx := t.Context()
	other := ""
	for err := error(failure.Problems); errors.Is(err, failure.Problems); { // of another bucket
		other = uuid.NewString()
		err = p.Write(ctx, format.Image, other, []byte("other"), pass)
	}
	if all, err := p.List(ctx, format.Image); err != nil || len(all) != 1 || all[0] != other {
		t.Errorf("%q: %v", all, err)
	}
	all, err := p.Wrecks(ctx)
	if err != nil || len(all) != 1 || len(all[0].Data) != format.MaxDocument || !errors.Is(all[0].Err, failure.Problems) {
		t.Fatalf("%+v: %v", all, err)
	}
	must(t, p.WriteReserved(ctx, format.Aside, all[0].ID, all[0].Data, pass))
	if err := p.ClearWreck(ctx, uuid.NewString(), pass); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	lost := errors.New("lost")
	if err := p.ClearWreck(ctx, all[0].ID, func() error { return lost }); !errors.Is(err, lost) {
		t.Error(err)
	}
	must(t, p.ClearWreck(ctx, all[0].ID, pass))
	if err := p.ClearWreck(ctx, all[0].ID, pass); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := p.Read(ctx, format.Image, id); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	must(t, p.Write(ctx, format.Image, id, []byte("again"), pass))
	if all, err := p.Wrecks(ctx); err != nil || len(all) > 0 {
		t.Errorf("%+v: %v", all, err)
	}
}

// Half of a first write never was a document.
func TestHalfAFirstWriteIsNothing(t *testing.T) {
	s, p, _ := written(t)
	id := uuid.NewString()
	must(t, p.Write(t.Context(), format.Pin, id, []byte("pin"), pass))
	at, half, err := clvm.SlotOf(p, format.Pin, id)
	must(t, err)
	if half != 0 {
		t.Fatalf("the first version is in block %d", half)
	}
	s.overwrite(at+halfBlock, []byte("torn"))
	if _, err := p.Read(t.Context(), format.Pin, id); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	must(t, p.Write(t.Context(), format.Pin, id, []byte("again"), pass))
	if got, err := p.Read(t.Context(), format.Pin, id); err != nil || string(got) != "again" {
		t.Errorf("%q: %v", got, err)
	}
}

// full takes all that is left of the group, so that no volume of documents can be added.
func full(t testing.TB, p format.Place) {
	t.Helper()
	c, err := p.Capacity(t.Context())
	must(t, err)
	_, err = p.Make(t.Context(), uuid.NewString(), "raw", c.Available)
	must(t, err)
}

// Without a slot left nothing is lost, and what is there can be changed.
func TestNoSlotLeft(t *testing.T) {
	s, p, id := written(t)
	full(t, p)
	var err error
	count := 1
	for ; err == nil; count++ {
		err = p.Write(t.Context(), format.Volume, uuid.NewString(), []byte("v"), pass)
	}
	const slots = 4 * 16
	if !errors.Is(err, failure.NoSpace) || !strings.Contains(failure.HintOf(err), "vgextend shared") || count < slots/2 || count > slots+2 {
		t.Errorf("%d documents: %v (%s)", count, err, failure.HintOf(err))
	}
	must(t, p.Write(t.Context(), format.Image, id, []byte("newest"), pass))
	// Whoever is about to remove something has a slot for each that is kept.
	must(t, p.WriteReserved(t.Context(), format.Operation, id, []byte("op"), pass))
	must(t, p.Remove(t.Context(), format.Operation, id, pass))
	all, err := p.List(t.Context(), format.Volume)
	must(t, err)
	must(t, p.Remove(t.Context(), format.Volume, all[0], pass))
	must(t, p.Write(t.Context(), format.Volume, all[0], []byte("v"), pass)) // the slot is free again
	if got, err := p.Read(t.Context(), format.Image, id); err != nil || string(got) != "newest" {
		t.Errorf("%q: %v", got, err)
	}
	// A group that was extended has room for more.
	must(t, lvmtest.Change(s.state(), func(g *lvmtest.Group) { g.Size += 64 << 20 }))
	store(t, p, 2*slots)
}

func TestADamagedHeader(t *testing.T) {
	s, p, _ := written(t)
	_ = p
	s.overwrite(20, []byte("x"))
	_, err := s.on("h1", 0).Open(t.Context(), single)
	if !errors.Is(err, failure.NotFound) || !strings.Contains(err.Error(), "never made to its end") {
		t.Errorf("one block, and nothing in the other: %v", err)
	}
	s.overwrite(4096, []byte("something"))
	_, err = s.on("h1", 0).Open(t.Context(), single)
	if !errors.Is(err, failure.Problems) || !strings.Contains(err.Error(), "its header is damaged") {
		t.Error(err)
	}
	if err := s.on("h1", 0).Create(t.Context(), single); !errors.Is(err, failure.Problems) {
		t.Errorf("it is made anew over what is there: %v", err)
	}
}

// A repository has room for as many documents as it was made for.
func TestRoomForDocuments(t *testing.T) {
	ctx := t.Context()
	s := newSite(t, "")
	for _, bad := range []string{"0", "-1", "many", "1048577"} {
		refused(t, s.on("h1", 0).Create(ctx, map[string]string{"vg": vg, "writer": "h1", "documents": bad}), failure.Usage, "not a number from 16 to 1048576")
	}
	asked := map[string]string{"vg": vg, "writer": "h1", "documents": "300"}
	must(t, s.on("h1", 0).Create(ctx, asked))
	g, err := lvmtest.Load(s.state())
	must(t, err)
	const header, slot, slots = 1 << 20, 8 << 10, 19 * 16 // whole buckets of 16
	if got := g.Volumes["dh_documents"].Size; got < header+slots*slot || got >= header+slots*slot+2*g.Extent {
		t.Errorf("%d bytes", got)
	}
	p := s.open(s.on("h1", 0), single)
	full(t, p)
	written := 0
	for ; err == nil; written++ {
		err = p.Write(ctx, format.Volume, uuid.NewString(), []byte("v"), pass)
	}
	refused(t, err, failure.NoSpace, "vgextend")
	if written < 200 {
		t.Errorf("%d documents", written)
	}
}
