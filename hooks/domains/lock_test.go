// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
)

// While one verb is between its look at a definition and the end of its work,
// no other verb on the domain does anything.
func TestVerbsOnOneDomainDoNotInterleave(t *testing.T) {
	for name, second := range map[string]func(context.Context, *Service, *Plan) error{
		"revert": func(ctx context.Context, s *Service, p *Plan) error { return s.Revert(ctx, p, nil) },
		"apply":  func(ctx context.Context, s *Service, p *Plan) error { return s.Apply(ctx, p, localdisk.Waiting{}) },
		"unbind": func(ctx context.Context, s *Service, p *Plan) error { return s.Unbind(ctx, p) },
		"remove": func(ctx context.Context, s *Service, p *Plan) error {
			return s.Remove(ctx, testUUID, "vda", localdisk.GiveUp{DiscardGuestData: true})
		},
		"recreate": func(ctx context.Context, s *Service, p *Plan) error {
			disk := localdisk.Disk{Domain: testUUID, DomainName: "vm", Target: "vda", Backend: "dir", OnStop: localdisk.Keep}
			return s.Recreate(ctx, disk, localdisk.GiveUp{DiscardGuestData: true}, localdisk.Waiting{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			libvirt := &oneDomain{xml: boundTo(root, testMachine, "", "vda", "vdb")}
			s := testService(t, root, libvirt)
			setCopy(t, s, "vda", false)
			plan := func() *Plan {
				p, err := s.PlanRevert(t.Context(), "vm", []string{"vdb"}, GivingUp{})
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			first, other := plan(), plan()
			tried := false
			libvirt.defined = func() {
				libvirt.defined, tried = nil, true
				was := libvirt.xml
				err := second(t.Context(), s, other)
				if failure.KindOf(err) != failure.Temporary || !strings.Contains(err.Error(), "another diskhook works on") || failure.HintOf(err) == "" {
					t.Errorf("got %v", err)
				}
				if libvirt.xml != was || !exists(copyPath(s, "vda")) {
					t.Error("it did something")
				}
			}
			if err := s.Revert(t.Context(), first, nil); err != nil || !tried {
				t.Fatalf("the first verb: %v, %v", err, tried)
			}
		})
	}
}

// Who waits for a verb that binds disks is not told that this is on its own domain, of
// which it may be anything but.
func TestAnotherDomainIsBound(t *testing.T) {
	root := t.TempDir()
	s := testService(t, root, nil)
	s.use(&oneDomain{xml: bare(root+"/images/vda.raw", "raw")})
	write(t, root+"/images/vda.raw", strings.Repeat("x", 4096))
	s.Host.Config.Local.Reserve, s.Local.Config.Local.Reserve = 0, 0
	bind, err := bindings.Parse("--local", "vda:local=dir,fill=start", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.PlanApply(t.Context(), "vm", bind, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.Host.Layout.Locks(), 0o755); err != nil {
		t.Fatal(err)
	}
	held, err := lock.Try(s.Host.Layout.Locks(), "bind")
	if err != nil {
		t.Fatal(err)
	}
	err = s.Apply(t.Context(), p, localdisk.Waiting{})
	refusedWith(t, err, failure.Temporary, "another diskhook binds disks of a domain of this host", "run this again")
	if !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) || strings.Contains(err.Error(), "its definition") {
		t.Error(err)
	}
	held.Release()
	if err := s.Apply(t.Context(), p, localdisk.Waiting{}); err != nil {
		t.Error(err)
	}
}

// A plan is for the definition that it was made from, whether or not it
// changes that.
func TestPlanForAnotherDefinition(t *testing.T) {
	root := t.TempDir()
	libvirt := &oneDomain{xml: boundTo(root, testMachine, "", "vda")}
	s := testService(t, root, libvirt)
	s.Host.Config.Local.Reserve, s.Local.Config.Local.Reserve = 0, 0
	write(t, root+"/images/vda.raw", strings.Repeat("x", 4096))
	fills, err := s.PlanApply(t.Context(), "vm", nil, false)
	if err != nil || fills.Redefines() || len(fills.Fill) != 1 {
		t.Fatalf("%v, %+v", err, fills)
	}
	back, err := s.PlanRevert(t.Context(), "vm", nil, GivingUp{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Revert(t.Context(), back, nil); err != nil {
		t.Fatal(err)
	}
	was := libvirt.xml
	refusedWith(t, s.Apply(t.Context(), fills, localdisk.Waiting{}), failure.Temporary, "its definition changed while this worked on it", "run this again")
	if jobs, _ := filepath.Glob(s.Host.Layout.Status() + "/*/*.job"); libvirt.xml != was || len(jobs) > 0 {
		t.Errorf("it went on: %v\n%s", jobs, libvirt.xml)
	}
}

// A copy process that was just started has only its job. It is waited for; one
// that said nothing for long is taken for dead, and does nothing if it is not.
func TestCopyThatHasNotBegun(t *testing.T) {
	for name, tc := range map[string]struct {
		age  time.Duration
		busy bool
	}{
		"just started": {time.Second, true},
		"silent":       {time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			libvirt := &oneDomain{xml: boundTo(root, testMachine, "", "vda")}
			s := testService(t, root, libvirt)
			job := filepath.Join(s.Host.Layout.Status(), testUUID, "vda.aaaaaaaa-1111-2222-3333-444444444444.job")
			disk := `{"domain":"` + testUUID + `","target":"vda","backend":"dir","on_stop":"keep","create":true}`
			write(t, job, `{"id":"aaaaaaaa-1111-2222-3333-444444444444","disk":`+disk+`}`)
			other := filepath.Join(filepath.Dir(job), "vdaa.aaaaaaaa-1111-2222-3333-444444444444.job")
			write(t, other, "{}")
			then := time.Now().Add(-tc.age)
			if err := os.Chtimes(job, then, then); err != nil {
				t.Fatal(err)
			}
			p, err := s.PlanRevert(t.Context(), "vm", nil, GivingUp{})
			if tc.busy {
				refusedWith(t, err, failure.Temporary, "its local copy is being made", "run this again")
				_, err := s.PlanUnbind(t.Context(), "vm", false)
				refusedWith(t, err, failure.Temporary, "its local copy is being made", "run this again")
				if !exists(job) {
					t.Error("its job is gone")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			late, err := os.ReadFile(job)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Revert(t.Context(), p, nil); err != nil {
				t.Fatal(err)
			}
			if exists(job) || !exists(other) {
				t.Error("its job is still there, or that of another disk is not")
			}
			// It has read its job, and waits for the lock, when that is withdrawn.
			write(t, job, string(late))
			held, err := lock.Try(s.Host.Layout.Locks(), "local-"+testUUID+"-vda")
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			go func() { ended <- s.Local.Fill(t.Context(), job) }()
			time.Sleep(200 * time.Millisecond)
			if err := s.Local.Withdraw(testUUID, "vda"); err != nil {
				t.Error(err)
			}
			held.Release()
			if err := <-ended; !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the process goes on: %v", err)
			}
			if exists(copyPath(s, "vda")) {
				t.Error("it made a copy")
			}
		})
	}
}

// Where nobody can tell whether a domain runs or has saved memory, its copies
// stay as they are; where there is no libvirt, nobody has to.
func TestNoAnswerFromLibvirt(t *testing.T) {
	const image = "aaaaaaaa-1111-2222-3333-444444444444"
	silent := failure.New(failure.Precondition, "libvirt qemu:///system: no answer")
	for name, tc := range map[string]struct {
		uri, key string
		file     string // below the root
		err      error
		managed  bool
		refused  *failure.Kind
	}{
		"it answers":                    {uri: HostURI, key: "vda"},
		"it has a managed save":         {uri: HostURI, key: "vda", managed: true, refused: failure.Conflict},
		"it does not know the domain":   {uri: HostURI, key: "vda", err: failure.New(failure.NotFound, "no such domain")},
		"none is named":                 {uri: "", key: "vda", err: silent},
		"an image of oVirt":             {uri: HostURI, key: image, err: silent, file: "run/libvirt/libvirt-sock"},
		"nothing of libvirt is there":   {uri: HostURI, key: "vda", err: silent},
		"its networks alone are":        {uri: HostURI, key: "vda", err: silent, file: "etc/libvirt/qemu/networks/default.xml"},
		"libvirtd's socket is there":    {uri: HostURI, key: "vda", err: silent, file: "run/libvirt/libvirt-sock", refused: failure.Precondition},
		"virtqemud's socket is there":   {uri: HostURI, key: "vda", err: silent, file: "run/libvirt/virtqemud-sock", refused: failure.Precondition},
		"a definition is there":         {uri: HostURI, key: "vda", err: silent, file: "etc/libvirt/qemu/other.xml", refused: failure.Precondition},
		"another connection is named":   {uri: "qemu+ssh://elsewhere/system", key: "vda", err: silent, refused: failure.Precondition},
		"its answer is an odd one":      {uri: HostURI, key: "vda", err: errors.New("odd"), file: "etc/libvirt/qemu/other.xml", refused: nil},
		"the daemon is busy for a time": {uri: "test:///x", key: "vda", err: failure.New(failure.Temporary, "busy"), refused: failure.Temporary},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := testService(t, root, &oneDomain{xml: boundTo(root, testMachine, "", "vda"), broken: tc.err, managed: tc.managed})
			s.Libvirt.URI = tc.uri
			setCopy(t, s, "vda", true)
			if tc.file != "" {
				write(t, filepath.Join(root, tc.file), "")
			}
			odd := tc.err != nil && failure.KindOf(tc.err) == nil
			err := s.MayChange(t.Context(), testUUID, tc.key)
			if failure.KindOf(err) != tc.refused || (err != nil) != (tc.refused != nil || odd) {
				t.Fatalf("got %v, want %v", err, tc.refused)
			}
			_, _, state := s.State(t.Context(), testUUID, tc.key)
			if (state != nil) != (err != nil && !tc.managed) {
				t.Errorf("state: %v", state)
			}
			if err == nil {
				return
			}
			if !strings.Contains(failure.HintOf(err), "then run this again") && !tc.managed {
				t.Errorf("no way out: %s", failure.Line(err))
			}
			if err := s.Remove(t.Context(), testUUID, tc.key, localdisk.GiveUp{DiscardGuestData: true}); err == nil || !exists(copyPath(s, "vda")) {
				t.Errorf("the copy is removed all the same: %v", err)
			}
		})
	}
}

// A copy that the definition names is the domain's, also where its metadata
// are lost.
func TestCopyThatIsNotBoundKeepsItsMemory(t *testing.T) {
	root := t.TempDir()
	s := testService(t, root, nil)
	s.use(&oneDomain{xml: bare(localdisk.StablePath(s.Host.Layout, testUUID, "vda"), "raw"), managed: true})
	setCopy(t, s, "vda", true)
	err := s.Remove(t.Context(), testUUID, "vda", localdisk.GiveUp{DiscardGuestData: true})
	refusedWith(t, err, failure.Conflict, "it has a managed save", "virsh managedsave-remove vm")
	if !exists(copyPath(s, "vda")) {
		t.Error("the copy is gone")
	}
}
