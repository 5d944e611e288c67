// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/quorum"
)

// QuorumUse is one disk of one domain that uses a replica set.
type QuorumUse struct {
	Set        string `json:"set"`
	Domain     string `json:"domain"` // its uuid
	DomainName string `json:"domain_name"`
	Target     string `json:"target"`
	// Key is by what the disk is found again: its target, or oVirt's image.
	Key       string `json:"key"`
	VhostUser bool   `json:"vhost_user"`
	Inline    bool   `json:"inline"` // QEMU opens the replicas itself
	// SetUUID tells the set from another that is given its name later.
	SetUUID string `json:"set_uuid,omitempty"`
	// Former are the images of the disk without the set, top first, as far as
	// they are told, and Replicas says that it names the set's replicas itself.
	// Receipts do not keep them.
	Former   []imagecheck.Layer `json:"former,omitempty"`
	Replicas bool               `json:"replicas,omitempty"`
}

// QuorumPlan is what the start of a set would do.
type QuorumPlan struct {
	Text     string   `json:"text"`
	Commands []string `json:"commands"`
}

// Quorum is what bindings need of replica sets. Root uses storage/quorum
// itself (DirectQuorum); the user vdsm goes through diskhook-helper.
type Quorum interface {
	Definition(set string) (quorum.Set, error)
	// Plan looks what Start or Open would do. It changes nothing.
	Plan(context.Context, QuorumUse) (QuorumPlan, error)
	// Start claims the set for the disk, serves it, and returns when QEMU can
	// connect. Started again for the same disk it looks whether it still is
	// served. A disk that has not used the set so far is refused one that may
	// hold something older; so it is by Open.
	Start(context.Context, QuorumUse, time.Duration) (quorum.Endpoint, error)
	// Open claims the set for a QEMU that opens the replicas itself.
	Open(context.Context, QuorumUse, time.Duration) error
	// Stop undoes both; nothing to undo is no error.
	Stop(context.Context, QuorumUse) error
	// StopRest is Stop of all sets that disks of a domain have used.
	StopRest(ctx context.Context, domain string) error
	// Own gives QEMU the socket or, inline, the replicas.
	Own(context.Context, QuorumUse, Label) error
}

// DirectQuorum is Quorum for a caller that may do everything itself.
func DirectQuorum(s *quorum.Service) Quorum { return directQuorum{s} }

type directQuorum struct{ *quorum.Service }

func (d directQuorum) Definition(set string) (quorum.Set, error) { return d.Load(set) }

func (d directQuorum) Plan(ctx context.Context, u QuorumUse) (QuorumPlan, error) {
	set, err := d.Load(u.Set)
	if err != nil {
		return QuorumPlan{}, err
	}
	decision, _, err := d.Foresee(ctx, set)
	if err == nil {
		err = decision.Veto
	}
	if err == nil {
		_, err = d.identify(ctx, &u)
	}
	if err != nil {
		return QuorumPlan{}, err
	}
	text := fmt.Sprintf("serve %s of %d replicas on %s", strings.Join(decision.Open, ", "), len(set.Replicas), endpointOf(d.Layout, u.Set, u.VhostUser).Socket)
	if u.Inline {
		text = fmt.Sprintf("count %s of %d replicas in a new generation", strings.Join(decision.Open, ", "), len(set.Replicas))
	}
	if decision.Unclean {
		text += ", which were not closed cleanly and are brought in line by majority"
	}
	for _, left := range decision.Left {
		text += fmt.Sprintf("; %s is left out: %s", left.ID, left.Why)
	}
	return QuorumPlan{text, []string{"diskhook quorum serve " + u.Set}}, nil
}

func (d directQuorum) Start(ctx context.Context, u QuorumUse, deadline time.Duration) (quorum.Endpoint, error) {
	use, err := d.identify(ctx, &u)
	if err != nil {
		return quorum.Endpoint{}, err
	}
	endpoint, err := d.Service.Start(ctx, u.Set, use, deadline)
	if err != nil {
		return endpoint, err
	}
	if err := d.used(u); err != nil {
		return endpoint, errors.Join(err, d.Stop(context.WithoutCancel(ctx), u))
	}
	return endpoint, nil
}

