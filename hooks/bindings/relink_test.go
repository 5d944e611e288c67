// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/quorum"
)

// relinked is a domain that runs with the volumes nfs, ns and other, and with
// whatever its host has lost of the second.
func relinked(t *testing.T, lose func(*bindings.Host)) (h *bindings.Host, err error) {
	t.Helper()
	h, _ = volumeHost(t)
	link := h.Volumes.Link
	d, bound, err := startVolumes(t, h, volumeDomain(t, owner, "file "+link("nfs"), "block "+link("ns"), "block "+link("other")))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"nfs", "other"} {
		if err := os.Remove(link(id)); err != nil {
			t.Fatal(err)
		}
	}
	lose(h)
	err = h.Relink(t.Context(), d, bound, 0)
	for _, id := range []string{"nfs", "other"} {
		if _, err := os.Stat(link(id)); err != nil {
			t.Errorf("no link again: %v", err)
		}
	}
	// Whatever was lost, the domain runs, and nobody else gets its volumes.
	for _, id := range []string{"nfs", "ns", "other"} {
		if _, err := h.Volumes.Attach(t.Context(), managed.Request{ID: id, Domain: stranger}); !errors.Is(err, failure.Conflict) {
			t.Errorf("another domain got %s: %v", id, err)
		}
	}
	return h, err
}

// A volume whose storage is away stays its domain's, and so do all others.
func TestRelinkUndoesNothing(t *testing.T) {
	_, err := relinked(t, func(h *bindings.Host) {
		device, err := os.Readlink(h.Volumes.Link("ns"))
		if err == nil {
			err = errors.Join(os.Remove(h.Volumes.Link("ns")), os.Rename(device, device+"-away"))
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if !errors.Is(err, failure.Temporary) || !strings.Contains(err.Error(), "disk vdb: volume ns: its device ") {
		t.Errorf("got %v", err)
	}
}

// A domain's claim that is gone is made again.
func TestRelinkClaims(t *testing.T) {
	h, err := relinked(t, func(h *bindings.Host) {
		if err := os.Rename(defined(h).Database, defined(h).Database+"-lost"); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Error(err)
	}
	all, err := defined(h).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var claimed []string
	for _, v := range all {
		if v.Domain == owner {
			claimed = append(claimed, v.ID)
		}
	}
	if diff := cmp.Diff([]string{"nfs", "ns", "other"}, claimed); diff != "" {
		t.Error(diff)
	}
}

// A volume that another domain got meanwhile is not taken from it.
func TestRelinkTakesNothing(t *testing.T) {
	h, _ := volumeHost(t)
	d, bound, err := startVolumes(t, h, volumeDomain(t, owner, "block "+h.Volumes.Link("ns")))
	if err == nil {
		err = defined(h).Detach(t.Context(), "ns", owner)
	}
	if err == nil {
		_, err = h.Volumes.Attach(t.Context(), managed.Request{ID: "ns", Domain: stranger})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Relink(t.Context(), d, bound, 0); !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "domain "+stranger+" has it") {
		t.Errorf("got %v", err)
	}
}

// A set that does not come up again takes no other with it.
func TestRelinkOfReplicaSets(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	sets := &hooktest.Quorum{Layout: w.Layout, Sets: map[string]quorum.Set{"db": hooktest.Set("db"), "logs": hooktest.Set("logs")}}
	w.Quorum = sets
	d := bindings.Domain{Name: "vm", UUID: owner}
	bound := []bindings.Bound{quorumOf("vda", "db"), quorumOf("vdb", "logs")}
	sets.Err = map[string]error{"start db": errors.New("it does not answer")}
	if err := w.Relink(t.Context(), d, bound, 0); err == nil || !strings.Contains(err.Error(), "disk vda: it does not answer") {
		t.Errorf("got %v", err)
	}
	verbs := map[string]int{}
	for _, call := range sets.Calls {
		verb, rest, _ := strings.Cut(call, " ")
		set, _, _ := strings.Cut(rest, " ")
		verbs[verb+" "+set]++
	}
	if verbs["start logs"] != 1 || verbs["stop db"]+verbs["stop logs"] > 0 {
		t.Errorf("calls: %v", sets.Calls)
	}
}

func quorumOf(target, set string) bindings.Bound {
	return bindings.Bound{Disk: bindings.Disk{Target: target}, Binding: bindings.Binding{Select: target, Kind: "quorum", Value: set}}
}
