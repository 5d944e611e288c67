// SPDX-License-Identifier: Apache-2.0

package libvirt_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/hooks/libvirt"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

func TestMain(m *testing.M) { os.Exit(hooktest.Main(m)) }

// bind is the plain domain with bindings as a flag has them.
func bind(t *testing.T, w *hooktest.World, text string) []byte {
	t.Helper()
	written, err := bindings.Parse("--bind", text, bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := xmlrewrite.Parse(w.Fixture("hooks/plain.xml"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := w.Host.Rewrite(doc, written)
	if err != nil {
		t.Fatal(err)
	}
	return r.After.Bytes()
}

func fake(t *testing.T) (*hooktest.World, *hooktest.Local) {
	local := &hooktest.Local{Err: map[string]error{}}
	w := hooktest.New(t, local)
	local.Layout, local.Config = w.Layout, w.Config
	return w, local
}

const id = hooktest.UUID

// TestOperations walks over every operation of libvirt's qemu hook, and some
// that it does not have yet.
func TestOperations(t *testing.T) {
	for _, c := range []struct {
		op, sub, extra string
		calls          []string
		refused        bool
	}{
		{"prepare", "begin", "-", []string{"fulfil vda=dir vdb=dir deadline=20s"}, false},
		{"start", "begin", "-", []string{"owner vdb 64055:64056"}, false},
		{"started", "begin", "-", nil, false},
		{"stopped", "end", "-", nil, false},
		{"release", "end", "-", []string{"release " + id + " vda=dir vdb=dir reason=\"\"", "release-rest " + id}, false},
		{"release", "end", "shutdown", []string{"release " + id + " vda=dir vdb=dir reason=\"shutdown\"", "release-rest " + id}, false},
		{"release", "end", "from snapshot", []string{"release " + id + " vda=dir vdb=dir reason=\"from snapshot\"", "release-rest " + id}, false},
		{"migrate", "begin", "-", nil, true},
		{"restore", "begin", "-", []string{"observe vda=dir vdb=dir"}, false},
		{"reconnect", "begin", "-", []string{"fulfil vda=dir vdb=dir deadline=10s"}, false},
		{"attach", "begin", "-", nil, false},
		{"suspend", "begin", "-", nil, false}, // of a libvirt to come
		{"prepare", "end", "-", nil, false},
		{"", "", "", nil, false},
	} {
		t.Run(c.op+" "+c.sub+" "+c.extra, func(t *testing.T) {
			w, local := fake(t)
			xml := bind(t, w, "local=dir")
			target := w.Write("node", "")
			for _, disk := range []string{"vda", "vdb"} {
				link := localdisk.StablePath(w.Layout, id, disk)
				if err := errors.Join(os.MkdirAll(w.Path("run/diskhook/disks/"+id), 0o755), os.Symlink(target+disk, link), os.WriteFile(target+disk, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			stdout, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: c.op, SubOp: c.sub, Extra: c.extra, Stdin: xml})
			if len(stdout) != 0 {
				t.Errorf("stdout %q", stdout)
			}
			if (err != nil) != c.refused {
				t.Errorf("refused: %v", err)
			}
			want := c.calls
			if c.op == "start" {
				want = []string{"owner nodevdb 64055:64056"}
			}
			if diff := cmp.Diff(want, local.Calls); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestUnboundDomains are never touched, whatever their XML is and whatever
// they are called.
func TestUnboundDomains(t *testing.T) {
	w, local := fake(t)
	plain := w.Fixture("hooks/plain.xml")
	w.Config.Rules = []host.Rule{{Name: "*", Binding: "local=dir"}} // for rewrite and apply alone
	w.Write("etc/diskhook/diskhook.toml", "broken [[[")
	w.Write("var/lib/diskhook/receipts", "a file where a directory should be")
	for name, xml := range map[string][]byte{
		"plain":     plain,
		"empty":     nil,
		"not XML":   []byte("<<<<"),
		"DTD bomb":  []byte(`<!DOCTYPE x [<!ENTITY a "b">]><domain>&a;</domain>`),
		"huge":      append(bytes.Repeat([]byte(" "), 17<<20), plain...),
		"not UTF-8": []byte("<domain>\xff</domain>"),
		"oVirt's":   w.Fixture("vdsm/engine.xml"),
	} {
		for _, domain := range []string{"vm", "-rf", "../x", "a\nb", ""} {
			for _, op := range []string{"prepare", "start", "release", "migrate", "restore", "reconnect"} {
				sub := "begin"
				if op == "release" {
					sub = "end"
				}
				stdout, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: domain, Op: op, SubOp: sub, Extra: "-", Stdin: xml})
				if err != nil || stdout != nil {
					t.Errorf("%s %q %s: %q, %v", name, domain, op, stdout, err)
				}
			}
		}
	}
	if len(local.Calls) != 0 {
		t.Errorf("storage was asked: %q", local.Calls)
	}
}

// TestNeverFails: a failing reconnect kills a running machine.
func TestNeverFails(t *testing.T) {
	w, local := fake(t)
	xml := bind(t, w, "local=dir")
	local.Err["fulfil"] = errors.New("no storage")
	local.Err["release"] = errors.New("no storage")
	for name, stdin := range map[string][]byte{
		"storage fails": xml,
		"a clone":       bytes.ReplaceAll(xml, []byte("<uuid>69"), []byte("<uuid>70")),
		"damaged":       bytes.Replace(xml, []byte("<dh:disk target='vda'"), []byte("<dh:disk"), 1),
		"cut off":       xml[:len(xml)-20],
	} {
		for _, c := range []libvirt.Call{{Op: "reconnect", SubOp: "begin"}, {Op: "release", SubOp: "end"}} {
			c.Stdin = stdin
			if stdout, err := libvirt.Run(t.Context(), w.Host, c); err != nil || stdout != nil {
				t.Errorf("%s: %s: %v", name, c.Op, err)
			}
		}
	}
	// What forbids a start must not end a domain that runs.
	w.Write("var/lib/diskhook/receipts/"+id+"/vda.json", "damaged")
	plain := w.Fixture("hooks/plain.xml")
	for op, want := range map[[2]string]bool{{"prepare", "begin"}: true, {"restore", "begin"}: true, {"stopped", "end"}: false, {"release", "end"}: false, {"reconnect", "begin"}: false} {
		if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Op: op[0], SubOp: op[1], Stdin: plain}); (err != nil) != want {
			t.Errorf("a damaged receipt: %s: %v", op[0], err)
		}
	}
	w.Local = panicking{local}
	if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Op: "reconnect", SubOp: "begin", Stdin: xml}); err != nil {
		t.Error(err)
	}
}

type panicking struct{ *hooktest.Local }

func (panicking) Fulfil(context.Context, []localdisk.Disk, localdisk.Waiting) ([]localdisk.Placement, error) {
	panic("out of range")
}

// TestReconnectMakesNoCopy: the domain runs, so its copy must be there.
func TestReconnectMakesNoCopy(t *testing.T) {
	w, local := fake(t)
	w.Chain("images")
	xml := bind(t, w, "vda:local=dir,fill=start")
	run := func(op string) bool {
		if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Op: op, SubOp: "begin", Stdin: xml}); err != nil {
			t.Fatal(err)
		}
		return local.Asked[0].Create
	}
	if !run("prepare") || run("reconnect") {
		t.Error("prepare may make a copy, reconnect may not")
	}
}

