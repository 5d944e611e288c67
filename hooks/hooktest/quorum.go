// SPDX-License-Identifier: Apache-2.0

package hooktest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/quorum"
)

// Quorum stands in for replica sets: every one that is in Sets can be started,
// unless Err says otherwise. It records each call as one line.
type Quorum struct {
	Layout host.Layout
	Sets   map[string]quorum.Set
	Err    map[string]error // by verb, or by verb and set: "start", "start logs"

	mu    sync.Mutex
	Calls []string
	// Used are the uses of Start and Open, in order.
	Used []bindings.QuorumUse
}

// Set is a set of three raw files below /srv.
func Set(name string) quorum.Set {
	set := quorum.Set{Schema: "diskhook.quorum/v1", Name: name, UUID: "aaaaaaaa-0000-4000-8000-000000000001", Size: 1 << 20, Threshold: 2, ReadPattern: quorum.Vote, NextID: 4}
	for _, id := range []string{"r1", "r2", "r3"} {
		set.Replicas = append(set.Replicas, quorum.Replica{ID: id, Chain: []quorum.Layer{{Type: quorum.File, Path: "/srv/" + name + "-" + id + ".raw", Format: "raw"}}})
	}
	return set
}

func (q *Quorum) called(verb, set, format string, args ...any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.Calls = append(q.Calls, strings.TrimSpace(verb+" "+set+" "+fmt.Sprintf(format, args...)))
	if err := q.Err[verb+" "+set]; err != nil {
		return err
	}
	return q.Err[verb]
}

func (q *Quorum) used(u bindings.QuorumUse) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.Used = append(q.Used, u)
}

// Definition finds the set in Sets.
func (q *Quorum) Definition(name string) (quorum.Set, error) {
	set, known := q.Sets[name]
	if !known {
		err := failure.New(failure.NotFound, "replica set %s: it is not defined on this host", name)
		return set, failure.Hint(err, "see `diskhook quorum list`")
	}
	return set, nil
}

// Plan says what is asked for.
func (q *Quorum) Plan(_ context.Context, u bindings.QuorumUse) (bindings.QuorumPlan, error) {
	return bindings.QuorumPlan{Text: "serve it", Commands: []string{"diskhook quorum serve " + u.Set}}, q.called("plan", u.Set, "%s", u.Target)
}

// Start says where the set would be served.
func (q *Quorum) Start(_ context.Context, u bindings.QuorumUse, deadline time.Duration) (quorum.Endpoint, error) {
	q.used(u)
	return quorum.Endpoint{Kind: quorum.NBDExport, Socket: quorum.SocketPath(q.Layout, u.Set), Export: u.Set}, q.called("start", u.Set, "%s %s", u.Target, deadline)
}

// Open does nothing.
func (q *Quorum) Open(_ context.Context, u bindings.QuorumUse, _ time.Duration) error {
	q.used(u)
	return q.called("open", u.Set, "%s", u.Target)
}

// Stop does nothing.
func (q *Quorum) Stop(_ context.Context, u bindings.QuorumUse) error {
	return q.called("stop", u.Set, "%s", u.Target)
}

// StopRest does nothing.
func (q *Quorum) StopRest(_ context.Context, domain string) error {
	return q.called("stop-rest", domain, "")
}

// Own does nothing.
func (q *Quorum) Own(_ context.Context, u bindings.QuorumUse, l bindings.Label) error {
	return q.called("own", u.Set, "%s %t %d:%d %s", u.Target, l.Owned, l.UID, l.GID, l.SELinux)
}
