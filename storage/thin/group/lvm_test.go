// SPDX-License-Identifier: Apache-2.0

package group

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/layout"
)

var (
	cluster = uuid.MustParse("0c4e8e4c-5d0f-4fd5-8c39-3f3b3f3b7f10")
	id      = uuid.MustParse("5a1e0bd4-9f43-4d7c-8a51-51a6cf2e9d10")
	thin    = layout.Thin.Name(id)
	tag     = "diskhook_thin=" + cluster.String()
)

// lv is a volume as the fake group reports it.
type lv struct {
	name, tags string
	size       int64
	active     bool
}

func report(t *testing.T, lvs ...lv) string {
	rows := []map[string]string{}
	const lvUUID = "Zz0abc-1234-5678-9abc-defg-hijk-lmnop"
	for i, v := range lvs {
		attr := map[bool]string{true: "-wi-a-----", false: "-wi-------"}[v.active]
		rows = append(rows, map[string]string{
			"lv_uuid": lvUUID + strconv.Itoa(i), "lv_name": v.name, "lv_attr": attr, "lv_tags": v.tags, "lv_size": strconv.FormatInt(v.size, 10),
			"pool_lv": "", "origin": "", "data_percent": "", "metadata_percent": "", "lv_path": "/dev/vg/" + v.name,
		})
	}
	vg := map[string]string{
		"vg_name": "vg", "vg_uuid": lvUUID + "q", "vg_attr": "wz--ns", "vg_size": "1073741824", "vg_free": "4194304", "vg_extent_size": "4194304",
		"vg_missing_pv_count": "0", "vg_seqno": "1",
	}
	out, err := json.Marshal(map[string]any{"report": []any{map[string]any{"vg": []any{vg}, "pv": []any{}, "lv": rows, "pvseg": []any{}, "seg": []any{}}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// world is a group over a fake lvm, with files for device nodes.
func world(t *testing.T, lvs ...lv) (*volumes, *commandtest.Runner) {
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
		{Prefix: "lvm fullreport", Stdout: report(t, lvs...)},
		{Prefix: "lvm lvcreate"}, {Prefix: "lvm lvchange"}, {Prefix: "lvm lvextend"}, {Prefix: "lvm lvremove"},
	}}
	g := LVM(&lvm.LVM{Run: run}, "vg", t.TempDir(), cluster).(*volumes)
	g.wait = func(context.Context, string) (int64, error) { return 0, nil }
	if err := os.Mkdir(filepath.Join(g.dev, "vg"), 0o700); err != nil {
		t.Fatal(err)
	}
	return g, run
}

// node is a device node with something in it.
func (g *volumes) nodeOf(t *testing.T, name string, bytes int) {
	if err := os.WriteFile(g.Path(name), []byte(strings.Repeat("x", bytes)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// verbs are the command lines that change something, without --config.
func verbs(run *commandtest.Runner) []string {
	var lines []string
	for _, line := range run.Lines() {
		if strings.HasPrefix(line, "lvm fullreport") {
			continue
		}
		before, rest, _ := strings.Cut(line, "--config ")
		_, after, _ := strings.Cut(rest, "}' ")
		lines = append(lines, strings.TrimPrefix(before, "lvm ")+after)
	}
	return lines
}

func TestCreate(t *testing.T) {
	empties := []string{"lvchange -y -asy -K vg/" + thin, "lvchange -y -an vg/" + thin, "lvchange -y --deltag diskhook_thin_new vg/" + thin}
	for name, c := range map[string]struct {
		there []lv
		want  []string
		kind  *failure.Kind
		wiped bool
	}{
		"new":                {nil, append([]string{"lvcreate -y -n " + thin + " -L 1024b -Wn -Zn --addtag " + tag + " --addtag diskhook_thin_new -ky -an vg"}, empties...), nil, true},
		"whose maker died":   {[]lv{{thin, tag + ",diskhook_thin_new", 4 << 20, false}}, empties, nil, true},
		"made before":        {[]lv{{thin, tag, 4 << 20, false}}, nil, nil, false},
		"too small":          {[]lv{{thin, tag, 512, false}}, []string{"lvextend -y -L 1024b vg/" + thin}, nil, false},
		"somebody else's":    {[]lv{{thin, "", 4 << 20, true}}, nil, failure.Conflict, false},
		"of another cluster": {[]lv{{thin, "diskhook_thin=" + id.String(), 4 << 20, true}}, nil, failure.Conflict, false},
	} {
		t.Run(name, func(t *testing.T) {
			g, run := world(t, c.there...)
			g.nodeOf(t, thin, 16384)
			err := g.Create(t.Context(), thin, 1000)
			if failure.KindOf(err) != c.kind || (err != nil) != (failure.HintOf(err) != "") {
				t.Fatalf("%v, hint %q", err, failure.HintOf(err))
			}
			if diff := cmp.Diff(c.want, verbs(run)); diff != "" {
				t.Error(diff)
			}
			head, err := os.ReadFile(g.Path(thin))
			if wiped := bytes.Equal(head[:8192], make([]byte, 8192)); err != nil || wiped != c.wiped || head[8192] != 'x' {
				t.Errorf("wiped: %t, %v", wiped, err)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	raw := layout.Raw.Name(id)
	there := []lv{{thin, tag, 4096, false}, {raw, "", 4096, false}, {layout.MapName, tag, 8192, true}, {layout.DataName, tag, 4096, true}}
	for name, want := range map[string][]string{
		thin:            {"lvchange -y -asy -K vg/" + thin},
		raw:             {"lvchange -y -aey -K vg/" + raw},
		layout.DataName: nil,
		layout.MapName:  {"lvchange -y --refresh vg/hosts"},
	} {
		g, run := world(t, there...)
		g.nodeOf(t, name, 4096)
		v, err := g.Open(t.Context(), name, false)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, verbs(run)); diff != "" || v.Size() != 4096 {
			t.Errorf("%s: %d bytes\n%s", name, v.Size(), diff)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	g, _ := world(t)
	if _, err := g.Open(t.Context(), thin, false); !errors.Is(err, failure.NotFound) || failure.HintOf(err) == "" {
		t.Error(err)
	}
	// Whoever is asked whether a volume may be made looks, in the middle of that.
	g, run := world(t, lv{layout.MapName, tag + ",diskhook_thin_new", 4096, true})
	g.nodeOf(t, layout.MapName, 4096)
	if _, err := g.Open(t.Context(), layout.MapName, false); !errors.Is(err, failure.NotFound) {
		t.Error(err)
	}
	if lines := verbs(run); len(lines) != 0 {
		t.Errorf("%q", lines)
	}
	if _, err := g.Open(t.Context(), "../../etc/passwd", false); !errors.Is(err, failure.Usage) {
		t.Error(err)
	}
}

// The map of an active volume is read without a command of LVM; not that of another
// cluster, nor is one written to like that, nor read when it has become longer.
func TestOpenMap(t *testing.T) {
	const bytes = 1 << 20 // as it was written
	for name, c := range map[string]struct {
		of      uuid.UUID
		size    int64 // of the device, in bytes
		write   bool
		reports int
	}{
		"to read":            {of: cluster, size: bytes},
		"to write":           {of: cluster, size: bytes, write: true, reports: 1},
		"of another cluster": {of: id, size: bytes, reports: 1},
		"that was extended":  {of: cluster, size: 8192, reports: 1},
	} {
		t.Run(name, func(t *testing.T) {
			g, run := world(t, lv{layout.MapName, tag, 4096, true})
			g.nodeOf(t, layout.MapName, 0)
			if err := os.Truncate(g.Path(layout.MapName), bytes); err != nil {
				t.Fatal(err)
			}
			dev, err := layout.Open(g.Path(layout.MapName), true)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := layout.CreateMap(dev, c.of, 1, layout.NewMap(layout.Geometry{BlockSize: layout.MinBlockSize, Blocks: 4})); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(dev.Close(), os.Truncate(g.Path(layout.MapName), c.size)); err != nil {
				t.Fatal(err)
			}
			v, err := g.Open(t.Context(), layout.MapName, c.write)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(run.Lines()); got != c.reports {
				t.Errorf("%d commands, want %d: %q", got, c.reports, run.Lines())
			}
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A mapping's device goes away with the one who looked; others stay.
func TestWith(t *testing.T) {
	for name, want := range map[string][]string{thin: {"lvchange -y -an vg/" + thin}, layout.MapName: nil} {
		g, run := world(t, lv{thin, tag, 4096, true}, lv{layout.MapName, tag, 4096, true})
		g.nodeOf(t, name, 4096)
		err := With(t.Context(), g, name, true, func(v Volume) error {
			if v.Name() != g.Path(name) {
				t.Error(v.Name())
			}
			return nil
		})
		if diff := cmp.Diff(want, verbs(run)); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	g, run := world(t, lv{thin, tag, 4096, true})
	g.nodeOf(t, thin, 4096)
	run.Answers = append([]commandtest.Answer{{Prefix: "lvm lvchange", Code: 5, Stderr: "  Logical volume vg/" + thin + " in use."}}, run.Answers...)
	if err := With(t.Context(), g, thin, false, func(Volume) error { return nil }); err != nil {
		t.Errorf("somebody else reads it: %v", err)
	}
	if err := With(t.Context(), g, thin, false, func(Volume) error { return failure.New(failure.Problems, "no") }); !errors.Is(err, failure.Problems) {
		t.Error(err)
	}
}

func TestRemoveAndList(t *testing.T) {
	g, run := world(t, lv{layout.MapName, tag, 4096, true}, lv{"root", "", 4096, true}, lv{thin, tag, 8192, false})
	list, err := g.List(t.Context())
	yes, no := true, false
	if diff := cmp.Diff([]LV{{thin, 8192, &no, false}, {layout.MapName, 4096, &yes, false}}, list); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if free, err := g.Free(t.Context()); err != nil || free != 4<<20 {
		t.Error(free, err)
	}
	gone := commandtest.Answer{Code: 5, Stderr: "  Failed to find logical volume \"vg/" + thin + "\""}
	for _, prefix := range []string{"lvm lvremove", "lvm lvchange"} {
		gone.Prefix = prefix
		run.Answers = append([]commandtest.Answer{gone}, run.Answers...)
	}
	for name, do := range map[string]func(context.Context, string) error{"remove": g.Remove, "deactivate": g.Deactivate} {
		if err := do(t.Context(), thin); err != nil {
			t.Errorf("%s what is gone: %v", name, err)
		}
		if err := do(t.Context(), "root"); !errors.Is(err, failure.Usage) {
			t.Errorf("%s what is not the cluster's: %v", name, err)
		}
	}
	if err := g.Extend(t.Context(), layout.Thin.Name(cluster), 4096); !errors.Is(err, failure.NotFound) {
		t.Error(err)
	}
	for _, line := range verbs(run) {
		if strings.Contains(line, "root") {
			t.Error(line)
		}
	}
}

// One who may not any more changes nothing of LVM's, wherever in a verb that begins.
func TestGuarded(t *testing.T) {
	errDeposed := errors.New("deposed")
	for name, c := range map[string]struct {
		there []lv
		do    func(Group) error
	}{
		"create": {nil, func(g Group) error { return g.Create(t.Context(), thin, 1000) }},
		"empty":  {[]lv{{thin, tag + ",diskhook_thin_new", 4096, false}}, func(g Group) error { return g.Create(t.Context(), thin, 1000) }},
		"extend": {[]lv{{thin, tag, 4096, false}}, func(g Group) error { return g.Extend(t.Context(), thin, 1<<20) }},
		"remove": {[]lv{{thin, tag, 4096, false}}, func(g Group) error { return g.Remove(t.Context(), thin) }},
	} {
		t.Run(name, func(t *testing.T) {
			changed := -1
			for allowed := 0; ; allowed++ {
				inner, run := world(t, c.there...)
				inner.nodeOf(t, thin, 16<<10)
				left := allowed
				err := c.do(Guarded(inner, func() error {
					if left--; left < 0 {
						return errDeposed
					}
					return nil
				}))
				n := 0
				for _, line := range verbs(run) {
					if !strings.Contains(line, " -asy ") && !strings.Contains(line, " -an vg/") { // on this host only
						n++
					}
				}
				if n < changed || n > allowed {
					t.Errorf("asked %d times: %q", allowed, verbs(run))
				}
				changed = n
				if err == nil {
					break
				}
				if !errors.Is(err, errDeposed) {
					t.Fatal(err)
				}
			}
			if changed == 0 {
				t.Error("nothing was to be changed")
			}
		})
	}
}

// A group of lvmlockd refuses to change what a host has active, as the cluster's hosts have
// most of its volumes all the time: what has to be done for it is said.
func TestHeldInAGroupOfLvmlockd(t *testing.T) {
	own := layout.Host.Name(id)
	for name, c := range map[string]struct {
		refused, hint string
		do            func(Group) error
	}{
		"extend, active here": {"  LV is already locked with incompatible mode: vg/" + own, "`lvextend -L 1048576b vg/" + own,
			func(g Group) error { return g.Extend(t.Context(), own, 1<<20) }},
		"extend, elsewhere": {"  LV locked by other host: vg/" + own, "diskhook thin stop",
			func(g Group) error { return g.Create(t.Context(), own, 1<<20) }},
		"remove": {"  LV locked by other host: vg/" + own, "`lvchange -an vg/" + own + "` on every host",
			func(g Group) error { return g.Remove(t.Context(), own) }},
	} {
		t.Run(name, func(t *testing.T) {
			g, run := world(t, lv{own, tag, 4096, true})
			for _, prefix := range []string{"lvm lvextend", "lvm lvremove"} {
				run.Answers = append([]commandtest.Answer{{Prefix: prefix, Code: 5, Stderr: c.refused}}, run.Answers...)
			}
			if err := c.do(g); !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), c.hint) {
				t.Errorf("%v, hint %q", err, failure.HintOf(err))
			}
		})
	}
}

// What somebody else gave a name as the cluster's is not removed.
func TestRemoveForeign(t *testing.T) {
	g, run := world(t, lv{thin, "", 4096, false})
	if err := g.Remove(t.Context(), thin); !errors.Is(err, failure.Conflict) || failure.HintOf(err) == "" {
		t.Error(err)
	}
	if list, err := g.List(t.Context()); err != nil || len(list) != 1 || !list[0].Foreign {
		t.Errorf("%+v, %v", list, err)
	}
	if lines := verbs(run); len(lines) != 0 {
		t.Errorf("%q", lines)
	}
}
