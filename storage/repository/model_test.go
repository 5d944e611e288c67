// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format/clvm"
)

// The model's images consist of blocks, each of one byte's value.
const (
	blockSize  = 64 << 10
	blockCount = 8
	modelSize  = blockCount * blockSize
)

type content [blockCount]byte

// believed is an image as an operator knows it.
type believed struct {
	id, repo string
	kind     repository.Kind
	content  content
	// above is the snapshot that a copied difference was laid over, or a disk was made on.
	base string
}

// model is what an operator believes of two repositories.
type model struct {
	*world
	images   []*believed
	requests int
}

func init() {
	// One call: verb, request, repository, image, base, strategy.
	verbs["model"] = func(ctx context.Context, s *repository.Service, a []string) error {
		_, err := call(ctx, s, a)
		return err
	}
}

func call(ctx context.Context, s *repository.Service, a []string) (string, error) {
	o := repository.Options{RequestID: a[1], Strategy: repository.Strategy(a[5])}
	repo, image, base := a[2], a[3], a[4]
	switch a[0] {
	case "create":
		size := int64(0)
		if base == "" {
			size = modelSize
		}
		return s.CreateVirtualDisk(ctx, repo, size, base, nil, o)
	case "snapshot":
		return s.CreateSnapshot(ctx, repo, image, nil, o)
	case "copy":
		return s.CopyImage(ctx, repo, image, base, nil, o)
	case "remove":
		return "", s.RemoveImage(ctx, repo, image, o)
	}
	panic(a[0])
}

// Whatever the order of calls, crashes, hosts that go on, and fixes: each image reads
// as it was written, what was removed is not seen, and in the end nothing is left.
func TestAnyOrderOfCallsKeepsEveryImage(t *testing.T) {
	must(t, flag.Set("rapid.steps", "25"))
	must(t, flag.Set("rapid.nofailfile", "true"))
	eachFormat(t, func(t *testing.T, format string) {
		checks := "12"
		switch {
		case testing.Short():
			checks = "2"
		case format == clvm.Name:
			checks = "6" // what it adds to the others is below what the model sees
		}
		must(t, flag.Set("rapid.checks", checks))
		rapid.Check(t, func(rt *rapid.T) {
			m := &model{world: newWorld(t, format)}
			rt.Repeat(map[string]func(*rapid.T){
				"create": m.create, "create on": m.createOn, "snapshot": m.snapshot, "copy": m.copy,
				"write": m.write, "remove": m.remove, "repair": m.repairOne, "": m.listed,
			})
			for _, b := range m.images {
				m.reads(b)
			}
			for _, b := range slices.Backward(m.images) {
				must(t, m.on("h1").RemoveImage(t.Context(), b.repo, b.id, repository.Options{}))
			}
			m.settled()
			for _, repo := range []string{"a", "b"} {
				if left := m.files(repo); len(left) > 0 {
					t.Errorf("left behind in %s: %v", repo, left)
				}
			}
			if t.Failed() {
				rt.Fatal("see above")
			}
		})
	})
}

// do calls a verb, on any host, maybe killed in the middle: then another host
// goes on, and the call is made again.
func (m *model) do(rt *rapid.T, verb, repo, image, base string) (string, error) {
	m.requests++
	strategy := rapid.SampledFrom([]string{"", "performance"}).Draw(rt, "strategy")
	a := []string{verb, "request " + strconv.Itoa(m.requests), repo, image, base, strategy}
	if rapid.IntRange(0, 2).Draw(rt, "crash") == 0 {
		point := rapid.IntRange(1, 16).Draw(rt, "point")
		_ = m.process("h1", "model", a, fmt.Sprintf("DISKHOOK_FAILPOINT=#%d=kill", point))
		if rapid.Bool().Draw(rt, "resume") {
			must(m, m.on("h2").Resume(m.Context(), repo))
		}
	}
	id, err := call(m.Context(), m.on(rapid.SampledFrom([]string{"h1", "h2"}).Draw(rt, "host")), a)
	if errors.Is(err, repository.ErrNoImage) && verb == "remove" {
		err = nil
	}
	must(m, m.on("h2").Resume(m.Context(), repo))
	return id, err
}

func (m *model) pick(rt *rapid.T, fits func(*believed) bool) *believed {
	var some []*believed
	for _, b := range m.images {
		if fits(b) {
			some = append(some, b)
		}
	}
	if len(some) == 0 {
		rt.Skip("none")
	}
	return rapid.SampledFrom(some).Draw(rt, "image")
}

func (m *model) know(b *believed) { m.images = append(m.images, b) }

func anyRepo(rt *rapid.T) string { return rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "repository") }

func (m *model) create(rt *rapid.T) {
	repo := anyRepo(rt)
	id, err := m.do(rt, "create", repo, "", "")
	must(m, err)
	m.know(&believed{id: id, repo: repo, kind: repository.Disk})
}

