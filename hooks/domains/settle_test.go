// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// emulator is diskhook-domain for one domain that may run. Its block job reads
// with the real programs, as QEMU would.
type emulator struct {
	t        *testing.T
	s        *Service
	overlay  string
	source   string // what the running disk is; "" is its stable path
	active   bool
	run      int  // of those that there were
	managed  bool // it has a managed save
	state    string
	job      BlockJob
	xml      string // its definition
	raw      string // what it is mirrored into
	polls    int    // of the job, until it ends
	gives    bool   // it ends without an end
	on       func(verb string) error
	answered []string
	in       context.Context // of the last call
	timeout  time.Duration
}

func (e *emulator) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	if cmd.Name != "diskhook-domain" {
		return command.System{}.Run(ctx, cmd)
	}
	request, err := io.ReadAll(cmd.Stdin)
	if err != nil {
		return command.Result{}, err
	}
	verb := cmd.Args[len(cmd.Args)-1]
	e.answered, e.in, e.timeout = append(e.answered, verb), ctx, cmd.Timeout
	if e.on != nil {
		if err := e.on(verb); err != nil {
			return command.Result{}, err
		}
	}
	answer, err := e.answer(verb, request)
	if err != nil {
		return command.Result{}, err
	}
	b, err := json.Marshal(answer)
	return command.Result{Stdout: b}, err
}

func (e *emulator) answer(verb string, request []byte) (any, error) {
	if verb != VerbFacts && verb != VerbXML && verb != VerbDefine && !e.active {
		return nil, failure.New(failure.Conflict, "the domain does not run")
	}
	switch verb {
	case VerbFacts:
		f := Facts{Name: "vm", UUID: testUUID, State: e.state, Active: e.active, Persistent: true, ManagedSave: e.managed}
		if e.active {
			f.Run = fmt.Sprint("run ", e.run)
		}
		return f, nil
	case VerbLive:
		source := e.source
		if source == "" {
			source = localdisk.StablePath(e.s.Host.Layout, testUUID, "vda")
		}
		return Definition{fmt.Sprintf("<domain type='kvm'><name>vm</name><uuid>%s</uuid><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda'/></disk></devices></domain>", testUUID, source)}, nil
	case VerbBlockPull:
		var r PullRequest
		if err := json.Unmarshal(request, &r); err != nil || r != (PullRequest{testUUID, "vda", 7 << 20}) {
			e.t.Errorf("block pull of %+v, %v", r, err)
		}
		e.job = BlockJob{Type: PullJob, Total: 100}
	case VerbBlockJob:
		if e.job.Type == CopyJob {
			e.mirror()
			return e.job, nil
		}
		if e.job.Type == PullJob {
			if e.polls--; e.polls > 0 {
				e.job.Done += 10
				return e.job, nil
			}
			e.job = BlockJob{}
			if !e.gives {
				e.read()
			}
		}
		return e.job, nil
	case VerbBlockJobEnd:
		return e.end(request)
	case VerbXML, VerbDefine, VerbBlockCopy, VerbSuspend, VerbResume:
		return e.answerRaw(verb, request)
	case VerbFlush:
		return Flushed{Flushed: e.state == "running", State: e.state}, nil
	default:
		return nil, fmt.Errorf("unexpected %s", verb)
	}
	return struct{}{}, nil
}