func TestRefusals(t *testing.T) {
	w, _ := fake(t)
	xml := bind(t, w, "local=lvm")
	clone := bytes.ReplaceAll(xml, []byte("<uuid>69"), []byte("<uuid>70"))
	for name, c := range map[string]struct {
		op    string
		stdin []byte
		words []string
	}{
		"migrate":           {"migrate", xml, []string{"domain vm", "disk vda", "local export vm vda"}},
		"migrate a clone":   {"migrate", clone, []string{"cannot be migrated"}},
		"prepare a clone":   {"prepare", clone, []string{"domain rebind vm"}},
		"restore a clone":   {"restore", clone, []string{"domain rebind vm"}},
		"start a clone":     {"start", clone, []string{"domain rebind vm"}},
		"malformed":         {"prepare", xml[:len(xml)-5], []string{"domain -rf", "`virsh edit -- -rf`"}},
		"too large":         {"prepare", append(xml, bytes.Repeat([]byte(" "), 16<<20)...), []string{"16 MiB"}},
		"damaged, migrates": {"migrate", bytes.Replace(xml, []byte("target='vda' serial"), []byte("serial"), 1), []string{"domain unbind vm"}},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "-rf", Op: c.op, SubOp: "begin", Extra: "-", Stdin: c.stdin})
			if err == nil || stdout != nil {
				t.Fatalf("%q, %v", stdout, err)
			}
			line := failure.Line(err)
			for _, word := range c.words {
				if !strings.Contains(line, word) {
					t.Errorf("line %q lacks %q", line, word)
				}
			}
			if failure.HintOf(err) == "" {
				t.Errorf("no way out: %q", line)
			}
		})
	}
}

