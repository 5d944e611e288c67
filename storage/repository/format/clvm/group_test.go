// SPDX-License-Identifier: Apache-2.0

package clvm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/lvm"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
)

func refused(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%v: it is not %v", err, kind)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error()+" "+failure.HintOf(err), word) {
			t.Errorf("%v (%s): it lacks %q", err, failure.HintOf(err), word)
		}
	}
}

func TestGroupsThatAreRefused(t *testing.T) {
	ctx := t.Context()
	plain, locked := newSite(t, ""), newSite(t, "dlm")
	create := func(f clvm.Format, parameters map[string]string) error {
		can := f.CanCreate(ctx, parameters)
		err := f.Create(ctx, parameters)
		if can == nil && err != nil || can != nil && can.Error() != err.Error() {
			t.Errorf("%v: a dry run says %v, and it is %v", parameters, can, err)
		}
		if _, other := f.Open(ctx, parameters); other == nil {
			t.Errorf("%v can be opened", parameters)
		}
		return err
	}
	refused(t, create(plain.on("h1", 1), shared), failure.Precondition, "nothing keeps two hosts from changing it", "--set writer=h1", "vgchange --lock-type")
	refused(t, create(locked.on("h1", 1), single), failure.Usage, "kept apart by dlm", "leave --set writer out")
	for _, number := range []int{0, -1, 65} {
		refused(t, create(locked.on("h1", number), shared), failure.Precondition, "this host has no number", "[repository] host_id")
	}
	refused(t, create(plain.on("h2", 0), single), failure.Precondition, "host h1 alone writes", "--set writer=h2")
	refused(t, create(plain.on("h1", 0), map[string]string{"vg": "gone", "writer": "h1"}), lvm.ErrNoVG)
	refused(t, create(plain.on("h1", 0), map[string]string{"vg": "gone", "writer": "h1"}), failure.Precondition)
	for _, bad := range []map[string]string{nil, {"vg": ""}, {"vg": "../x"}, {"vg": "-x"}, {"vg": vg, "writer": "a b"}, {"vg": vg, "instead-of": "h2"}, {"path": "/x"}} {
		refused(t, create(plain.on("h1", 0), bad), failure.Usage)
	}
	for _, s := range []site{plain, locked} {
		if g, err := lvmtest.Load(s.state()); err != nil || len(g.Volumes) > 0 {
			t.Errorf("made: %+v: %v", g.Volumes, err)
		}
	}
}

// One host writes; others look, and are told the way out. What has the volume's name and is
// not of diskhook stays.
func TestASingleWriter(t *testing.T) {
	ctx := t.Context()
	s, here, id := written(t)
	volume := uuid.NewString()
	_, err := here.Make(ctx, volume, imagecheck.Raw, 1<<20)
	must(t, err)
	there := s.open(s.on("h2", 0), single)
	if c := there.Capabilities(); !c.ReadOnly || c.Shared || here.Capabilities().ReadOnly {
		t.Errorf("%+v", c)
	}
	if got, err := there.Read(ctx, format.Image, id); err != nil || string(got) != "new" {
		t.Errorf("%q: %v", got, err)
	}
	if all, err := there.Data(ctx); err != nil || len(all) != 1 {
		t.Errorf("%+v: %v", all, err)
	}
	before, err := os.ReadFile(s.documents())
	must(t, err)
	_, lock := there.TryLock(ctx, "work")
	_, made := there.Make(ctx, uuid.NewString(), imagecheck.Raw, 1<<20)
	for what, err := range map[string]error{
		"write": there.Write(ctx, format.Image, id, []byte("x"), pass), "remove": there.Remove(ctx, format.Image, id, pass), "lock": lock, "make": made,
		"open": there.OpenVolume(ctx, volume, imagecheck.Raw, false), "grow": there.Grow(ctx, volume, imagecheck.Raw, 2<<20), "delete": there.Delete(ctx, volume, imagecheck.Raw),
	} {
		t.Run(what, func(t *testing.T) {
			refused(t, err, failure.Precondition, "vg shared: host h1 alone writes to it", "--set writer=h2 --set instead-of=h1")
		})
	}
	if held, err := there.Held(ctx, "work"); err != nil || held {
		t.Errorf("held: %t: %v", held, err)
	}
	after, err := os.ReadFile(s.documents())
	must(t, err)
	if !cmp.Equal(before, after) {
		t.Error("something was written")
	}
	other := map[string]string{"vg": vg, "writer": "h2"}
	_, err = s.on("h2", 0).Open(ctx, other)
	refused(t, err, failure.Precondition, "host h1 alone writes to it", "instead-of=h1")

	// The operator says that h1 is gone: it is refused from then on, in the middle of what it did.
	wrong := map[string]string{"vg": vg, "writer": "h2", "instead-of": "h3"}
	refused(t, s.on("h2", 0).CanCreate(ctx, wrong), failure.Conflict, "not h3", "instead-of=h1")
	refused(t, s.on("h2", 0).Create(ctx, wrong), failure.Conflict, "not h3", "instead-of=h1")
	taken := map[string]string{"vg": vg, "writer": "h2", "instead-of": "h1"}
	must(t, s.on("h2", 0).CanCreate(ctx, taken))
	must(t, s.on("h2", 0).Create(ctx, taken))
	must(t, s.open(s.on("h2", 0), taken).Write(ctx, format.Image, id, []byte("theirs"), pass))
	refused(t, here.Write(ctx, format.Image, id, []byte("ours"), pass), failure.Precondition, "host h2 alone writes to it")
	_, err = s.on("h1", 0).Open(ctx, single)
	refused(t, err, failure.Precondition, "host h2 alone writes")
	if got, err := here.Read(ctx, format.Image, id); err != nil || string(got) != "theirs" {
		t.Errorf("%q: %v", got, err)
	}
}

