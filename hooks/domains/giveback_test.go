// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
)

const (
	testUUID    = "11111111-2222-3333-4444-555555555555"
	testMachine = "0123456789abcdef0123456789abcdef"
)

// oneDomain is diskhook-domain for one domain that is shut off.
type oneDomain struct {
	xml     string
	defined func()  // called after each define
	others  []Facts // domains that are there, too
	broken  error   // of every call
	managed bool    // it has a managed save
}

func (o *oneDomain) Run(_ context.Context, cmd command.Cmd) (command.Result, error) {
	if o.broken != nil {
		return command.Result{}, o.broken
	}
	if cmd.Stdin == nil {
		return command.Result{}, fmt.Errorf("%s: this host has no such program", cmd.Name)
	}
	request, err := io.ReadAll(cmd.Stdin)
	if err != nil {
		return command.Result{}, err
	}
	facts := Facts{Name: "vm", UUID: testUUID, State: "shut off", Persistent: true, ManagedSave: o.managed}
	var answer any = facts
	switch verb := cmd.Args[len(cmd.Args)-1]; verb {
	case VerbXML:
		answer = Definition{o.xml}
	case VerbDefine:
		var d Definition
		if err := json.Unmarshal(request, &d); err != nil {
			return command.Result{}, err
		}
		o.xml = d.XML
		if o.defined != nil {
			o.defined()
		}
	case VerbFacts:
	case VerbVersion:
		answer = Version{Daemon: 9_000_000, QEMU: 7_002_000}
	case VerbList:
		answer = List{Domains: append([]Facts{facts}, o.others...)}
	default:
		return command.Result{}, fmt.Errorf("unexpected %s", verb)
	}
	b, err := json.Marshal(answer)
	return command.Result{Stdout: b}, err
}

// ofDisk is the XML of one bound disk: its metadata, and the disk.
func ofDisk(root, target, machine, copied string) (entry, disk string) {
	path := fmt.Sprintf("%s/run/diskhook/disks/%s/%s", root, testUUID, target)
	origin := fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s/images/%s.raw'/></disk>", root, target)
	entry = fmt.Sprintf("<dh:disk target='%s' source='%s'><dh:local backend='dir' fill='now' on-stop='keep'%s host='%s'/><dh:origin>%s</dh:origin></dh:disk>", target, path, copied, machine, origin)
	disk = fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='threads'/><source file='%s'/><target dev='%s'/></disk>\n", path, target)
	return entry, disk
}

func boundTo(root, machine, copied string, targets ...string) string {
	var entries, disks string
	for _, target := range targets {
		entry, disk := ofDisk(root, target, machine, copied)
		entries, disks = entries+entry, disks+disk
	}
	return fmt.Sprintf("<domain type='kvm'><name>vm</name><uuid>%[1]s</uuid><metadata><dh:disks xmlns:dh='urn:diskhook:1' domain='%[1]s'>%[2]s</dh:disks></metadata><devices>\n%[3]s</devices></domain>", testUUID, entries, disks)
}

// use makes libvirt what the service asks.
func (s *Service) use(libvirt *oneDomain) { s.Libvirt.Run, s.Local.Run = libvirt, libvirt }