// TestMalformed names the command for whatever libvirt takes for a name.
func TestMalformed(t *testing.T) {
	w, _ := fake(t)
	xml := bind(t, w, "local=lvm")
	for name, command := range map[string]string{
		"vm": "`virsh edit vm`", "my vm": "`virsh edit 'my vm'`", "-c": "`virsh edit -- -c`",
	} {
		_, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: name, Op: "prepare", SubOp: "begin", Stdin: xml[:len(xml)-5]})
		if err == nil || !strings.Contains(failure.Line(err), command) {
			t.Errorf("%s: %v, not %s", name, err, command)
		}
	}
}

func TestOwners(t *testing.T) {
	for name, c := range map[string]struct {
		change [2]string
		calls  []string
	}{
		"vdb says no":       {[2]string{"<name>", "<name>"}, []string{"owner vdb.raw 64055:64056"}},
		"SELinux says no":   {[2]string{"<seclabel model='dac' relabel='no'/>", "<seclabel model='selinux' relabel='no'/>"}, nil},
		"no model says no":  {[2]string{"<seclabel model='dac' relabel='no'/>", "<seclabel relabel='no'/>"}, []string{"owner vdb.raw 64055:64056"}},
		"domain unlabelled": {[2]string{"model='dac' relabel='yes'>", "model='dac' relabel='no'>"}, nil},
		"no numbers":        {[2]string{"+64055:+64056", "qemu:qemu"}, nil},
		"none":              {[2]string{"<imagelabel>+64055:+64056</imagelabel>", ""}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, local := fake(t)
			xml := bytes.ReplaceAll(bind(t, w, "local=dir"), []byte(c.change[0]), []byte(c.change[1]))
			node := w.Write("vdb.raw", "")
			if err := errors.Join(os.MkdirAll(w.Path("run/diskhook/disks/"+id), 0o755), os.Symlink(node, localdisk.StablePath(w.Layout, id, "vdb"))); err != nil {
				t.Fatal(err)
			}
			if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Op: "start", SubOp: "begin", Stdin: xml}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.calls, local.Calls); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLife takes a domain with real copies through libvirt's order of calls:
// a failed start, a start, the end, and once more.
func TestLife(t *testing.T) {
	w := hooktest.New(t, nil)
	xml := bind(t, w, "vda:local=dir,fill=start,on-stop=discard")
	stable := localdisk.StablePath(w.Layout, id, "vda")
	call := func(op, sub, extra string) error {
		stdout, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: op, SubOp: sub, Extra: extra, Stdin: xml})
		if stdout != nil {
			t.Errorf("%s: stdout %q", op, stdout)
		}
		return err
	}
	there := func(path string) bool { _, err := os.Lstat(path); return err == nil }

	if err := call("prepare", "begin", "-"); err == nil || !strings.Contains(failure.Line(err), "top.qcow2") {
		t.Fatalf("started without its source: %v", err)
	}
	for _, op := range []string{"stopped", "release"} {
		if err := call(op, "end", "failed"); err != nil {
			t.Fatal(err)
		}
	}
	if files := w.Files("var/lib/diskhook/local"); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
	want := w.Chain("images")
	w.Write("images/data.raw", "x")
	for _, step := range []struct {
		op, sub, extra string
		link, copied   bool
	}{
		{"prepare", "begin", "-", true, true},
		{"prepare", "begin", "-", true, true}, // twice is harmless
		{"start", "begin", "-", true, true},
		{"started", "begin", "-", true, true},
		{"reconnect", "begin", "-", true, true},
		{"stopped", "end", "-", true, true},
		{"release", "end", "saved", false, true}, // discard, but the domain was saved
		{"restore", "begin", "-", false, true},
		{"prepare", "begin", "-", true, true},
		{"release", "end", "crashed", false, true},
		{"release", "end", "shutdown", false, true}, // not after a fulfil
		{"prepare", "begin", "-", true, true},
		{"release", "end", "shutdown", false, false},
		{"release", "end", "shutdown", false, false},
	} {
		if err := call(step.op, step.sub, step.extra); err != nil {
			t.Fatalf("%s %s: %v", step.op, step.extra, err)
		}
		if got := there(stable); got != step.link {
			t.Errorf("after %s %s: link %v", step.op, step.extra, got)
		}
		if got := there(w.Path("var/lib/diskhook/local/dh_" + id + "_vda.raw")); got != step.copied {
			t.Errorf("after %s %s: copy %v", step.op, step.extra, got)
		}
		if step.op == "start" {
			if got, err := os.ReadFile(stable); err != nil || !bytes.HasPrefix(got, want) {
				t.Errorf("content: %v", err)
			}
			if err := os.Remove(stable); err != nil { // reconnect makes it again
				t.Fatal(err)
			}
			if err := call("reconnect", "begin", "-"); err != nil || !there(stable) {
				t.Errorf("link not made again: %v", err)
			}
		}
	}
}

