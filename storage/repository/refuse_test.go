// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
)

// nowhere is an id that no image has.
const nowhere = "5f3b8b0c-9a53-4a87-a5b5-2d5a9cb4b1d6"

func TestRefusesNamesThatAreNone(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	none := repository.Options{}
	for _, id := range []string{"", ".", "..", "../a", "a/b", "/etc/passwd", strings.ToUpper(nowhere), nowhere + "\n", strings.Repeat("a", 5000)} {
		_, err := s.GetImage(ctx, "a", id)
		refused(t, err, failure.Usage)
		refused(t, s.RemoveImage(ctx, "a", id, none), failure.Usage)
		refused(t, s.ResizeVirtualDisk(ctx, "a", id, mib, none), failure.Usage)
		refused(t, s.SetUserData(ctx, "a", id, nil), failure.Usage)
		refused(t, s.StopTask(ctx, "a", id), failure.Usage)
		refused(t, s.Run(ctx, "a", id), failure.Usage)
		refused(t, s.ReleaseImage(ctx, "a", id, "me"), failure.Usage)
		_, err = s.PrepareImage(ctx, "a", id, repository.Preparing{Holder: "me"})
		refused(t, err, failure.Usage)
		_, err = s.CreateSnapshot(ctx, "a", id, nil, none)
		refused(t, err, failure.Usage)
		_, err = s.CopyImage(ctx, "a", id, "", nil, none)
		refused(t, err, failure.Usage)
		if id != "" {
			_, err = s.CreateVirtualDisk(ctx, "a", mib, id, nil, none)
			refused(t, err, failure.Usage)
			_, err = s.ListImages(ctx, "a", repository.Filter{After: id})
			refused(t, err, failure.Usage)
		}
		_, err = s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{ImageHints: map[string]string{id: "a"}})
		refused(t, err, failure.Usage)
	}
	for _, repo := range []string{"", ".", "..", "a/b", "../a", "-a", "a b", strings.Repeat("a", 65)} {
		refused(t, s.ConnectStorageRepository(ctx, repo, w.Format, w.parameters("a")), failure.Usage)
		refused(t, s.DisconnectStorageRepository(ctx, repo, repository.Disconnect{}), failure.Usage)
		_, err := s.CheckStorageRepository(ctx, repo)
		refused(t, err, failure.Usage)
	}
	for _, holder := range []string{"", "a b", "a\n", strings.Repeat("a", 65)} {
		_, err := s.PrepareImage(ctx, "a", nowhere, repository.Preparing{Holder: holder})
		refused(t, err, failure.Usage)
	}
	w.untouched("a")
}

// untouched fails if anything was made in a repository.
func (w *world) untouched(repo string) {
	w.Helper()
	for _, folder := range []string{"images", "volumes", "operations", "pins", "stops", "data", "cursors"} {
		if left, err := os.ReadDir(w.path("repos", repo, folder)); err != nil || len(left) > 0 {
			w.Errorf("%s: left behind: %v: %v", folder, left, err)
		}
	}
}

func TestRefusesUserDataAndSizes(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	full := json.RawMessage(`"` + strings.Repeat("<", repository.MaxUserData-2) + `"`)
	for _, bad := range []string{"{", "nonsense", string(full[:len(full)-1]) + `<"`} {
		_, err := s.CreateVirtualDisk(ctx, "a", mib, "", json.RawMessage(bad), repository.Options{})
		refused(t, err, failure.Usage, "user data")
	}
	for _, size := range []int64{0, -1, 65 << 40} {
		_, err := s.CreateVirtualDisk(ctx, "a", size, "", nil, repository.Options{})
		refused(t, err, failure.Usage, "size")
	}
	_, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{Strategy: "speed"})
	refused(t, err, failure.Usage, "strategy")
	_, err = s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{RequestID: strings.Repeat("a", 129)})
	refused(t, err, failure.Usage, "request id")
	w.untouched("a")

	disk, err := s.CreateVirtualDisk(ctx, "a", mib, "", full, repository.Options{})
	must(t, err)
	info, err := s.GetImage(ctx, "a", disk)
	must(t, err)
	if !bytes.Equal(info.UserData, full) {
		t.Errorf("user data of %d bytes came back as %d", len(full), len(info.UserData))
	}
	must(t, s.SetUserData(ctx, "a", disk, json.RawMessage(`[1, 2]`)))
	if info, err := s.GetImage(ctx, "a", disk); err != nil || string(info.UserData) != "[1,2]" {
		t.Errorf("%s: %v", info.UserData, err)
	}
	refused(t, s.ResizeVirtualDisk(ctx, "a", disk, mib/2, repository.Options{}), failure.Usage, "shrink")
}