// read reads the source in and takes it out of the header.
func (e *emulator) read() {
	e.t.Helper()
	tool(e.t, "qemu-io", "-f", "qcow2", "-C", "-c", "read -q 0 2M", "-c", "flush", e.overlay)
	tool(e.t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", e.overlay)
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// running is a domain that runs on an overlay with 64 KiB of its own.
func running(t *testing.T) *emulator {
	t.Helper()
	root := t.TempDir()
	e := &emulator{t: t, active: true, state: "running", polls: 3}
	e.s = testService(t, root, nil)
	e.s.Libvirt.Run, e.s.Local.Run = e, e
	e.s.Local.Config.Local.Reserve = 0
	source := filepath.Join(root, "images/vda.raw")
	write(t, source, strings.Repeat("shared. ", 2<<20/8))
	disk := localdisk.Disk{
		Domain: testUUID, DomainName: "vm", Target: "vda", Backend: "dir", OnStop: localdisk.Keep, Create: true, Instant: true,
		Source: []imagecheck.Layer{{Path: source, Format: "raw"}},
	}
	job, err := json.Marshal(localdisk.Job{ID: "1", Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "job"), string(job))
	if err := e.s.Local.Fill(t.Context(), filepath.Join(root, "job")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.s.Local.Fulfil(t.Context(), []localdisk.Disk{disk}, localdisk.Waiting{}); err != nil {
		t.Fatal(err)
	}
	e.overlay = strings.TrimSuffix(copyPath(e.s, "vda"), ".raw") + ".qcow2"
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 0x77 1M 64k", e.overlay)
	return e
}

func (e *emulator) settle(ctx context.Context) error {
	return e.s.Settle(ctx, testUUID, "vda", 7<<20, nil)
}

// settled checks what the receipt says, and that the disk is what it was.
func (e *emulator) settled(want bool) {
	e.t.Helper()
	all, err := localdisk.Receipts(e.s.Host.Layout, testUUID)
	if err != nil || len(all) != 1 {
		e.t.Fatalf("receipts %+v, %v", all, err)
	}
	if all[0].Unsettled() == want {
		e.t.Errorf("receipt %+v", all[0].Overlay)
	}
	expected := []byte(strings.Repeat("shared. ", 2<<20/8))
	for i := 1 << 20; i < 1<<20+64<<10; i++ {
		expected[i] = 0x77
	}
	flat := e.overlay + ".flat"
	if !want {
		// As a start would: what the receipt needs is below it.
		tool(e.t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", all[0].Source[0].Path, "-F", "raw", e.overlay)
	} else if err := os.Rename(all[0].Source[0].Path, all[0].Source[0].Path+".away"); err != nil {
		e.t.Fatal(err)
	}
	tool(e.t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", e.overlay, flat)
	got, err := os.ReadFile(flat)
	if err != nil {
		e.t.Fatal(err)
	}
	if !slices.Equal(got, expected) {
		e.t.Error("the disk is not what the guest wrote, on what was shared")
	}
}

// The mark comes after QEMU has written out what it knows.
func TestSettleRunning(t *testing.T) {
	e := running(t)
	e.on = func(verb string) error {
		if all, _ := localdisk.Receipts(e.s.Host.Layout, testUUID); !all[0].Unsettled() {
			t.Errorf("it is settled before %s", verb)
		}
		return nil
	}
	if err := e.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{VerbFacts, VerbFacts, VerbLive, VerbBlockJob, VerbBlockPull, VerbBlockJob, VerbBlockJob, VerbBlockJob, VerbFacts, VerbFlush}
	if diff := cmp.Diff(want, e.answered); diff != "" {
		t.Error(diff)
	}
	e.settled(true)
	if err := e.settle(t.Context()); failure.KindOf(err) != failure.NotFound {
		t.Errorf("a second time: %v", err)
	}
}

// One that was killed goes on: with the job that it started, or after it.
func TestSettleGoesOn(t *testing.T) {
	for name, c := range map[string]struct {
		was  func(*emulator)
		want []string
	}{
		"in the middle": {func(e *emulator) { e.job = BlockJob{Type: PullJob, Total: 100} }, []string{VerbFacts, VerbFacts, VerbLive, VerbBlockJob, VerbBlockJob, VerbBlockJob, VerbFacts, VerbFlush}},
		"at its end":    {func(e *emulator) { e.read() }, []string{VerbFacts, VerbFacts, VerbLive, VerbFacts, VerbFlush}},
	} {
		t.Run(name, func(t *testing.T) {
			e := running(t)
			c.was(e)
			if err := e.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, e.answered); diff != "" {
				t.Error(diff)
			}
			e.settled(true)
		})
	}
}

// A domain that stops is settled without QEMU.
func TestSettleFollowsADomainThatStops(t *testing.T) {
	for _, at := range []string{VerbLive, VerbBlockPull, VerbBlockJob, VerbFlush} {
		t.Run(at, func(t *testing.T) {
			e := running(t)
			e.on = func(verb string) error {
				if verb == at {
					e.active, e.state = false, "shut off"
				}
				return nil
			}
			if err := e.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			e.settled(true)
		})
	}
}

// What forbids to settle, and that it leaves the source where it is.
func TestSettleRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		was  func(*emulator)
		kind *failure.Kind
		says []string
	}{
		"paused":        {func(e *emulator) { e.state = "paused" }, failure.Temporary, []string{"the domain is paused", "virsh resume"}},
		"given up":      {func(e *emulator) { e.gives = true }, failure.Temporary, []string{"QEMU gave up reading its source", "virsh domblkerror", "diskhook local settle"}},
		"another job":   {func(e *emulator) { e.job = BlockJob{Type: "backup"} }, failure.Conflict, []string{"a block job (backup)", "virsh blockjob"}},
		"on a snapshot": {func(e *emulator) { e.source = "/srv/snapshot.qcow2" }, failure.Conflict, []string{"/srv/snapshot.qcow2", "virsh blockcommit"}},
		"managed save":  {func(e *emulator) { e.active, e.state, e.managed = false, "shut off", true }, failure.Conflict, []string{"a managed save", "virsh start"}},
		"with saved memory": {func(e *emulator) {
			if err := localdisk.MarkSaved(e.s.Host.Layout, testUUID); err != nil {
				e.t.Fatal(err)
			}
		}, failure.Conflict, []string{"saved memory"}},
		"not flushed": {func(e *emulator) {
			e.on = func(verb string) error {
				if verb == VerbFlush {
					return failure.New(failure.Temporary, "no answer")
				}
				return nil
			}
		}, nil, []string{"no answer"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := running(t)
			c.was(e)
			err := e.settle(t.Context())
			if err == nil || c.kind != nil && failure.KindOf(err) != c.kind {
				t.Fatalf("got %v", err)
			}
			for _, words := range c.says {
				if !strings.Contains(failure.Line(err), words) {
					t.Errorf("%q is missing in %q", words, failure.Line(err))
				}
			}
			e.settled(false)
		})
	}
}

// Stopped by a signal or by `local cancel`, it ends what QEMU does.
func TestSettleIsStopped(t *testing.T) {
	e := running(t)
	e.polls = 1 << 20
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Second, cancel)
	if err := e.settle(ctx); err == nil {
		t.Fatal("it came to an end")
	}
	if last := e.answered[len(e.answered)-1]; last != VerbBlockJobEnd || e.job.Type != "" {
		t.Errorf("the last call is %s, the job %+v", last, e.job)
	}
	e.settled(false)
}

// A flush that is cut off while the domain is suspended is nobody's who could
// resume it but the next call's; that somebody stops it does not cut it off.
func TestSettleResumesWhatAFlushSuspended(t *testing.T) {
	e := running(t)
	ctx, cancel := context.WithCancel(t.Context())
	silent := failure.New(failure.Temporary, "libvirt did not answer in time")
	e.on = func(verb string) error {
		switch {
		case verb == VerbFlush:
			if cancel(); e.in.Err() != nil {
				t.Error("who stops the settling kills the flush")
			}
			if left := e.timeout; left < 5*time.Minute {
				t.Errorf("the flush is killed after %v", left)
			}
			e.state = "paused"
			return silent
		case slices.Contains(e.answered, VerbFlush):
			return silent
		}
		return nil
	}
	if err := e.settle(ctx); err == nil {
		t.Fatal("it came to an end")
	}
	e.on = nil
	if err := e.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e.state != "running" {
		t.Errorf("the domain is %s", e.state)
	}
	e.settled(true)
	if all, err := localdisk.Receipts(e.s.Host.Layout, testUUID); err != nil || all[0].Suspended != "" {
		t.Errorf("receipts %+v, %v", all, err)
	}
}

// What was left suspended was one run of the domain. Whoever pauses the next one
// means it, whether its start went through the hook or not.
func TestSettleResumesNoOtherRun(t *testing.T) {
	for name, restarts := range map[string]func(*emulator){
		"started by the hook": func(e *emulator) {
			e.dies()
			d := localdisk.Disk{Domain: testUUID, DomainName: "vm", Target: "vda", Backend: "dir", OnStop: localdisk.Keep, Instant: true}
			if _, err := e.s.Local.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{}); err != nil {
				t.Fatal(err)
			}
			if all, err := localdisk.Receipts(e.s.Host.Layout, testUUID); err != nil || all[0].Suspended != "" {
				t.Errorf("the note outlived the run: %+v, %v", all, err)
			}
			e.active = true // as the run that was, by libvirt's number
		},
		"not released": func(e *emulator) { e.run++ },
	} {
		t.Run(name, func(t *testing.T) {
			e := running(t)
			e.on = func(verb string) error {
				if slices.Contains(e.answered, VerbFlush) {
					e.state = "paused"
					return failure.New(failure.Temporary, "libvirt did not answer in time")
				}
				return nil
			}
			if err := e.settle(t.Context()); err == nil {
				t.Fatal("it came to an end")
			}
			if all, err := localdisk.Receipts(e.s.Host.Layout, testUUID); err != nil || all[0].Suspended != "run 0" {
				t.Fatalf("receipts %+v, %v", all, err)
			}
			restarts(e)
			e.state, e.on, e.answered = "paused", nil, nil
			err := e.settle(t.Context())
			if failure.KindOf(err) != failure.Temporary || !strings.Contains(failure.Line(err), "the domain is paused") {
				t.Errorf("%v", err)
			}
			if e.state != "paused" || slices.Contains(e.answered, VerbResume) {
				t.Errorf("the operator's pause was ended: %v", e.answered)
			}
			if all, err := localdisk.Receipts(e.s.Host.Layout, testUUID); err != nil || all[0].Suspended != "" {
				t.Errorf("receipts %+v, %v", all, err)
			}
			e.settled(false)
		})
	}
}
