// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// errDeposed says that another leads by now.
var errDeposed = errors.New("another host leads")

// stand stands for election until ctx ends. A leader that cannot lead steps back
// for a while, so that another may.
func (a *Adapter) stand(ctx context.Context, s *concurrency.Session, k keys) error {
	for {
		e := concurrency.NewElection(s, k.election())
		if err := e.Campaign(ctx, a.Host); err != nil {
			return err
		}
		err := a.lead(ctx, s.Client(), e, k)
		a.resign(context.WithoutCancel(ctx), e)
		if errors.Is(err, errDeposed) {
			return err // the lease was lost, whether we have noticed or not
		}
		if err != nil && ctx.Err() == nil {
			a.Log.Error("this host cannot lead", "cluster", a.Cluster, "err", err)
		}
		if !sleep(ctx, time.Duration(a.Config.ttl())*time.Second) {
			return ctx.Err()
		}
	}
}

// resign ends the mastership here before another may begin. A verb that takes longer
// than it may does not keep others from being elected: it gives the mastership up on
// the disk before it waits for anything.
func (a *Adapter) resign(ctx context.Context, e *concurrency.Election) {
	here, stop := context.WithTimeout(ctx, ending)
	defer stop()
	if err := a.Verbs.OnDemoted(here); err != nil {
		a.Log.Error("on-demoted", "cluster", a.Cluster, "err", err)
	}
	there, cancel := context.WithTimeout(ctx, ending)
	defer cancel()
	if err := e.Resign(there); err != nil {
		a.Log.Warn("etcd: resign", "err", err) // the lease does it
	}
}

// lead makes this host the master and watches the others until it leads no more.
func (a *Adapter) lead(ctx context.Context, client *clientv3.Client, e *concurrency.Election, k keys) error {
	epoch, err := a.next(ctx, client, e, k)
	if err != nil {
		return err
	}
	if err := a.Verbs.OnMaster(ctx, epoch); err != nil {
		return err
	}
	a.Log.Info("this host is the master", "cluster", a.Cluster, "epoch", epoch)
	l := &leader{Adapter: a, client: client, election: e, keys: k, epoch: epoch,
		suspects: newSuspects(a.Host, a.Config.grace(), a.Booted.Add(a.Config.bootGrace())), done: make(chan outcome)}
	return l.watch(ctx)
}

// next takes the epoch after the last: of those that were given here, and of the
// disk, which an operator may have taken further, or an older state of etcd has
// forgotten.
func (a *Adapter) next(ctx context.Context, client *clientv3.Client, e *concurrency.Election, k keys) (uint64, error) {
	disk, err := a.Verbs.Epoch(ctx)
	if err != nil {
		return 0, err
	}
	r, err := client.Get(ctx, k.epoch())
	if err != nil {
		return 0, fmt.Errorf("etcd: epoch: %w", err)
	}
	last, revision := uint64(0), int64(0)
	if len(r.Kvs) > 0 {
		revision = r.Kvs[0].ModRevision
		if last, err = strconv.ParseUint(string(r.Kvs[0].Value), 10, 64); err != nil {
			return 0, fmt.Errorf("etcd: %s: %w", k.epoch(), err)
		}
	}
	epoch := max(disk, last) + 1
	t, err := client.Txn(ctx).If(leads(e), unchanged(k.epoch(), revision)).
		Then(clientv3.OpPut(k.epoch(), strconv.FormatUint(epoch, 10))).Commit()
	switch {
	case err != nil:
		return 0, fmt.Errorf("etcd: epoch: %w", err)
	case !t.Succeeded:
		return 0, errDeposed
	}
	return epoch, nil
}