func TestRefusesWrongKindsOfImages(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	none := repository.Options{}
	disk, base := w.diskOnBase()
	_, err := s.CreateVirtualDisk(ctx, "a", 0, disk, nil, none)
	refused(t, err, repository.ErrNotSnapshot)
	_, err = s.CreateVirtualDisk(ctx, "a", 2*mib, base, nil, none)
	refused(t, err, failure.Usage, "cannot have less")
	_, err = s.CreateVirtualDisk(ctx, "a", 0, nowhere, nil, none)
	refused(t, err, repository.ErrNoImage)
	_, err = s.CreateSnapshot(ctx, "a", base, nil, none)
	refused(t, err, repository.ErrNotDisk)
	refused(t, s.ResizeVirtualDisk(ctx, "a", base, 8*mib, none), repository.ErrNotDisk)
	_, err = s.PrepareImage(ctx, "a", base, repository.Preparing{Holder: "me", Write: true})
	refused(t, err, repository.ErrNotDisk)
	_, err = s.CopyImage(ctx, "b", base, disk, nil, none)
	refused(t, err, repository.ErrNotSnapshot)
	other, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, none)
	must(t, err)
	_, err = s.CopyImage(ctx, "b", other, base, nil, none)
	refused(t, err, repository.ErrNotAncestor)
	_, err = s.CopyImage(ctx, "b", disk, nowhere, nil, none)
	refused(t, err, repository.ErrNotAncestor)
	_, err = s.CopyImage(ctx, "b", base, "", nil, repository.Options{ImageHints: map[string]string{base: "b"}})
	refused(t, err, repository.ErrNoImage)
	_, err = s.CopyImage(ctx, "b", base, "", nil, repository.Options{ParticipatingRepositories: []string{"b"}})
	refused(t, err, repository.ErrNoImage)
	w.untouched("b")
}

func TestWhatIsUsedIsLeftAlone(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	none := repository.Options{}
	disk, base := w.diskOnBase()
	writing := repository.Preparing{Holder: "vm", Write: true}
	_, err := s.PrepareImage(ctx, "a", disk, writing)
	must(t, err)
	_, err = s.PrepareImage(ctx, "a", disk, writing)
	must(t, err)
	for _, p := range []repository.Preparing{{Holder: "other"}, {Holder: "other", Write: true}} {
		_, err = w.on("h2").PrepareImage(ctx, "a", disk, p)
		refused(t, err, repository.ErrInUse, "vm on host h1", "diskhook image release --holder vm a")
	}
	refused(t, s.RemoveImage(ctx, "a", disk, none), repository.ErrInUse)
	refused(t, s.ResizeVirtualDisk(ctx, "a", disk, 8*mib, none), repository.ErrInUse)
	_, err = s.CreateSnapshot(ctx, "a", disk, nil, none)
	refused(t, err, repository.ErrInUse)
	_, err = s.CopyImage(ctx, "b", disk, "", nil, none)
	refused(t, err, repository.ErrInUse)

	// The base goes from sight, and is not merged into what is used.
	must(t, s.RemoveImage(ctx, "a", base, none))
	report, err := s.CheckStorageRepository(ctx, "a")
	must(t, err)
	if len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Merge || report.Fixes[0].Bytes < mib {
		t.Fatalf("%+v", report)
	}
	refused(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], none), failure.Conflict)
	report, err = s.CheckStorageRepository(ctx, "a")
	must(t, err)
	refused(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], none), repository.ErrInUse)

	// Another boot of this host: nobody uses it any more.
	reboot := w.on("h1")
	reboot.BootID = "boot-2"
	must(t, reboot.FixStorageRepository(ctx, "a", report.Fixes[0], none))
	w.repair("a")
	_, err = w.on("h2").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "mine", Write: true, Dead: []string{"h1"}})
	must(t, err)
	must(t, w.on("h2").ReleaseImage(ctx, "a", disk, "mine"))
	w.holds("a", disk, w.path("now.raw"))
}

