// SPDX-License-Identifier: Apache-2.0

package privileged_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/hooks/privileged"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/quorum"
)

var _ bindings.Quorum = (*privileged.Client)(nil).Quorum()

// TestQuorum: what VDSM's user asks for arrives, the socket is given to QEMU at
// once, and errors keep their kind and their way out.
func TestQuorum(t *testing.T) {
	w, server := newServer(t)
	sets := &hooktest.Quorum{Layout: w.Layout, Err: map[string]error{}, Sets: map[string]quorum.Set{"db": hooktest.Set("db")}}
	server.Quorum = sets
	runner := &loop{Server: server}
	client := privileged.NewClient(runner, w.Layout, w.Config).Quorum()
	use := bindings.QuorumUse{
		Set: "db", Domain: domain, DomainName: "vm", Target: "sda", Key: image,
		Former: []imagecheck.Layer{{Path: "/rhev/data-center/top", Format: "qcow2"}, {Path: "/rhev/data-center/base", Format: "raw"}},
	}

	got, err := client.Definition("db")
	if diff := cmp.Diff(sets.Sets["db"], got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if _, err := client.Definition("nosuch"); failure.KindOf(err) != failure.NotFound || !strings.Contains(failure.HintOf(err), "quorum list") {
		t.Errorf("%v", err)
	}
	if plan, err := client.Plan(t.Context(), use); err != nil || plan.Text != "serve it" {
		t.Errorf("%+v, %v", plan, err)
	}
	endpoint, err := client.Start(t.Context(), use, time.Minute)
	if err != nil || endpoint.Socket != quorum.SocketPath(w.Layout, "db") || endpoint.Export != "db" {
		t.Errorf("%+v, %v", endpoint, err)
	}
	if err := client.Stop(t.Context(), use); err != nil {
		t.Error(err)
	}
	if err := client.StopRest(t.Context(), domain); err != nil {
		t.Error(err)
	}
	o := owner()
	want := []string{"plan db sda", "start db sda 1m0s", "own db sda " + labelText(o.UID, o.GID), "stop db sda", "stop-rest " + domain}
	if diff := cmp.Diff([]bindings.QuorumUse{use}, sets.Used); diff != "" {
		t.Error("started: ", diff)
	}
	if diff := cmp.Diff(want, trimmed(sets.Calls)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"sudo", "-n", privileged.Helper, "quorum", "definition"}, runner.argv[0]); diff != "" {
		t.Error(diff)
	}

	// One that cannot be given to QEMU does not stay.
	sets.Calls, sets.Err["own"] = nil, failure.New(failure.Precondition, "no")
	if _, err := client.Start(t.Context(), use, 0); err == nil {
		t.Error("it was started")
	}
	if last := sets.Calls[len(sets.Calls)-1]; last != "stop db sda" {
		t.Errorf("last: %s", last)
	}
}

func TestQuorumLies(t *testing.T) {
	w, server := newServer(t)
	sets := &hooktest.Quorum{Layout: w.Layout, Sets: map[string]quorum.Set{"db": hooktest.Set("db")}}
	server.Quorum = sets
	client := privileged.NewClient(&loop{Server: server}, w.Layout, w.Config).Quorum()
	good := bindings.QuorumUse{Set: "db", Domain: domain, Target: "sda", Key: image}
	for name, lie := range map[string]func(*bindings.QuorumUse){
		"domain": func(u *bindings.QuorumUse) { u.Domain = "../../etc" },
		"target": func(u *bindings.QuorumUse) { u.Target = "../sda" },
		"key":    func(u *bindings.QuorumUse) { u.Key = "../../passwd" },
		"a chain without end": func(u *bindings.QuorumUse) {
			u.Former = make([]imagecheck.Layer, imagecheck.MaxLayers+1)
		},
		"long name": func(u *bindings.QuorumUse) { u.DomainName = strings.Repeat("x", 2000) },
	} {
		u := good
		lie(&u)
		if _, err := client.Start(t.Context(), u, 0); failure.KindOf(err) != failure.Usage {
			t.Errorf("%s: %v", name, err)
		}
		if err := client.Stop(t.Context(), u); failure.KindOf(err) != failure.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := client.StopRest(t.Context(), "../../etc"); failure.KindOf(err) != failure.Usage {
		t.Errorf("the rest of what is no domain: %v", err)
	}
	if _, err := client.Start(t.Context(), good, 48*time.Hour); failure.KindOf(err) != failure.Usage {
		t.Errorf("deadline: %v", err)
	}
	if len(sets.Calls) != 0 {
		t.Errorf("done all the same: %q", sets.Calls)
	}
}

func labelText(uid, gid int) string {
	return strings.TrimSpace(strings.Join([]string{"true", strconv.Itoa(uid) + ":" + strconv.Itoa(gid)}, " "))
}

func trimmed(calls []string) []string {
	var all []string
	for _, c := range calls {
		all = append(all, strings.TrimSpace(c))
	}
	return all
}
