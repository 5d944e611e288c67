// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"diskhook/storage/thin/layout"
)

// state is what hosts/HOST says.
type state string

// The states of a host.
const (
	joined  state = "joined"  // on-join succeeded there
	left    state = "left"    // its adapter ended in order; nobody fences it
	fencing state = "fencing" // the leader has asked for evidence
	fenced  state = "fenced"  // and has it, and the master knows
)

// keys are those of one cluster.
type keys struct{ root string }

func (c Config) keys(cluster string) keys {
	prefix := c.Prefix
	if prefix == "" {
		prefix = defaultPrefix
	}
	return keys{prefix + "/" + cluster}
}

func (k keys) epoch() string           { return k.root + "/epoch" }
func (k keys) election() string        { return k.root + "/election" }
func (k keys) live(host string) string { return k.root + "/live/" + host }
func (k keys) host(host string) string { return k.root + "/hosts/" + host }

// known is a host that has a record.
type known struct {
	state    state
	revision int64 // of its last change
}

// view is all that is known of a cluster at one revision.
type view struct {
	hosts  map[string]known
	live   map[string]bool
	leader string // key of the oldest candidate; "": none
}

// look reads the cluster's keys in one go. A name that no host can have is left
// out: nothing is ever done to it.
func (k keys) look(ctx context.Context, client *clientv3.Client) (view, error) {
	r, err := client.Get(ctx, k.root+"/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return view{}, fmt.Errorf("etcd: %s: %w", k.root, err)
	}
	v := view{hosts: map[string]known{}, live: map[string]bool{}}
	for _, kv := range r.Kvs {
		kind, name, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), k.root+"/"), "/")
		switch {
		case kind == "election" && v.leader == "":
			v.leader = string(kv.Key)
		case kind == "live" && layout.ValidName(name):
			v.live[name] = true
		case kind == "hosts" && layout.ValidName(name):
			v.hosts[name] = known{state(kv.Value), kv.ModRevision}
		}
	}
	return v, nil
}

// leads is the condition that an election is still won. Without it a leader that
// slept would write what a later one knows better.
func leads(e *concurrency.Election) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(e.Key()), "=", e.Rev())
}

// unchanged is the condition that a key is as it was seen; 0: that there is none.
func unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}