func (d directQuorum) Open(ctx context.Context, u QuorumUse, deadline time.Duration) error {
	use, err := d.identify(ctx, &u)
	if err != nil {
		return err
	}
	if err := d.Service.Open(ctx, u.Set, use, deadline); err != nil {
		return err
	}
	if err := d.used(u); err != nil {
		return errors.Join(err, d.Stop(context.WithoutCancel(ctx), u))
	}
	return nil
}

// used leaves the receipt. A crash before it is durable leaves the disk as the
// set's user, and what the disk was unchanged, so that the next start passes.
func (d directQuorum) used(u QuorumUse) error {
	if err := failpoint.Hit("quorum.receipt"); err != nil {
		return err
	}
	return markQuorumUsed(d.Layout, u)
}

// identify notes which set it is, and refuses one that only has the name of that
// which the disk has used. A set that the disk has not used must be known to
// hold what the disk holds; one that it has used is the disk's truth, whatever
// its own images hold.
func (d directQuorum) identify(ctx context.Context, u *QuorumUse) (quorum.Use, error) {
	use := u.use()
	set, err := d.Load(u.Set)
	if err != nil {
		return use, err
	}
	u.SetUUID = set.UUID
	was, err := quorumUse(d.Layout, u.Domain, u.Key)
	switch {
	case err != nil:
		return use, err
	case was == nil:
		use.Fingerprint, err = d.Fits(ctx, u.Set, use, quorum.Former{Chain: u.Former, Replicas: u.Replicas})
		return use, err
	case was.Set != u.Set:
		return use, u.elsewhere(*was)
	}
	if err := was.Of(set); err != nil {
		return use, err
	}
	return use, set.OfAnother(use)
}

// Of refuses a set that only has the name of the one that was used.
func (u QuorumUse) Of(set quorum.Set) error {
	if u.SetUUID == "" || u.SetUUID == set.UUID {
		return nil
	}
	err := failure.New(failure.Conflict, "replica set %s is not the one of that name which the disk has used and which was removed", set.Name)
	return failure.Hint(err, "if it was built of that one's images with --adopt, or what the guest wrote is given up, run `diskhook quorum forget --discard-guest-data %s %s`, then this again", u.Domain, u.Key)
}

func (d directQuorum) Stop(ctx context.Context, u QuorumUse) error {
	return d.Service.Stop(ctx, u.Set, u.use())
}

// StopRest is for a domain that has gone, and needs no binding: the receipts tell.
func (d directQuorum) StopRest(ctx context.Context, domain string) error {
	uses, err := QuorumUses(d.Layout, domain)
	for _, u := range uses {
		err = errors.Join(err, d.Stop(ctx, u))
	}
	return err
}

func (u QuorumUse) use() quorum.Use {
	use := quorum.Use{Domain: u.Domain, Target: u.Target, Name: u.DomainName, Key: u.Key, Kind: quorum.NBDExport}
	switch {
	case u.Inline:
		use.Kind = quorum.Inline
	case u.VhostUser:
		use.Kind = quorum.VhostUser
	}
	return use
}

// endpointOf is where a set is served, and under which name.
func endpointOf(l host.Layout, set string, vhost bool) quorum.Endpoint {
	if vhost {
		return quorum.Endpoint{Kind: quorum.VhostUser, Socket: quorum.VhostPath(l, set)}
	}
	return quorum.Endpoint{Kind: quorum.NBDExport, Socket: quorum.SocketPath(l, set), Export: set}
}

func (d directQuorum) Own(ctx context.Context, u QuorumUse, l Label) error {
	if !l.Owned && l.SELinux == "" {
		return nil // this libvirt labels nothing: QEMU runs as whoever started it
	}
	o := quorum.Owner{UID: l.UID, GID: l.GID, SELinux: l.SELinux}
	if !l.Owned {
		o.UID, o.GID = -1, -1
	}
	if u.Inline {
		return d.OwnReplicas(u.Set, o)
	}
	return d.Service.Own(ctx, u.Set, o)
}
