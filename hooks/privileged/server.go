// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/managed/connector"
	"diskhook/storage/progress"
)

// Server does what verbs ask for, as root. Service.Owner must be set: it is
// the only owner that is ever given.
type Server struct {
	Service *localdisk.Service
	Quorum  bindings.Quorum
	// Volumes are those that root has defined.
	Volumes bindings.Volumes
	// ConnectorInfo looks at this host, as connector.Host.Properties does.
	ConnectorInfo func(context.Context) (connector.Properties, error)
}

type verb func(*Server, context.Context, io.Reader, io.Writer) (any, error)

// verbs is all that a caller can have done.
var verbs = map[string]verb{
	"local observe": (*Server).observe,
	"local fulfil":  (*Server).fulfil,
	"local release": (*Server).release,
	"local release-rest": ofDomain("release", func(ctx context.Context, s *localdisk.Service, domain string) error {
		return s.ReleaseRest(ctx, domain)
	}),
	"local abandon": ofDomain("abandon", func(ctx context.Context, s *localdisk.Service, domain string) error {
		return s.Abandon(ctx, domain)
	}),
	"local owner": (*Server).owner,
	"local mark-saved": ofDomain("saved memory", func(_ context.Context, s *localdisk.Service, domain string) error {
		return localdisk.MarkSaved(s.Layout, domain)
	}),
	"local clear-saved": ofDomain("saved memory", func(_ context.Context, s *localdisk.Service, domain string) error {
		return localdisk.ClearSaved(s.Layout, domain)
	}),
	"quorum definition":   (*Server).definition,
	"quorum plan":         ofUse(planUse),
	"quorum start":        ofUse(startUse),
	"quorum stop":         ofUse(stopUse),
	"quorum stop-rest":    (*Server).stopRest,
	"volume connector":    (*Server).connector,
	"volume node":         (*Server).node,
	"volume plan":         ofVolume(planVolume),
	"volume attach":       ofVolume(attachVolume),
	"volume release":      ofVolume(releaseVolume),
	"volume release-rest": (*Server).releaseVolumes,
}

// Serve answers one call: args is the verb, in the request, out the response,
// log where progress goes. It reports whether the verb succeeded; if it did
// not, the response says why.
func (s *Server) Serve(ctx context.Context, args []string, in io.Reader, out, log io.Writer) bool {
	result, err := s.serve(ctx, args, in, log)
	var r response
	if err == nil {
		r.Result, err = json.Marshal(result)
	}
	if err != nil {
		Refuse(out, err)
		return false
	}
	return json.NewEncoder(out).Encode(r) == nil
}

// Refuse answers a call with an error.
func Refuse(out io.Writer, err error) {
	_ = json.NewEncoder(out).Encode(response{Error: toWire(err)}) // if nobody listens, so be it
}

func (s *Server) serve(ctx context.Context, args []string, in io.Reader, log io.Writer) (any, error) {
	do, known := verbs[strings.Join(args, " ")]
	if !known || len(args) != 2 {
		err := failure.New(failure.Usage, "diskhook-helper: no such verb")
		return nil, failure.Hint(err, "this program is for VDSM's hooks; use `diskhook`")
	}
	return do(s, ctx, in, log)
}

func (s *Server) observe(ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
	var r observeRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	if err := s.checkDisks(r.Disks); err != nil {
		return nil, err
	}
	return s.Service.Observe(ctx, r.Disks)
}

func (s *Server) fulfil(ctx context.Context, in io.Reader, log io.Writer) (any, error) {
	var r fulfilRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	if err := s.checkDisks(r.Disks); err != nil {
		return nil, err
	}
	if r.Deadline < 0 || r.Deadline > time.Duration(1<<62).Milliseconds() {
		return nil, failure.New(failure.Usage, "deadline_ms: %d is out of range", r.Deadline)
	}
	lines := json.NewEncoder(log)
	return s.Service.Fulfil(ctx, r.Disks, localdisk.Waiting{
		Deadline: time.Duration(r.Deadline) * time.Millisecond,
		Notify:   func(d localdisk.Disk, st progress.Status) { _ = lines.Encode(notice{d.Target, st}) },
	})
}

// release believes nothing but the ids: what becomes of a copy is in its
// receipt, and a copy that was not fulfilled as this disk in this boot is left
// alone, whatever reason the caller gives. localdisk looks whether it is open,
// and whether memory was saved with it.
func (s *Server) release(ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
	var r releaseRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	if len(r.Disks) == 0 {
		return nil, nil
	}
	if err := s.checkDisks(r.Disks); err != nil {
		return nil, err
	}
	if r.Domain != r.Disks[0].Domain {
		return nil, failure.New(failure.Usage, "domain %q: not that of the disks", r.Domain)
	}
	var linked []localdisk.Disk
	var errs []error
	for _, d := range r.Disks {
		is, err := s.Service.Linked(d)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d, err))
		} else if is {
			linked = append(linked, d)
		}
	}
	errs = append(errs, s.Service.Release(ctx, r.Domain, linked, r.Reason))
	return nil, errors.Join(errs...)
}

func (s *Server) owner(ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
	var r ownerRequest
	if err := decode(in, &r); err != nil {
		return nil, err
	}
	if o := s.Service.Owner; o == nil || r.UID != o.UID || r.GID != o.GID {
		return nil, failure.New(failure.Usage, "owner %d:%d: not the one that disks get here", r.UID, r.GID)
	}
	if err := s.checkNode(r.Placement.Node); err != nil {
		return nil, err
	}
	return nil, s.Service.SetOwner(ctx, r.Placement, r.UID, r.GID)
}

// ofDomain is a verb that needs a domain's id alone.
func ofDomain(what string, do func(context.Context, *localdisk.Service, string) error) verb {
	return func(s *Server, ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
		var r domainRequest
		if err := decode(in, &r); err != nil {
			return nil, err
		}
		if err := do(ctx, s.Service, r.Domain); err != nil {
			return nil, fmt.Errorf("domain %s: %s: %w", failure.OneLine(r.Domain), what, err)
		}
		return nil, nil
	}
}
