// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"golang.org/x/sync/errgroup"

	"diskhook/storage/command"
	"diskhook/storage/thin/membership"
)

// Adapter is one host's part. Nothing of it is kept: a new process goes on where
// another was killed.
type Adapter struct {
	Config  Config
	Cluster string // its name
	Host    string // this host's name in the cluster (layout.ValidName)
	Boot    string // id of this boot, for those who read the keys
	Booted  time.Time
	Verbs   membership.Verbs
	Run     command.Runner // runs the fence command
	Log     *slog.Logger
}

// pause is between two tries of what failed.
const pause = 2 * time.Second

// ending bounds each of what is done after the context has ended; the unit's
// TimeoutStopSec has room for all of it.
const ending = 30 * time.Second

// Serve takes part until ctx ends, and then leaves in order: what this host did as
// the master another may do at once, and nobody has it fenced.
func (a *Adapter) Serve(ctx context.Context) error {
	client, err := a.Config.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	// etcd may be away when we are to end; then nothing below ends by itself.
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(3*ending, func() { _ = client.Close() }) // on-demoted, its election, on-leave
	})
	defer stop()
	for ctx.Err() == nil {
		if err := a.session(ctx, client); err != nil && ctx.Err() == nil {
			a.Log.Warn("etcd: not heard, trying again", "err", err)
			sleep(ctx, pause)
		}
	}
	return nil
}

// errSession says that the lease ran out.
var errSession = errors.New("the lease was lost")

// session takes part under one lease, until that is lost or ctx ends.
func (a *Adapter) session(ctx context.Context, client *clientv3.Client) error {
	// The client itself tries for ever, and does not say that it is turned away.
	asking, stop := context.WithTimeout(ctx, a.Config.patience())
	lease, err := client.Grant(asking, int64(a.Config.ttl()))
	stop()
	if err != nil {
		return err
	}
	// The lease outlives ctx: it ends when everything is told.
	holding, drop := context.WithCancel(context.WithoutCancel(ctx))
	defer drop()
	s, err := concurrency.NewSession(client, concurrency.WithLease(lease.ID), concurrency.WithContext(holding))
	if err != nil {
		return err
	}
	k := a.Config.keys(a.Cluster)
	if _, err := client.Put(ctx, k.live(a.Host), a.Boot, clientv3.WithLease(s.Lease())); err != nil {
		return err
	}
	part, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		<-s.Done()
		cancel(errSession)
	}()
	group, part := errgroup.WithContext(part)
	group.Go(func() error { return a.join(part, client, k) })
	group.Go(func() error { return a.stand(part, s, k) })
	err = group.Wait()
	if ctx.Err() != nil {
		return a.leave(context.WithoutCancel(ctx), s, k)
	}
	if cause := context.Cause(part); errors.Is(cause, errSession) {
		err = cause
	}
	s.Orphan()
	return err
}

// join has this host take part, as soon as no leader asks whether it is alive.
func (a *Adapter) join(ctx context.Context, client *clientv3.Client, k keys) error {
	for {
		v, err := k.look(ctx, client)
		if err != nil {
			return err
		}
		if now := v.hosts[a.Host]; now.state != fencing {
			if err = a.Verbs.OnJoin(ctx); err == nil {
				r, err := client.Txn(ctx).If(unchanged(k.host(a.Host), now.revision)).
					Then(clientv3.OpPut(k.host(a.Host), string(joined))).Commit()
				if err != nil || r.Succeeded {
					return err
				}
				continue // the leader marked it meanwhile
			}
			a.Log.Error("this host does not take part", "cluster", a.Cluster, "err", err)
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// leave says that the host's silence from now on is meant.
func (a *Adapter) leave(ctx context.Context, s *concurrency.Session, k keys) error {
	ctx, cancel := context.WithTimeout(ctx, ending)
	defer cancel()
	if err := a.Verbs.OnLeave(ctx); err != nil {
		a.Log.Error("on-leave", "cluster", a.Cluster, "err", err)
	}
	_, err := s.Client().Txn(ctx).Then(clientv3.OpPut(k.host(a.Host), string(left)), clientv3.OpDelete(k.live(a.Host))).Commit()
	if err != nil {
		return fmt.Errorf("etcd: leave: %w", err)
	}
	return s.Close()
}

// sleep waits, and says whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