func TestAGroupWithoutRoom(t *testing.T) {
	s := newSite(t, "")
	many := map[string]string{"vg": vg, "writer": "h1", "documents": "16384"}
	refused(t, s.on("h1", 0).CanCreate(t.Context(), many), failure.NoSpace, "vgextend shared", "--set documents")
	refused(t, s.on("h1", 0).Create(t.Context(), many), failure.NoSpace)
	must(t, s.on("h1", 0).CanCreate(t.Context(), single))
	if _, err := os.Stat(s.documents()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}

// Another process of the host may write the header: whoever becomes the writer waits for it.
func TestANewWriterHasTheSlotsToItself(t *testing.T) {
	s, _, _ := written(t)
	there := s.on("h2", 0)
	folders, err := filepath.Glob(filepath.Join(s.on("h1", 0).Locks, "clvm-*"))
	must(t, err)
	folder := filepath.Join(there.Locks, filepath.Base(folders[0]))
	must(t, os.MkdirAll(folder, 0o700))
	l, err := lock.Acquire(t.Context(), folder, "slots")
	must(t, err)
	before, err := os.ReadFile(s.documents())
	must(t, err)
	taken := map[string]string{"vg": vg, "writer": "h2", "instead-of": "h1"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := there.Create(ctx, taken); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another one has them: %v", err)
	}
	after, err := os.ReadFile(s.documents())
	must(t, err)
	if !cmp.Equal(before, after) {
		t.Error("something was written")
	}
	l.Release()
	must(t, there.Create(t.Context(), taken))
	s.open(there, map[string]string{"vg": vg, "writer": "h2"})
}

func TestForeignVolumesAreLeftAlone(t *testing.T) {
	ctx := t.Context()
	s, p, _ := written(t)
	id := uuid.NewString()
	foreign := map[string]*lvmtest.Volume{
		id + ".raw":                 {UUID: "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef", Size: 1 << 20, Tags: []string{"DH_REPO:" + uuid.NewString()}},
		uuid.NewString() + ".qcow2": {UUID: "abcdef-abcd-abcd-abcd-abcd-abcd-abcdeg", Size: 1 << 20},
		"root":                      {UUID: "abcdef-abcd-abcd-abcd-abcd-abcd-abcdeh", Size: 1 << 20, Tags: []string{"mine"}},
	}
	must(t, lvmtest.Change(s.state(), func(g *lvmtest.Group) {
		for name, v := range foreign {
			g.Volumes[name] = v
		}
	}))
	for name := range foreign {
		must(t, os.WriteFile(filepath.Join(s.state(), name+".img"), []byte("theirs"), 0o600))
	}
	_, err := p.Make(ctx, id, imagecheck.Raw, 1<<20)
	refused(t, err, failure.Conflict, "it is not this repository's")
	refused(t, p.OpenVolume(ctx, id, imagecheck.Raw, true), failure.Conflict)
	refused(t, p.Delete(ctx, id, imagecheck.Raw), failure.Conflict)
	refused(t, p.Grow(ctx, id, imagecheck.Raw, 2<<20), failure.Conflict)
	if all, err := p.Data(ctx); err != nil || len(all) > 0 {
		t.Errorf("%+v: %v", all, err)
	}
	g, err := lvmtest.Load(s.state())
	must(t, err)
	for name, v := range foreign {
		b, err := os.ReadFile(filepath.Join(s.state(), name+".img"))
		if diff := cmp.Diff(v, g.Volumes[name]); diff != "" || err != nil || string(b) != "theirs" {
			t.Errorf("%s: %s %q %v", name, diff, b, err)
		}
	}
	alien := newSite(t, "")
	must(t, lvmtest.Change(alien.state(), func(g *lvmtest.Group) {
		g.Volumes["dh_documents"] = &lvmtest.Volume{UUID: "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef", Size: 1 << 20}
	}))
	refused(t, alien.on("h1", 0).Create(ctx, single), failure.Conflict, "it is not diskhook's")
}

// What an earlier owner left is never at the beginning of a volume, nor behind its end,
// wherever the work was interrupted.
func TestWhatIsLeftOfEarlierOwners(t *testing.T) {
	ctx := t.Context()
	const size, grown = 100_000, 300_000 // not of whole extents
	for kill := range 5 {
		s := newSite(t, "")
		must(t, s.on("h1", 0).Create(ctx, single))
		id := uuid.NewString()
		count := 0
		f := s.on("h1", 0)
		run := f.LVM.Run.(lvmtest.Shared)
		run.Refuse = func(args []string) error {
			if args[0] == "fullreport" {
				return nil
			}
			if count++; count == kill+1 {
				return errors.New("  killed")
			}
			return nil
		}
		p := s.open(f, single)
		f.LVM.Run, count = run, 0
		first := s.open(f, single)
		_, made := first.Make(ctx, id, imagecheck.Raw, size)
		if made == nil {
			fill(t, first.Path(id, imagecheck.Raw), size)
			made = first.Grow(ctx, id, imagecheck.Raw, grown)
		}
		if made == nil {
			t.Fatalf("command %d was not refused", kill)
		}
		_, err := p.Make(ctx, id, imagecheck.Raw, size)
		must(t, err)
		must(t, p.OpenVolume(ctx, id, imagecheck.Raw, true))
		fill(t, p.Path(id, imagecheck.Raw), size)
		must(t, p.Grow(ctx, id, imagecheck.Raw, grown))
		b, err := os.ReadFile(p.Path(id, imagecheck.Raw))
		must(t, err)
		if len(b) < grown || strings.Trim(string(b[size:]), "\x00") != "" || strings.Trim(string(b[:size]), "g") != "" {
			t.Errorf("killed at command %d: something is left", kill)
		}
		g, err := lvmtest.Load(s.state())
		must(t, err)
		if tags := g.Volumes[id+".raw"].Tags; len(tags) != 1 || !strings.HasPrefix(tags[0], "DH_REPO:") {
			t.Errorf("tags %q", tags)
		}
	}
}

// fill writes what a guest would.
func fill(t *testing.T, path string, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("g", n)), 0)
	must(t, errors.Join(err, f.Close()))
}