func TestStaleFixesAreRefused(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	disk, base := w.diskOnBase()
	must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
	report, err := s.CheckStorageRepository(ctx, "a")
	must(t, err)
	fix := report.Fixes[0]
	must(t, s.SetUserData(ctx, "a", disk, json.RawMessage("1")))
	refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), repository.ErrStaleFix, "diskhook repo check a")

	report, err = s.CheckStorageRepository(ctx, "a")
	must(t, err)
	fix = report.Fixes[0]
	refused(t, s.FixStorageRepository(ctx, "b", fix, repository.Options{}), failure.Usage, "another repository")
	changed := fix
	changed.Data = fix.Data[:20] + "A" + fix.Data[21:]
	if changed.Data == fix.Data {
		changed.Data = fix.Data[:20] + "B" + fix.Data[21:]
	}
	for _, data := range []string{"", "x", changed.Data, strings.Repeat("A", 1<<20)} {
		changed.Data = data
		refused(t, s.FixStorageRepository(ctx, "a", changed, repository.Options{}), failure.Usage)
	}
	must(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}))
	refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), repository.ErrStaleFix)
	w.holds("a", disk, w.path("now.raw"))
}

func TestConnecting(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	must(t, s.ConnectStorageRepository(ctx, "a", w.Format, w.parameters("a")))
	refused(t, s.ConnectStorageRepository(ctx, "a", w.Format, w.parameters("b")), repository.ErrRepoIDInUse)
	refused(t, s.ConnectStorageRepository(ctx, "c", w.Format, w.parameters("a")), repository.ErrRepoIDInUse, "as a already")
	refused(t, s.ConnectStorageRepository(ctx, "c", w.Format, w.parameters("c")), failure.NotFound)
	for _, unknown := range []string{"localfs-9.0", "", "../x"} {
		refused(t, s.ConnectStorageRepository(ctx, "c", unknown, w.parameters("a")), repository.ErrVersion, failure.Usage)
	}
	_, err := s.CreateVirtualDisk(ctx, "c", mib, "", nil, repository.Options{})
	refused(t, err, repository.ErrNotConnected)
	must(t, s.DisconnectStorageRepository(ctx, "b", repository.Disconnect{}))
	_, err = s.ListImages(ctx, "b", repository.Filter{})
	refused(t, err, repository.ErrNotConnected)
	all, err := s.Connections()
	if err != nil || len(all) != 1 || all[0].RepoID != "a" {
		t.Errorf("%+v: %v", all, err)
	}
}

// A repository that a later program made, and damaged documents, are refused
// before anything is changed.
// A damaged note of this host is seen, keeps nobody from other repositories, and can be
// thrown away.
func TestADamagedConnection(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	_, base := w.diskOnBase()
	must(t, os.WriteFile(w.path("h1", "etc", "diskhook", "repos.d", "b.json"), []byte("{"), 0o600))
	all, err := s.Survey(ctx)
	if err != nil || len(all) != 2 || all[0].State != repository.Connected || all[1].State != repository.Unusable || all[1].RepoID != "b" {
		t.Errorf("%+v: %v", all, err)
	}
	_, err = s.CopyImage(ctx, "a", base, "", nil, repository.Options{})
	must(t, err)
	refused(t, s.DisconnectStorageRepository(ctx, "b", repository.Disconnect{}), failure.Precondition, "diskhook repo disconnect --force b")
	must(t, s.DisconnectStorageRepository(ctx, "b", repository.Disconnect{Force: true}))
	must(t, s.ConnectStorageRepository(ctx, "b", w.Format, w.parameters("b")))
}

