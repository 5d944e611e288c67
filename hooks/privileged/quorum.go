// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"context"
	"errors"
	"io"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/storage/quorum"
)

// The verbs on replica sets. What a set is only root's definition says; a
// caller names one, and a disk of a VM that is to use it.
type (
	setRequest struct {
		Set string `json:"set"`
	}
	useRequest struct {
		Use      bindings.QuorumUse `json:"use"`
		Deadline int64              `json:"deadline_ms"`
	}
)

// label is by whom sockets of replica sets are owned on hosts of oVirt.
func label(o *localdisk.Owner) bindings.Label {
	if o == nil {
		return bindings.Label{}
	}
	return bindings.Label{Owned: true, UID: o.UID, GID: o.GID}
}

func (s *Server) definition(_ context.Context, in io.Reader, _ io.Writer) (any, error) {
	var r setRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	return s.Quorum.Definition(r.Set)
}

// ofUse is a verb on the use of a set by a disk.
func ofUse(do func(context.Context, *Server, bindings.QuorumUse, time.Duration) (any, error)) verb {
	return func(s *Server, ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
		var r useRequest
		if err := decode(in, &r); err != nil {
			return nil, err
		}
		switch u := r.Use; {
		case !host.IsUUID(u.Domain):
			return nil, failure.New(failure.Usage, "domain %q: not a uuid", failure.OneLine(u.Domain))
		case len(u.DomainName) > 1024 || !bindings.IsWord(u.Target) || !bindings.IsWord(u.Key):
			return nil, failure.New(failure.Usage, "domain %s: not the names of a disk", u.Domain)
		case len(u.Former) > imagecheck.MaxLayers:
			return nil, failure.New(failure.Usage, "domain %s: disk %s has %d images", u.Domain, u.Target, len(u.Former))
		case r.Deadline < 0 || r.Deadline > time.Hour.Milliseconds():
			return nil, failure.New(failure.Usage, "deadline_ms: %d is out of range", r.Deadline)
		}
		return do(ctx, s, r.Use, time.Duration(r.Deadline)*time.Millisecond)
	}
}

func planUse(ctx context.Context, s *Server, u bindings.QuorumUse, _ time.Duration) (any, error) {
	return s.Quorum.Plan(ctx, u)
}

// startUse gives the socket to QEMU at once: on oVirt nobody does so later, and
// all QEMUs run as one user.
func startUse(ctx context.Context, s *Server, u bindings.QuorumUse, deadline time.Duration) (any, error) {
	if u.Inline {
		return nil, s.Quorum.Open(ctx, u, deadline)
	}
	endpoint, err := s.Quorum.Start(ctx, u, deadline)
	if err != nil {
		return nil, err
	}
	if err := s.Quorum.Own(ctx, u, label(s.Service.Owner)); err != nil {
		return nil, errors.Join(err, s.Quorum.Stop(context.WithoutCancel(ctx), u))
	}
	return endpoint, nil
}

func stopUse(ctx context.Context, s *Server, u bindings.QuorumUse, _ time.Duration) (any, error) {
	return nil, s.Quorum.Stop(ctx, u)
}

// stopRest needs the list of receipts, which the user vdsm cannot read.
func (s *Server) stopRest(ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
	var r domainRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	if err := checkVM(r.Domain); err != nil {
		return nil, err
	}
	return nil, s.Quorum.StopRest(ctx, r.Domain)
}

// Quorum does through diskhook-helper what storage/quorum does for root.
func (c *Client) Quorum() bindings.Quorum { return quorumClient{c} }

type quorumClient struct{ *Client }

func (c quorumClient) Definition(set string) (quorum.Set, error) {
	var s quorum.Set
	return s, c.call(context.Background(), "quorum", "definition", setRequest{set}, &s, quickly)
}

func (c quorumClient) Plan(ctx context.Context, u bindings.QuorumUse) (bindings.QuorumPlan, error) {
	var p bindings.QuorumPlan
	return p, c.call(ctx, "quorum", "plan", useRequest{Use: u}, &p, quickly)
}

func (c quorumClient) Start(ctx context.Context, u bindings.QuorumUse, deadline time.Duration) (quorum.Endpoint, error) {
	var e quorum.Endpoint
	return e, c.call(ctx, "quorum", "start", useRequest{u, deadline.Milliseconds()}, &e, quickly)
}

func (c quorumClient) Open(ctx context.Context, u bindings.QuorumUse, deadline time.Duration) error {
	return c.call(ctx, "quorum", "start", useRequest{u, deadline.Milliseconds()}, nil, quickly)
}

func (c quorumClient) Stop(ctx context.Context, u bindings.QuorumUse) error {
	return c.call(ctx, "quorum", "stop", useRequest{Use: u}, nil, quickly)
}

func (c quorumClient) StopRest(ctx context.Context, domain string) error {
	return c.call(ctx, "quorum", "stop-rest", domainRequest{domain}, nil, quickly)
}

// Own has been done by Start.
func (quorumClient) Own(context.Context, bindings.QuorumUse, bindings.Label) error { return nil }
