// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"diskhook/storage/failure"
)

// leader watches the hosts while this one leads.
type leader struct {
	*Adapter
	client   *clientv3.Client
	election *concurrency.Election
	keys     keys
	epoch    uint64
	suspects *suspects
	asking   sync.WaitGroup
	done     chan outcome
}

// outcome is how asking for evidence about a host ended.
type outcome struct {
	host string
	err  error
}

// errBack says that a host was heard of before anything was done to it.
var errBack = errors.New("the host is heard of again")

// watch acts on each change of the keys, and on time that passes.
func (l *leader) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.asking.Wait()
	defer cancel()
	changes := l.client.Watch(clientv3.WithRequireLeader(ctx), l.keys.root+"/", clientv3.WithPrefix())
	for {
		wait, err := l.step(ctx)
		if err != nil {
			return err
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-due:
		case r, ok := <-changes:
			if !ok || r.Err() != nil {
				return fmt.Errorf("etcd: watch: %w", errors.Join(r.Err(), ctx.Err()))
			}
		case o := <-l.done:
			l.asked(o)
		}
	}
}

// step looks once and starts what is to be done. It returns when to look again
// even if nothing changes; 0: never.
func (l *leader) step(ctx context.Context) (time.Duration, error) {
	v, err := l.keys.look(ctx, l.client)
	if err != nil {
		return 0, err
	}
	if v.leader != l.election.Key() {
		return 0, errDeposed
	}
	wanted, back, wait := l.suspects.judge(time.Now(), v)
	for _, host := range back {
		if err := l.mark(ctx, host, v.hosts[host].revision, joined); err != nil && !errors.Is(err, errBack) {
			return 0, err
		}
		l.Log.Warn("the host is back, and was not fenced", "cluster", l.Cluster, "host", host)
	}
	for _, host := range wanted {
		l.suspects.busy[host] = true
		l.asking.Go(func() {
			o := outcome{host, l.ask(ctx, host, v.hosts[host].revision)}
			select {
			case l.done <- o:
			case <-ctx.Done():
			}
		})
	}
	return wait, nil
}

// ask has a silent host fenced and tells the master. An error says that nothing
// is known of the host.
func (l *leader) ask(ctx context.Context, host string, revision int64) error {
	if l.Config.Fence == nil {
		err := failure.New(failure.Precondition, "host %s: evidence wanted: it is not heard of, and no fence command is configured", host)
		return failure.Hint(err, "switch it off, then `diskhook thin on-fenced --cluster %s %s`", l.Cluster, host)
	}
	l.Log.Warn("evidence wanted: the host is not heard of", "cluster", l.Cluster, "host", host)
	gone := clientv3.Compare(clientv3.CreateRevision(l.keys.live(host)), "=", 0)
	if err := l.mark(ctx, host, revision, fencing, gone); err != nil {
		return err
	}
	evidence, err := l.Config.Fence.Host(ctx, l.Run, host)
	if err != nil {
		return err
	}
	if err := l.Verbs.OnFenced(ctx, host, l.epoch, evidence); err != nil {
		return err
	}
	l.Log.Warn("the host is fenced", "cluster", l.Cluster, "host", host, "evidence", evidence.String(), "next", "diskhook thin recover "+host)
	v, err := l.keys.look(ctx, l.client)
	if err != nil {
		return err
	}
	return l.mark(ctx, host, v.hosts[host].revision, fenced)
}

// mark changes a host's record that is as it was seen; errBack if it is not, or if
// a condition does not hold.
func (l *leader) mark(ctx context.Context, host string, revision int64, to state, and ...clientv3.Cmp) error {
	key := l.keys.host(host)
	r, err := l.client.Txn(ctx).If(append(and, leads(l.election), unchanged(key, revision))...).
		Then(clientv3.OpPut(key, string(to))).Commit()
	if err != nil {
		return fmt.Errorf("etcd: host %s: %w", host, err)
	}
	if !r.Succeeded {
		return errBack
	}
	return nil
}

// asked notes how it ended. What failed is tried again after the grace time; where
// only an operator can tell, it is said once.
func (l *leader) asked(o outcome) {
	switch {
	case o.err == nil, errors.Is(o.err, errBack):
		delete(l.suspects.since, o.host)
	case errors.Is(o.err, failure.Precondition):
		l.suspects.retry[o.host] = time.Now().Add(reminder)
		l.Log.Error(failure.Line(o.err), "cluster", l.Cluster)
	default:
		l.suspects.retry[o.host] = time.Now().Add(max(l.Config.grace(), pause))
		l.Log.Error("no evidence", "cluster", l.Cluster, "host", o.host, "err", o.err)
	}
	delete(l.suspects.busy, o.host)
}

// reminder is how often an operator is told what is waited for.
const reminder = 10 * time.Minute