func TestRefusesWhatItDoesNotUnderstand(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	disk, _ := w.diskOnBase()
	path := w.path("repos", "a", "images", disk+".json")
	good, err := os.ReadFile(path)
	must(t, err)
	for _, bad := range [][]byte{nil, []byte("{}"), bytes.Replace(good, []byte(`"disk"`), []byte(`"dusk"`), 1), good[:len(good)-5]} {
		must(t, os.WriteFile(path, bad, 0o600))
		_, err = s.GetImage(ctx, "a", disk)
		refused(t, err, repository.ErrDamaged, failure.Problems)
		refused(t, s.RemoveImage(ctx, "a", disk, repository.Options{}), repository.ErrDamaged)
		report, err := s.CheckStorageRepository(ctx, "a")
		must(t, err)
		if len(report.Problems) == 0 || len(report.Fixes) != 1 || !report.Fixes[0].ByName {
			t.Errorf("what a damaged document needs is not known, but: %+v", report)
		}
		page, err := s.ListImages(ctx, "a", repository.Filter{State: repository.Broken})
		if err != nil || len(page.Images) != 1 || page.Images[0].ID != disk {
			t.Errorf("%+v: %v", page, err)
		}
	}
	must(t, os.WriteFile(path, good, 0o600))
	w.holds("a", disk, w.path("now.raw"))

	must(t, os.WriteFile(w.path("repos", "a", "repo.json"), repository.Encode(t, map[string]any{"v": 2, "format": w.Format}), 0o600))
	_, err = s.GetImage(ctx, "a", disk)
	refused(t, err, repository.ErrVersion)
	refused(t, s.CreateStorageRepository(ctx, w.Format, w.parameters("a")), repository.ErrVersion)
}

func TestImportRefusesHostileImages(t *testing.T) {
	w := newWorld(t, formats[0].name)
	s, ctx := w.on("h1"), t.Context()
	secret := w.path("secret")
	must(t, os.WriteFile(secret, bytes.Repeat([]byte("secret"), 1024), 0o600))
	backed, sized := w.path("backed.qcow2"), w.path("sized.qcow2")
	w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", backed, "1M")
	w.tool("qemu-img", "create", "-q", "-f", "qcow2", sized, "1M")
	b, err := os.ReadFile(sized)
	must(t, err)
	b[24] = 0x7f // the virtual size
	must(t, os.WriteFile(sized, b, 0o600))
	cut, wild := w.path("cut.qcow2"), w.path("wild.qcow2")
	w.tool("qemu-img", "create", "-q", "-f", "qcow2", cut, "1M")
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", cut)
	whole, err := os.ReadFile(cut)
	must(t, err)
	must(t, os.WriteFile(cut, whole[:4*64<<10], 0o600)) // before its table
	l1 := binary.BigEndian.Uint64(whole[40:])
	binary.BigEndian.PutUint64(whole[l1:], 1<<63|1<<50) // its table is where nothing is
	must(t, os.WriteFile(wild, whole, 0o600))
	outside := filepath.Join(t.TempDir(), "outside.raw")
	must(t, os.WriteFile(outside, make([]byte, mib), 0o600))
	for name, layer := range map[string]imagecheck.Layer{
		"backing file": {Path: backed, Format: imagecheck.QCOW2},
		"size":         {Path: sized, Format: imagecheck.QCOW2},
		"cut off":      {Path: cut, Format: imagecheck.QCOW2},
		"wild table":   {Path: wild, Format: imagecheck.QCOW2},
		"no qcow2":     {Path: secret, Format: imagecheck.QCOW2},
		"outside":      {Path: outside, Format: imagecheck.Raw},
		"format":       {Path: secret, Format: "vmdk"},
		"relative":     {Path: "secret", Format: imagecheck.Raw},
		"missing":      {Path: w.path("nothing"), Format: imagecheck.Raw},
		"directory":    {Path: w.Dir, Format: imagecheck.Raw},
	} {
		_, err := s.ImportImage(ctx, "a", []imagecheck.Layer{layer}, repository.Disk, nil, repository.Options{})
		if !errors.Is(err, failure.Precondition) && !errors.Is(err, failure.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = s.ImportImage(ctx, "a", nil, repository.Disk, nil, repository.Options{})
	refused(t, err, failure.Usage)
	w.untouched("a")
}