// TestUnpluggedDiskIsReleased: the domain ends without a disk that it had when
// it started. Its copy stays, its link goes.
func TestUnpluggedDiskIsReleased(t *testing.T) {
	w := hooktest.New(t, nil)
	w.Chain("images")
	w.Write("images/data.raw", strings.Repeat("x", 4096))
	both := bind(t, w, "vda:local=dir,fill=start;vdb:local=dir,fill=start")
	call := func(op, sub string, xml []byte) {
		t.Helper()
		if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: op, SubOp: sub, Extra: "-", Stdin: xml}); err != nil {
			t.Fatalf("%s: %v", op, failure.Line(err))
		}
	}
	call("prepare", "begin", both)
	call("release", "end", bind(t, w, "vda:local=dir,fill=start"))
	for _, target := range []string{"vda", "vdb"} {
		if _, err := os.Lstat(localdisk.StablePath(w.Layout, id, target)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: its link: %v", target, err)
		}
		if _, err := os.Lstat(w.Path("var/lib/diskhook/local/dh_" + id + "_" + target + ".raw")); err != nil {
			t.Errorf("%s: its copy: %v", target, err)
		}
	}
}

// TestSnapshotKeepsItsCopy: whatever on-stop says, a copy with a snapshot on
// top is neither given up nor made anew below it.
func TestSnapshotKeepsItsCopy(t *testing.T) {
	w := hooktest.New(t, nil)
	xml := bind(t, w, "vda:local=dir,fill=start,on-stop=discard")
	w.Chain("images")
	stable, file := localdisk.StablePath(w.Layout, id, "vda"), w.Path("var/lib/diskhook/local/dh_"+id+"_vda.raw")
	call := func(op, sub, extra string) error {
		_, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Op: op, SubOp: sub, Extra: extra, Stdin: xml})
		return err
	}
	if err := call("prepare", "begin", "-"); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	whole := xml
	snapshot := w.Path("images/vm.snap")
	w.Tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", stable, snapshot)
	xml = bytes.Replace(xml, []byte("type='raw' cache"), []byte("type='qcow2' cache"), 1)
	xml = bytes.Replace(xml, []byte("<source file='"+stable), []byte("<source file='"+snapshot), 1)
	for _, step := range [][3]string{{"release", "end", "shutdown"}, {"prepare", "begin", "-"}, {"release", "end", "destroyed"}, {"prepare", "begin", "-"}} {
		if err := call(step[0], step[1], step[2]); err != nil {
			t.Fatalf("%v: %v", step, err)
		}
		if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
			t.Fatalf("after %v: %v, the copy is another", step, err)
		}
		if _, err := os.Lstat(stable); (err == nil) != (step[0] == "prepare") {
			t.Errorf("after %v: the link: %v", step, err)
		}
	}
	if err := call("release", "end", "shutdown"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(w.Path("var/lib/diskhook/receipts/"+id+"/vda.json")), os.Remove(file)); err != nil {
		t.Fatal(err)
	}
	err = call("prepare", "begin", "-")
	if line := failure.Line(err); failure.KindOf(err) != failure.Conflict || !strings.Contains(line, snapshot) || !strings.Contains(line, "local adopt vm vda") {
		t.Errorf("with the copy lost: %v", err)
	}
	if err := call("release", "end", "failed"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a fresh copy was made below a snapshot")
	}

	// Once it is merged, on-stop=discard means what it says again.
	xml = whole
	for _, step := range [][3]string{{"prepare", "begin", "-"}, {"release", "end", "shutdown"}} {
		if err := call(step[0], step[1], step[2]); err != nil {
			t.Fatalf("%v: %v", step, err)
		}
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("not discarded")
	}
}

