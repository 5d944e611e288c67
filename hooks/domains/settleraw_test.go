// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// answerRaw serves the verbs of going over to a raw copy.
func (e *emulator) answerRaw(verb string, request []byte) (any, error) {
	switch verb {
	case VerbXML:
		return Definition{e.xml}, nil
	case VerbDefine:
		var d Definition
		err := json.Unmarshal(request, &d)
		e.xml = d.XML
		return Facts{}, err
	case VerbBlockCopy:
		var r CopyRequest
		if err := json.Unmarshal(request, &r); err != nil || r.Block || r.Rate != 7<<20 {
			e.t.Errorf("block copy of %+v, %v", r, err)
		}
		e.raw, e.job = r.Path, BlockJob{Type: CopyJob, Total: 2 << 20}
	case VerbSuspend:
		// What the guest wrote last, to both of them.
		e.writes()
		e.state = "paused"
	case VerbResume:
		e.state = "running"
	}
	return struct{}{}, nil
}

// mirror is one look at the mirror, which is ready at the third.
func (e *emulator) mirror() {
	if e.polls--; e.polls <= 0 && !e.job.Ready {
		tool(e.t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", e.overlay, e.raw)
		e.job.Done, e.job.Ready = e.job.Total, true
	}
}

// writes is what the guest does while both copies get it.
func (e *emulator) writes() {
	e.t.Helper()
	if e.state != "running" {
		e.t.Errorf("a guest that is %s writes", e.state)
	}
	for format, file := range map[string]string{"qcow2": e.overlay, "raw": e.raw} {
		if format == "raw" && !e.job.Ready || format == "qcow2" && e.source == e.raw && e.raw != "" {
			continue
		}
		tool(e.t, "qemu-io", "-f", format, "-c", "write -q -P 0x78 1536k 64k", "-c", "flush", file)
	}
}

// end ends the job. At a pivot libvirt writes the raw copy's path into the
// definition.
func (e *emulator) end(request []byte) (any, error) {
	var r EndRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	if r.Pivot {
		if e.state != "paused" || !e.job.Ready {
			e.t.Errorf("pivot of a domain that is %s, the job %+v", e.state, e.job)
		}
		e.source = e.raw
		after, err := xmlrewrite.Apply(e.definition(), xmlrewrite.LocalDisk{Target: "vda", Path: e.raw})
		if err != nil {
			return nil, err
		}
		e.xml = string(after.Bytes())
	}
	e.job = BlockJob{}
	return struct{}{}, nil
}

func (e *emulator) definition() *xmlrewrite.Document {
	e.t.Helper()
	doc, err := xmlrewrite.Parse([]byte(e.xml))
	if err != nil {
		e.t.Fatal(err)
	}
	return doc
}

// defined is running with a definition, as apply leaves it.
func defined(t *testing.T) *emulator {
	t.Helper()
	e := running(t)
	unbound := fmt.Sprintf("<domain type='kvm'><name>vm</name><uuid>%s</uuid><devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s/images/vda.raw'/><target dev='vda'/></disk></devices></domain>", testUUID, e.s.Host.Layout.Root)
	doc, err := xmlrewrite.Parse([]byte(unbound))
	if err != nil {
		t.Fatal(err)
	}
	written, err := bindings.Parse("flag", "vda:local=dir,fill=instant", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	r, err := e.s.Host.Rewrite(doc, written)
	if err != nil {
		t.Fatal(err)
	}
	e.xml = string(r.After.Bytes())
	return e
}

func (e *emulator) toRaw() error {
	return e.s.SettleRaw(e.t.Context(), testUUID, "vda", 7<<20, nil)
}

// dies is the end of the emulator, and what libvirt's release hook does then.
func (e *emulator) dies() {
	e.active, e.state, e.source, e.job = false, "shut off", "", BlockJob{}
	_ = os.RemoveAll(filepath.Join(e.s.Host.Layout.Links(), testUUID))
}

// starts is a start of the domain as it is defined now. It returns the format
// that the definition opens the disk as.
func (e *emulator) starts() (format string, err error) {
	e.t.Helper()
	d, bound, err := e.s.Host.Start(e.t.Context(), e.definition(), nil)
	if err != nil {
		return "", err
	}
	if _, err := e.s.Host.Fulfil(e.t.Context(), d, bound, 0); err != nil {
		return "", err
	}
	e.active, e.state, e.polls, e.run = true, "running", 3, e.run+1
	return d.Disks[0].Format, nil
}

// finds checks that a guest that opens the disk as that finds what it wrote.
func (e *emulator) finds(format string, last bool) {
	e.t.Helper()
	want := []byte(strings.Repeat("shared. ", 2<<20/8))
	for i := 1 << 20; i < 1<<20+64<<10; i++ {
		want[i] = 0x77
		if last {
			want[i+512<<10] = 0x78
		}
	}
	flat := filepath.Join(e.t.TempDir(), "flat")
	tool(e.t, "qemu-img", "convert", "-f", format, "-O", "raw", localdisk.StablePath(e.s.Host.Layout, testUUID, "vda"), flat)
	got, err := os.ReadFile(flat)
	if err != nil || !bytes.Equal(got, want) {
		e.t.Errorf("the disk is not what the guest wrote (%v)", err)
	}
}

// isRaw checks that all is as it has to be in the end.
func (e *emulator) isRaw() {
	e.t.Helper()
	all, err := localdisk.Receipts(e.s.Host.Layout, testUUID)
	if err != nil || len(all) != 1 || all[0].Overlay != nil || all[0].Pivot != nil || all[0].Fill != "start" {
		e.t.Fatalf("receipts %+v, %v", all, err)
	}
	disk, _ := e.definition().Disk("vda")
	m, err := e.definition().Metadata()
	if err != nil || disk.Driver.Type != "raw" || disk.Source.Path() != localdisk.StablePath(e.s.Host.Layout, testUUID, "vda") || m.Disks[0].Local.Fill != "start" {
		e.t.Errorf("the definition is\n%s", e.xml)
	}
	if e.active && e.state != "running" {
		e.t.Errorf("the domain is %s", e.state)
	}
	files, err := filepath.Glob(filepath.Join(e.s.Local.Config.Local.Dir, "*"))
	if err != nil || len(files) != 2 { // file and sidecar
		e.t.Errorf("left behind: %q", files)
	}
}

func TestSettleRaw(t *testing.T) {
	e := defined(t)
	if err := e.toRaw(); err != nil {
		t.Fatal(err)
	}
	e.isRaw()
	e.finds("raw", true)
	var order []string
	for _, verb := range e.answered {
		switch verb {
		case VerbBlockCopy, VerbSuspend, VerbBlockJobEnd, VerbDefine, VerbResume:
			order = append(order, verb)
		}
	}
	if got := strings.Join(order, " "); got != "blockcopy suspend blockjobend define resume" {
		t.Errorf("the order is %s", got)
	}
	if err := e.toRaw(); failure.KindOf(err) != failure.NotFound {
		t.Errorf("a second time: %v", err)
	}
	e.dies()
	format, err := e.starts()
	if err != nil || format != "raw" {
		t.Fatalf("%s, %v", format, err)
	}
	e.finds("raw", true)
}

// A guest that somebody paused is not resumed.
func TestSettleRawOfAPausedDomain(t *testing.T) {
	e := defined(t)
	e.state = "paused"
	if err := e.toRaw(); err != nil {
		t.Fatal(err)
	}
	if e.state != "paused" {
		t.Errorf("it is %s", e.state)
	}
	e.state = "running"
	e.isRaw()
	e.finds("raw", false)
}

// A pivot that fails leaves the guest running on its overlay.
func TestSettleRawWithoutPivot(t *testing.T) {
	e := defined(t)
	e.on = func(verb string) error {
		if verb == VerbBlockJobEnd {
			return failure.New(failure.Temporary, "not ready")
		}
		return nil
	}
	if err := e.toRaw(); err == nil || !strings.Contains(err.Error(), "not ready") {
		t.Fatalf("%v", err)
	}
	if e.state != "running" || e.source != "" {
		t.Errorf("the domain is %s on %q", e.state, e.source)
	}
	e.finds("qcow2", true)
	e.on = nil
	if err := e.toRaw(); err != nil {
		t.Fatal(err)
	}
	e.isRaw()
	e.finds("raw", true)
}

// While libvirt does not say what the guest runs on, or whether it runs at all,
// it stays suspended with a note, and the next call goes on.
func TestSettleRawWhileLibvirtDoesNotAnswer(t *testing.T) {
	silent := failure.New(failure.Temporary, "libvirt did not answer in time")
	for name, c := range map[string]struct {
		after  string // it does not answer any more once it was asked for that
		format string // of the disk meanwhile
	}{
		"after the pivot":  {VerbBlockJobEnd, "qcow2"},
		"after the resume": {VerbResume, "raw"},
	} {
		t.Run(name, func(t *testing.T) {
			e := defined(t)
			e.on = func(verb string) error {
				if slices.Contains(e.answered[:len(e.answered)-1], c.after) || verb == VerbResume {
					return silent
				}
				return nil
			}
			err := e.toRaw()
			if !errors.Is(err, failure.Temporary) || !strings.Contains(failure.Line(err), "suspended") {
				t.Errorf("%v", err)
			}
			all, err := localdisk.Receipts(e.s.Host.Layout, testUUID)
			if err != nil || all[0].Format() != c.format || all[0].Pivot == nil || all[0].Suspended == "" || e.state != "paused" {
				t.Fatalf("the domain is %s: %+v, %v", e.state, all, err)
			}
			e.on = nil
			if err := e.toRaw(); err != nil {
				t.Fatal(err)
			}
			e.isRaw()
			e.finds("raw", true)
		})
	}
}

// A domain that does not run is made raw without QEMU: nothing is asked of it.
func TestSettleRawOfAStoppedDomain(t *testing.T) {
	for name, settled := range map[string]bool{"on its source": false, "settled before": true} {
		t.Run(name, func(t *testing.T) {
			e := defined(t)
			source := filepath.Join(e.s.Host.Layout.Root, "images/vda.raw")
			e.dies()
			if settled {
				if err := e.settle(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(source); err != nil {
					t.Fatal(err)
				}
			}
			e.answered = nil
			var done int64
			if err := e.s.SettleRaw(t.Context(), testUUID, "vda", 0, func(n, _ int64) { done = n }); err != nil {
				t.Fatal(err)
			}
			if done != 2<<20 {
				t.Errorf("progress ended at %d", done)
			}
			for _, verb := range e.answered {
				if verb != VerbFacts && verb != VerbXML && verb != VerbDefine {
					t.Errorf("it asked for %s", verb)
				}
			}
			e.isRaw()
			if err := e.toRaw(); failure.KindOf(err) != failure.NotFound {
				t.Errorf("a second time: %v", err)
			}
			_ = os.Remove(source)
			if format, err := e.starts(); err != nil || format != "raw" {
				t.Fatalf("%s, %v", format, err)
			}
			e.finds("raw", false)
		})
	}
}

// What a stopped domain is refused for leaves its overlay and its definition as
// they are, and no raw copy.
func TestSettleRawOfAStoppedDomainRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		was  func(*emulator)
		kind *failure.Kind
		says []string
	}{
		"managed save": {func(e *emulator) { e.managed = true }, failure.Conflict, []string{"a managed save", "virsh start"}},
		"snapshot on top": {func(e *emulator) {
			after, err := xmlrewrite.Apply(e.definition(), xmlrewrite.LocalDisk{Target: "vda", Path: "/srv/snapshot.qcow2"})
			if err != nil {
				e.t.Fatal(err)
			}
			e.xml = string(after.Bytes())
		}, failure.Conflict, []string{"/srv/snapshot.qcow2", "virsh blockcommit vm vda", "virsh edit vm"}},
		"undefined": {func(e *emulator) {
			e.on = func(verb string) error {
				if verb == VerbFacts || verb == VerbXML {
					return failure.New(failure.NotFound, "no such domain")
				}
				return nil
			}
		}, failure.Precondition, []string{"is not defined", "virsh define"}},
		"open": {func(e *emulator) {
			f, err := os.Open(e.overlay)
			if err != nil {
				e.t.Fatal(err)
			}
			defer f.Close()
			holder := exec.Command("sleep", "60")
			holder.Stdin = f
			if err := holder.Start(); err != nil {
				e.t.Fatal(err)
			}
			e.t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
		}, failure.Conflict, []string{"it is open"}},
		"about to run": {func(e *emulator) {
			if _, err := e.starts(); err != nil {
				e.t.Fatal(err)
			}
			e.active, e.state = false, "shut off"
		}, failure.Conflict, []string{"leads to it", "run this again once the domain runs"}},
		"its source is gone": {func(e *emulator) {
			if err := os.Rename(filepath.Join(e.s.Host.Layout.Root, "images"), filepath.Join(e.s.Host.Layout.Root, "away")); err != nil {
				e.t.Fatal(err)
			}
			e.t.Cleanup(func() {
				_ = os.Rename(filepath.Join(e.s.Host.Layout.Root, "away"), filepath.Join(e.s.Host.Layout.Root, "images"))
			})
		}, failure.NotFound, []string{"cannot be read", "bring that storage back"}},
		"no room": {func(e *emulator) { e.s.Local.Config.Local.Reserve = 1 << 60 }, failure.NoSpace, []string{"bytes are needed"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := defined(t)
			e.dies()
			c.was(e)
			definition := e.xml
			err := e.toRaw()
			if failure.KindOf(err) != c.kind {
				t.Fatalf("%v", err)
			}
			for _, words := range c.says {
				if !strings.Contains(failure.Line(err), words) {
					t.Errorf("%q is missing in %q", words, failure.Line(err))
				}
			}
			if e.xml != definition {
				t.Errorf("the definition was changed:\n%s", e.xml)
			}
			if left, err := filepath.Glob(filepath.Join(e.s.Local.Config.Local.Dir, "*_raw*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %q, %v", left, err)
			}
			if name == "its source is gone" {
				return
			}
			e.settled(false)
		})
	}
}

func TestSettleRawRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		was  func(*emulator)
		kind *failure.Kind
		says string
	}{
		"another job": {func(e *emulator) { e.job = BlockJob{Type: "backup"} }, failure.Conflict, "virsh blockjob"},
		"snapshot":    {func(e *emulator) { e.source = "/srv/snapshot" }, failure.Conflict, "virsh blockcommit"},
	} {
		t.Run(name, func(t *testing.T) {
			e := defined(t)
			c.was(e)
			err := e.toRaw()
			if failure.KindOf(err) != c.kind || !strings.Contains(failure.Line(err), c.says) {
				t.Errorf("%v", err)
			}
			e.settled(false)
		})
	}
}
