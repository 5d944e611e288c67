// SPDX-License-Identifier: Apache-2.0

package membership

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
)

func TestEvidence(t *testing.T) {
	for _, s := range []string{"fence-agent:fence_ipmilan succeeded at 2026-11-22T06:00:00Z", "sanlock:host id 3 is dead", "operator:its name was typed at noon"} {
		e, err := ParseEvidence(s)
		if err != nil || e.String() != s {
			t.Errorf("%q: %q, %v", s, e, err)
		}
	}
	for _, s := range []string{
		"", "the host is dead", "lease:it ran out", "etcd:lease expired", "fence-agent", "fence-agent:", "sanlock: ", "operator:two\nlines",
		"operator:" + strings.Repeat("x", maxEvidence+1),
	} {
		_, err := ParseEvidence(s)
		if !errors.Is(err, failure.Usage) || failure.HintOf(err) == "" {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestTyped(t *testing.T) {
	e, err := Typed("alpha", "alpha\n", "noon")
	if err != nil || e != (Evidence{Operator, "its name was typed at noon"}) {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := ParseEvidence(e.String()); err != nil {
		t.Error(err)
	}
	for _, typed := range []string{"", "y\n", "yes", "alph", "ALPHA", "alpha beta"} {
		if e, err := Typed("alpha", typed, "noon"); !errors.Is(err, failure.Conflict) || e != (Evidence{}) {
			t.Errorf("%q: %v, %v", typed, e, err)
		}
	}
}

func TestFenceCommand(t *testing.T) {
	f := Fence{Command: []string{"/usr/sbin/fence", "--off", "node={host}"}, Seconds: 7}
	var timeout time.Duration
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
		{Prefix: "/usr/sbin/fence --off node=alpha", Do: func(c command.Cmd) { timeout = c.Timeout }},
		{Prefix: "/usr/sbin/fence --off node=beta", Code: 1, Stderr: "no answer"},
	}}
	e, err := f.Host(t.Context(), run, "alpha")
	if err != nil || e.Kind != FenceAgent || !strings.HasPrefix(e.Text, "fence succeeded at 20") {
		t.Errorf("%v, %v", e, err)
	}
	if timeout != 7*time.Second {
		t.Errorf("time limit %v", timeout)
	}
	if e, err := f.Host(t.Context(), run, "beta"); err == nil || e != (Evidence{}) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("%v, %v", e, err)
	}
	for _, command := range [][]string{nil, {"fence", HostMark}, {"/usr/sbin/fence"}, {"/usr/sbin/fence", "--off"}} {
		run := &commandtest.Runner{T: t}
		if _, err := (Fence{Command: command}).Host(t.Context(), run, "alpha"); !errors.Is(err, failure.Precondition) || len(run.Lines()) != 0 {
			t.Errorf("%q: %v, ran %q", command, err, run.Lines())
		}
	}
}

func TestCommands(t *testing.T) {
	run := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
		{Prefix: "/usr/bin/diskhook thin membership", Stdout: `{"cluster":"lun","host":"alpha","epoch":41,"master":false}`},
		{Prefix: "/usr/bin/diskhook thin on-master --cluster lun --epoch 7", Code: 4, Stderr: "stale"},
		{Prefix: "/usr/bin/diskhook thin on-"},
	}}
	c := Commands{Run: run, Program: "/usr/bin/diskhook", Cluster: "lun"}
	for _, err := range []error{
		c.OnJoin(t.Context()), c.OnMaster(t.Context(), 42), c.OnFenced(t.Context(), "beta", 42, Evidence{FenceAgent, "it said off"}),
		c.OnDemoted(t.Context()), c.OnLeave(t.Context()),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := c.OnMaster(t.Context(), 7); !errors.Is(err, failure.Conflict) {
		t.Errorf("a stale epoch: %v", err)
	}
	if epoch, err := c.Epoch(t.Context()); epoch != 41 || err != nil {
		t.Errorf("epoch %d, %v", epoch, err)
	}
	want := []string{
		"/usr/bin/diskhook thin on-join --cluster lun",
		"/usr/bin/diskhook thin on-master --cluster lun --epoch 42",
		"/usr/bin/diskhook thin on-fenced --cluster lun --epoch 42 --evidence 'fence-agent:it said off' -- beta",
		"/usr/bin/diskhook thin on-demoted --cluster lun",
		"/usr/bin/diskhook thin on-leave --cluster lun",
		"/usr/bin/diskhook thin on-master --cluster lun --epoch 7",
		"/usr/bin/diskhook thin membership --cluster lun --output json",
	}
	if diff := cmp.Diff(want, run.Lines()); diff != "" {
		t.Error(diff)
	}
}