// TestRestore: memory that was saved by the operator (`virsh save`) meets the
// copy that it was saved with, or is refused.
func TestRestore(t *testing.T) {
	for name, c := range map[string]struct {
		between [][3]string // what libvirt called after the save
		harm    func(w *hooktest.World) error
		words   []string // of the refusal; none: restored
	}{
		"at once":   {nil, nil, nil},
		"discarded": {[][3]string{{"prepare", "begin", "-"}, {"release", "end", "shutdown"}}, nil, []string{"disk vda", "is gone", "virsh start vm", "managedsave-remove vm"}},
		"made anew": {[][3]string{{"prepare", "begin", "-"}, {"release", "end", "shutdown"}}, prestage, []string{"disk vda", "made since", "virsh start vm"}},
		"copy lost": {nil, func(w *hooktest.World) error {
			return os.Remove(w.Path("var/lib/diskhook/local/dh_" + id + "_vda.raw"))
		}, []string{"disk vda", "is gone", "bring the file or its file system back"}},
		"kept": {[][3]string{{"prepare", "begin", "-"}, {"release", "end", "crashed"}}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := hooktest.New(t, nil)
			w.Chain("images")
			xml := bind(t, w, "vda:local=dir,fill=start,on-stop=discard")
			call := func(op, sub, extra string) error {
				_, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Domain: "vm", Op: op, SubOp: sub, Extra: extra, Stdin: xml})
				return err
			}
			for _, step := range append([][3]string{{"prepare", "begin", "-"}, {"release", "end", "saved"}}, c.between...) {
				if err := call(step[0], step[1], step[2]); err != nil {
					t.Fatal(err)
				}
			}
			if c.harm != nil {
				if err := c.harm(w); err != nil {
					t.Fatal(err)
				}
			}
			before := w.Files("var/lib/diskhook")
			err := call("restore", "begin", "-")
			if (err != nil) != (c.words != nil) {
				t.Fatalf("%v", err)
			}
			for _, word := range c.words {
				if line := failure.Line(err); !strings.Contains(line, word) {
					t.Errorf("line %q lacks %q", line, word)
				}
			}
			for _, op := range []string{"stopped", "release"} {
				if err := call(op, "end", "failed"); err != nil {
					t.Errorf("%s after it: %v", op, err)
				}
			}
			if diff := cmp.Diff(before, w.Files("var/lib/diskhook")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// prestage makes the copy that the bound domain lacks, as the verb does.
func prestage(w *hooktest.World) error {
	doc, err := xmlrewrite.Parse(bind(w.TB.(*testing.T), w, "vda:local=dir,fill=start,on-stop=discard"))
	if err != nil {
		return err
	}
	d, bound, err := w.Start(w.Context(), doc, nil)
	if err != nil {
		return err
	}
	disks, err := w.LocalDisks(w.Context(), d, bound)
	if err != nil {
		return err
	}
	return w.Service.Prestage(w.Context(), disks, localdisk.Waiting{})
}

// TestDomainOfOVirt is VDSM's to look after: its disks lie in copies, and have
// receipts, but its XML has no binding.
func TestDomainOfOVirt(t *testing.T) {
	w, local := fake(t)
	const image, volume = "c9865ca8-f6d2-4363-bec2-af870a87a819", "1dfad482-c65c-436c-aa59-87e020b63302"
	w.Receipt(localdisk.Receipt{Image: image, Volume: volume, Used: true})
	for op, sub := range map[string]string{"prepare": "begin", "start": "begin", "reconnect": "begin", "restore": "begin", "release": "end"} {
		if _, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Op: op, SubOp: sub, Stdin: w.Fixture("vdsm/engine.xml")}); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	if len(local.Calls) != 0 || strings.Contains(w.Log.String(), "level=ERROR") {
		t.Errorf("%q\n%s", local.Calls, w.Log)
	}
}

func TestDeadlineIsTheConfigured(t *testing.T) {
	w, local := fake(t)
	w.Config.Local.Deadline = 3_000_000_000
	xml := bind(t, w, "local=dir")
	local.Err["fulfil"] = failure.Hint(failure.New(failure.Temporary, "at 10 %%"), "start again then")
	_, err := libvirt.Run(t.Context(), w.Host, libvirt.Call{Op: "prepare", SubOp: "begin", Stdin: xml})
	if failure.KindOf(err) != failure.Temporary || failure.HintOf(err) != "start again then" {
		t.Errorf("%v", err)
	}
	if want := "fulfil vda=dir vdb=dir deadline=" + (3 * time.Second).String(); local.Calls[0] != want {
		t.Errorf("%q", local.Calls)
	}
}

// FuzzRun: no XML makes the hook panic or print, and none without our
// namespace is ever refused.
func FuzzRun(f *testing.F) {
	f.Add("prepare", []byte("<domain type='kvm'><name>x</name><uuid>"+id+"</uuid></domain>"))
	f.Add("migrate", []byte("<domain><metadata><d:disks xmlns:d='urn:diskhook:1' domain=''><d:disk target='vda'><d:local/></d:disk></d:disks></metadata></domain>"))
	f.Add("start", []byte("<domain><seclabel model='dac'><imagelabel>+1:+1</imagelabel></seclabel></domain>"))
	f.Add("restore", []byte("<!DOCTYPE x><domain/>"))
	local := &hooktest.Local{}
	w := hooktest.New(f, local)
	f.Fuzz(func(t *testing.T, op string, xml []byte) {
		stdout, err := libvirt.Run(context.Background(), w.Host, libvirt.Call{Domain: "x", Op: op, SubOp: "begin", Extra: "-", Stdin: xml})
		if stdout != nil || err != nil && !bytes.Contains(xml, []byte("urn:")) {
			t.Errorf("%q, %v", stdout, err)
		}
		if err != nil && strings.ContainsAny(failure.Line(err), "\n\x1b") {
			t.Errorf("line %q", failure.Line(err))
		}
	})
}