func (m *model) createOn(rt *rapid.T) {
	base := m.pick(rt, func(b *believed) bool { return b.kind == repository.Snapshot })
	repo := anyRepo(rt)
	id, err := m.do(rt, "create", repo, "", base.id)
	must(m, err)
	m.know(&believed{id: id, repo: repo, kind: repository.Disk, content: base.content, base: base.id})
}

func (m *model) snapshot(rt *rapid.T) {
	disk := m.pick(rt, func(b *believed) bool { return b.kind == repository.Disk })
	id, err := m.do(rt, "snapshot", disk.repo, disk.id, "")
	must(m, err)
	m.know(&believed{id: id, repo: disk.repo, kind: repository.Snapshot, content: disk.content, base: disk.base})
	disk.base = id
}

func (m *model) copy(rt *rapid.T) {
	from := m.pick(rt, func(*believed) bool { return true })
	repo := anyRepo(rt)
	base := ""
	if m.has(repo, from.base) && m.has(from.repo, from.base) && rapid.Bool().Draw(rt, "difference") {
		base = from.base
	}
	id, err := m.do(rt, "copy", repo, from.id, base)
	if base != "" && errors.Is(err, repository.ErrNotAncestor) {
		return // it does not lie on it any more, or never did
	}
	must(m, err)
	if from.kind == repository.Snapshot && (id != from.id || m.has(repo, id)) {
		if id != from.id {
			rt.Fatalf("snapshot %s became %s", from.id, id)
		}
		return
	}
	m.know(&believed{id: id, repo: repo, kind: from.kind, content: from.content, base: from.base})
}

func (m *model) has(repo, id string) bool {
	return slices.ContainsFunc(m.images, func(b *believed) bool { return b.repo == repo && b.id == id })
}

func (m *model) write(rt *rapid.T) {
	disk := m.pick(rt, func(b *believed) bool { return b.kind == repository.Disk })
	block := rapid.IntRange(0, blockCount-1).Draw(rt, "block")
	value := rapid.ByteRange(0, 9).Draw(rt, "value")
	s := m.on("h1")
	p, err := s.PrepareImage(m.Context(), disk.repo, disk.id, repository.Preparing{Holder: "writer", Write: true})
	must(m, err)
	how := fmt.Sprintf("write -q -P %d %d %d", value, block*blockSize, blockSize)
	if value == 0 {
		how = fmt.Sprintf("write -q -z %d %d", block*blockSize, blockSize)
	}
	m.tool("qemu-io", "-f", p.Format, "-c", how, p.Path)
	must(m, s.ReleaseImage(m.Context(), disk.repo, disk.id, "writer"))
	disk.content[block] = value
}

func (m *model) remove(rt *rapid.T) {
	gone := m.pick(rt, func(*believed) bool { return true })
	_, err := m.do(rt, "remove", gone.repo, gone.id, "")
	must(m, err)
	m.images = slices.DeleteFunc(m.images, func(b *believed) bool { return b == gone })
}

// repairOne does one of the fixes.
func (m *model) repairOne(rt *rapid.T) {
	repo := anyRepo(rt)
	s := m.on("h2")
	report, err := s.CheckStorageRepository(m.Context(), repo)
	must(m, err)
	if len(report.Problems) > 0 {
		rt.Fatalf("%s: %q", repo, report.Problems)
	}
	if len(report.Fixes) > 0 {
		fix := rapid.SampledFrom(report.Fixes).Draw(rt, "fix")
		err := s.FixStorageRepository(m.Context(), repo, fix, repository.Options{})
		if err != nil && !errors.Is(err, repository.ErrStaleFix) {
			rt.Fatalf("%+v: %v", fix, err)
		}
	}
}

// listed compares what is listed with what is known, and reads one image.
func (m *model) listed(rt *rapid.T) {
	for _, repo := range []string{"a", "b"} {
		var known, seen []string
		for _, b := range m.images {
			if b.repo == repo {
				known = append(known, b.id)
			}
		}
		page, err := m.on("h2").ListImages(m.Context(), repo, repository.Filter{})
		must(m, err)
		for _, i := range page.Images {
			if seen = append(seen, i.ID); i.State == repository.Broken || i.Open {
				rt.Fatalf("%s: %+v", repo, i)
			}
		}
		slices.Sort(known)
		if !slices.Equal(known, seen) {
			rt.Fatalf("%s: listed %v, known %v", repo, seen, known)
		}
	}
	if len(m.images) > 0 {
		m.reads(m.images[rapid.IntRange(0, len(m.images)-1).Draw(rt, "look")])
	}
}

// reads fails unless the image has its content.
func (m *model) reads(b *believed) {
	m.Helper()
	var wanted bytes.Buffer
	for _, value := range b.content {
		wanted.Write(bytes.Repeat([]byte{value}, blockSize))
	}
	path := m.path("wanted.raw")
	must(m, os.WriteFile(path, wanted.Bytes(), 0o600))
	m.holds(b.repo, b.id, path)
	if m.Failed() {
		m.Fatalf("%s %s/%s", b.kind, b.repo, b.id)
	}
}