func testService(t *testing.T, root string, libvirt *oneDomain) *Service {
	t.Helper()
	write(t, filepath.Join(root, "etc/machine-id"), testMachine+"\n")
	layout := host.Layout{Root: root}
	config := host.Defaults(layout)
	config.Paths.Roots = []string{filepath.Join(root, "images")}
	log := slog.New(slog.DiscardHandler)
	local := &localdisk.Service{Layout: layout, Config: config, Run: libvirt, Log: log, Program: "/nonexistent"}
	return &Service{
		Libvirt: &Client{Run: libvirt, Program: "diskhook-domain", URI: "test:///default"},
		Host:    &bindings.Host{Layout: layout, Config: config, Log: log, Local: bindings.Direct(local)},
		Local:   local,
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func copyPath(s *Service, target string) string {
	return filepath.Join(s.Local.Config.Local.Dir, "dh_"+testUUID+"_"+target+".raw")
}

// setCopy makes a ready copy of a disk, with its receipt. What more says is
// part of that, too.
func setCopy(t *testing.T, s *Service, target string, used bool, more ...any) {
	t.Helper()
	copied := "aaaaaaaa-0000-0000-0000-0000000000" + fmt.Sprintf("%02x", target[2])
	write(t, copyPath(s, target), strings.Repeat(target, 1024))
	side := fmt.Sprintf(`{"schema":"diskhook.copy/v1","uuid":%q,"tags":["VM_%s","DH_v1"]}`, copied, testUUID)
	write(t, strings.TrimSuffix(copyPath(s, target), ".raw")+".json", side)
	receipt := fmt.Sprintf(`{"schema":"diskhook.receipt/v1","domain":%q,"domain_name":"vm","target":%q,"backend":"dir","name":"dh_%s_%s","copy":%q,"home":%q,"on_stop":"keep","size":3072,"machine":%q,"used":%v}`,
		testUUID, target, testUUID, target, copied, s.Local.Config.Local.Dir, testMachine, used)
	receipt = strings.TrimSuffix(receipt, "}")
	for i := 0; i < len(more); i += 2 {
		value, err := json.Marshal(more[i+1])
		if err != nil {
			t.Fatal(err)
		}
		receipt += fmt.Sprintf(",%q:%s", more[i], value)
	}
	write(t, filepath.Join(s.Host.Layout.Receipts(), testUUID, target+".json"), receipt+"}")
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// A guest that used a copy after the plan was made keeps its data: before the
// definition changes nothing happens, and after it the disk is bound again.
func TestRevertGivesUpOnlyWhatWasSaid(t *testing.T) {
	for name, tc := range map[string]struct {
		discard      bool
		before       string // this disk is used between plan and definition
		after        string // this disk is used once it is defined anew
		want         *failure.Kind
		bound, files []string
	}{
		"nobody used them":           {},
		"used before":                {before: "vdb", want: failure.Temporary, bound: []string{"vda", "vdb"}, files: []string{"vda", "vdb"}},
		"used before, but discarded": {before: "vdb", discard: true},
		"the first used after":       {after: "vda", want: failure.Conflict, bound: []string{"vda", "vdb"}, files: []string{"vda", "vdb"}},
		"the second used after":      {after: "vdb", want: failure.Conflict, bound: []string{"vdb"}, files: []string{"vdb"}},
		"used after, but discarded":  {after: "vdb", discard: true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			libvirt := &oneDomain{xml: boundTo(root, testMachine, "", "vda", "vdb")}
			s := testService(t, root, libvirt)
			setCopy(t, s, "vda", false)
			setCopy(t, s, "vdb", false)
			p, err := s.PlanRevert(t.Context(), "vm", nil, GivingUp{DiscardGuestData: tc.discard})
			if err != nil {
				t.Fatal(err)
			}
			if tc.before != "" {
				setCopy(t, s, tc.before, true)
			}
			libvirt.defined = func() {
				if libvirt.defined = nil; tc.after != "" {
					setCopy(t, s, tc.after, true)
				}
			}
			err = s.Revert(t.Context(), p, nil)
			if failure.KindOf(err) != tc.want || (err == nil) != (tc.want == nil) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if err != nil && failure.HintOf(err) == "" {
				t.Errorf("no way out of %v", err)
			}
			d, err := s.Look(t.Context(), "vm")
			if err != nil {
				t.Fatal(err)
			}
			var bound, files []string
			for _, target := range []string{"vda", "vdb"} {
				disk, _ := d.Disk(target)
				want := root + "/images/" + target + ".raw"
				if d.entry(target) != nil {
					bound = append(bound, target)
					want = localdisk.StablePath(s.Host.Layout, testUUID, target)
				}
				if disk.Path != want {
					t.Errorf("disk %s is %s, want %s", target, disk.Path, want)
				}
				if exists(copyPath(s, target)) {
					files = append(files, target)
				}
			}
			if diff := cmp.Diff(tc.bound, bound); diff != "" {
				t.Errorf("bound: %s", diff)
			}
			if diff := cmp.Diff(tc.files, files); diff != "" {
				t.Errorf("copies: %s", diff)
			}
		})
	}
}

// A copy that was interrupted goes with the binding, and what tells how far it
// got: the domain runs on the source from now on. Neither goes while somebody is
// at work, nor do those of a disk that stays bound.
func TestRevertRemovesUnfinishedCopies(t *testing.T) {
	root := t.TempDir()
	libvirt := &oneDomain{xml: boundTo(root, testMachine, "", "vda", "vdb", "vdc")}
	s := testService(t, root, libvirt)
	files := map[string][2]string{}
	for _, target := range []string{"vda", "vdb", "vdc"} {
		setCopy(t, s, target, false)
		partial := copyPath(s, target) + ".partial"
		if err := os.Rename(copyPath(s, target), partial); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(s.Host.Layout.Receipts(), testUUID, target+".json")); err != nil {
			t.Fatal(err)
		}
		cursor := filepath.Join(s.Host.Layout.Cursors(), "aaaaaaaa-0000-0000-0000-0000000000"+fmt.Sprintf("%02x", target[2]))
		write(t, cursor, "{}")
		files[target] = [2]string{partial, cursor}
	}
	p, err := s.PlanRevert(t.Context(), "vm", []string{"vda", "vdb"}, GivingUp{})
	if err != nil {
		t.Fatal(err)
	}
	libvirt.defined = func() {
		held, err := lock.Try(s.Host.Layout.Locks(), "local-"+testUUID+"-vdb")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { held.Release() })
	}
	if err := s.Revert(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	for target, stays := range map[string]bool{"vda": false, "vdb": true, "vdc": true} {
		for _, file := range files[target] {
			if exists(file) != stays {
				t.Errorf("disk %s: %s is there: %v, want %v", target, file, !stays, stays)
			}
		}
	}
}

// The domain goes on with the file that its disk was exported to; going back
// to the origin would hide what the guest wrote.
func TestExportedDiskIsDefined(t *testing.T) {
	origin := "<disk type='block' device='disk'><driver name='qemu' type='qcow2' cache='%s' discard='unmap'><metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache></driver><source dev='/dev/shared/a'/><backingStore type='file'><format type='raw'/><source file='/images/base.raw'/><backingStore/></backingStore></disk>"
	for name, tc := range map[string]struct{ file, cache, want string }{
		"raw": {"/images/new.raw", "writeback",
			"<disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback' discard='unmap'/><source file='/images/new.raw'/><target dev='vda'/></disk>"},
		"qcow2": {"/images/new.qcow2", "none",
			"<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap'><metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache></driver><source file='/images/new.qcow2'/><target dev='vda'/></disk>"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			xml := boundTo(root, testMachine, "", "vda")
			at := strings.Index(xml, "<dh:origin>") + len("<dh:origin>")
			xml = xml[:at] + fmt.Sprintf(origin, tc.cache) + xml[strings.Index(xml, "</dh:origin>"):]
			s := testService(t, root, &oneDomain{xml: xml})
			setCopy(t, s, "vda", true)
			p, err := s.PlanRevert(t.Context(), "vm", nil, GivingUp{Export: map[string]string{"": tc.file}})
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("<domain type='kvm'><name>vm</name><uuid>%s</uuid><devices>\n%s\n</devices></domain>", testUUID, tc.want)
			if diff := cmp.Diff(want, string(p.After.Bytes())); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"disk vda is " + tc.file + " now, with what the guest wrote"}, p.Outcome()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A revert that ended between definition and removal goes on with the same
// command: the file is not written again, and the disk stays on it.
func TestRevertGoesOnAfterItsExport(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "images/new.raw")
	xml := fmt.Sprintf("<domain type='kvm'><name>vm</name><uuid>%s</uuid><devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vda'/></disk></devices></domain>", testUUID, file)
	libvirt := &oneDomain{xml: xml}
	s := testService(t, root, libvirt)
	setCopy(t, s, "vda", true)
	g := GivingUp{Export: map[string]string{"": file}}
	if p, err := s.PlanRevert(t.Context(), "vm", nil, g); err != nil || len(p.Exports) != 1 {
		t.Fatalf("without the file: %v", err)
	}
	write(t, file, "what the guest wrote")
	p, err := s.PlanRevert(t.Context(), "vm", nil, g)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Revert(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "what the guest wrote" {
		t.Errorf("the file: %q, %v", content, err)
	}
	if exists(copyPath(s, "vda")) || libvirt.xml != xml {
		t.Errorf("the copy is there, or the definition changed: %s", libvirt.xml)
	}
}

func TestExportNeedsACopyAndANewFile(t *testing.T) {
	root := t.TempDir()
	s := testService(t, root, &oneDomain{xml: boundTo(root, testMachine, "", "vda", "vdb")})
	setCopy(t, s, "vda", true)
	there := filepath.Join(root, "there.raw")
	write(t, there, "")
	for name, tc := range map[string]struct {
		export map[string]string
		want   *failure.Kind
	}{
		"no copy":             {map[string]string{"vda": "/new.raw", "vdb": "/b.raw"}, failure.NotFound},
		"the file exists":     {map[string]string{"vda": there}, failure.Conflict},
		"no absolute path":    {map[string]string{"vda": "new.raw"}, failure.Usage},
		"one file for two":    {map[string]string{"vda": "/new.raw", "vdb": "/new.raw"}, failure.Usage},
		"the other is unused": {map[string]string{"vda": "/new.raw"}, nil},
	} {
		if _, err := s.PlanRevert(t.Context(), "vm", nil, GivingUp{Export: tc.export}); failure.KindOf(err) != tc.want || (err == nil) != (tc.want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

// A definition that was moved here tells of copies that are not here: going
// on without them is going back to older data.
func TestMovedDefinitionNeedsAWord(t *testing.T) {
	const other = "fedcba9876543210fedcba9876543210"
	const copied = " copy='aaaaaaaa-0000-0000-0000-000000000001'"
	for name, tc := range map[string]struct{ machine, copied string }{
		"from another machine":             {other, copied},
		"before its copy was noted":        {other, ""},
		"of this machine, without receipt": {testMachine, copied},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			libvirt := &oneDomain{xml: boundTo(root, tc.machine, tc.copied, "vda")}
			s := testService(t, root, libvirt)
			write(t, root+"/images/vda.raw", strings.Repeat("x", 4096))
			for verb, plan := range map[string]func(discard bool) (*Plan, error){
				"unbind": func(discard bool) (*Plan, error) { return s.PlanUnbind(t.Context(), "vm", discard) },
				"rebind": func(discard bool) (*Plan, error) { return s.PlanRebind(t.Context(), "vm", discard) },
			} {
				_, err := plan(false)
				if failure.KindOf(err) != failure.Precondition {
					t.Errorf("%s: got %v", verb, err)
				}
				if want := "`diskhook domain " + verb + " --discard-guest-data vm`"; !strings.Contains(failure.HintOf(err), want) {
					t.Errorf("%s: hint %q, want %s", verb, failure.HintOf(err), want)
				}
				p, err := plan(true)
				if err != nil {
					t.Errorf("%s on the operator's word: %v", verb, err)
					continue
				}
				after, err := bindings.ReadDomain(p.After)
				if err != nil {
					t.Fatal(err)
				}
				switch disk, _ := after.Disk("vda"); {
				case verb == "unbind" && (after.Metadata != nil || disk.Path != root+"/images/vda.raw"):
					t.Errorf("unbound: %s", p.After.Bytes())
				case verb == "rebind" && (after.Metadata.Disks[0].Local.Host != testMachine || after.Metadata.Disks[0].Local.Copy != "" || len(p.Fill) != 1):
					t.Errorf("rebound: %s", p.After.Bytes())
				}
			}
		})
	}
}

// What a clone's metadata say of copies is not about the clone.
func TestCloneIsUnboundWithoutAWord(t *testing.T) {
	root := t.TempDir()
	xml := strings.Replace(boundTo(root, "fedcba9876543210fedcba9876543210", "", "vda"), "domain='"+testUUID, "domain='22222222-2222-3333-4444-555555555555", 1)
	s := testService(t, root, &oneDomain{xml: xml})
	if p, err := s.PlanUnbind(t.Context(), "vm", false); err != nil || !p.Redefines() {
		t.Errorf("got %v", err)
	}
}