// What was read here is written here, and then by another host, but not while it is open.
func TestReadersAndWritersOfASharedGroup(t *testing.T) {
	ctx := t.Context()
	s, all := hosts(t, 2)
	id := uuid.NewString()
	_, err := all[0].Make(ctx, id, imagecheck.Raw, 1<<20)
	must(t, err)
	refused(t, all[1].OpenVolume(ctx, id, imagecheck.Raw, false), lvm.ErrElsewhere)
	must(t, all[0].CloseVolume(ctx, id, imagecheck.Raw))
	for _, p := range all {
		must(t, p.OpenVolume(ctx, id, imagecheck.Raw, false))
	}
	refused(t, all[0].OpenVolume(ctx, id, imagecheck.Raw, true), lvm.ErrElsewhere)
	refused(t, all[0].Delete(ctx, id, imagecheck.Raw), failure.Conflict)
	must(t, all[0].CloseVolume(ctx, id, imagecheck.Raw))
	must(t, all[1].OpenVolume(ctx, id, imagecheck.Raw, true))
	g, err := lvmtest.Load(s.state())
	must(t, err)
	if diff := cmp.Diff(map[string]bool{"h2": true}, g.Volumes[id+".raw"].On); diff != "" {
		t.Error(diff)
	}
}

// What a process of this host has open another one neither closes nor removes; what was
// open in one that ended it does.
func TestProcessesOfOneHost(t *testing.T) {
	ctx := t.Context()
	s, one, _ := written(t)
	two := s.open(s.on("h1", 0), single)
	three, err := s.on("h1", 0).Open(ctx, single)
	must(t, err)
	id := uuid.NewString()
	_, err = one.Make(ctx, id, imagecheck.Raw, 1<<20)
	must(t, err)
	must(t, two.OpenVolume(ctx, id, imagecheck.Raw, false))
	must(t, three.OpenVolume(ctx, id, imagecheck.Raw, false))
	opened := func(want int) {
		t.Helper()
		if all, err := one.Opened(ctx); err != nil || len(all) != want {
			t.Errorf("open: %v: %v", all, err)
		}
	}
	must(t, one.CloseVolume(ctx, id, imagecheck.Raw))
	opened(1)
	refused(t, one.Delete(ctx, id, imagecheck.Raw), failure.Conflict, "another process of this host uses it")
	refused(t, one.Erase(ctx, id, imagecheck.Raw, format.Erasure{Zero: true}, nil), failure.Conflict, "another process of this host uses it")
	must(t, two.CloseVolume(ctx, id, imagecheck.Raw))
	opened(1)
	must(t, three.Close()) // as a process that ends
	must(t, one.CloseVolume(ctx, id, imagecheck.Raw))
	opened(0)
	must(t, one.Delete(ctx, id, imagecheck.Raw))
}
