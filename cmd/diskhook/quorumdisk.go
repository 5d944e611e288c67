// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/quorum"
)

// The verbs by which an operator says whose disk a set is, and whose no more.

func quorumRemove(p *program, c *cli.Context) error {
	f, s, set, _, err := setArgs(p, c)
	if err != nil {
		return err
	}
	if err := s.domains.Unbound(c.Context, set); err != nil {
		return err
	}
	steps := []string{"remove the definition and the marks of replica set " + set.Name}
	if c.Bool("delete-images") {
		for _, r := range set.Replicas {
			steps = append(steps, "delete "+r.Top().String())
		}
	}
	return p.change(f, c.Bool("dry-run"), replicaSet(set.Name), steps, func() (string, error) {
		return "removed", s.quorum.Remove(c.Context, set.Name, c.Bool("delete-images"))
	})
}

// quorumForget is the way out of a VM whose disk is no longer bound to a set
// that it has used.
func quorumForget(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "DOMAIN", "DISK")
	if err != nil {
		return err
	}
	domain, _, err := s.domainOf(c.Context, words[0])
	if err != nil {
		return err
	}
	uses, err := s.quorumUses(c.Context, domain)
	if err != nil {
		return err
	}
	for _, u := range uses {
		if u.Target != words[1] && u.Key != words[1] {
			continue
		}
		if !c.Bool("discard-guest-data") {
			err := failure.New(failure.Conflict, "domain %s: disk %s: what the guest wrote is in the replica set %s, and nowhere else", words[0], words[1], u.Set)
			return failure.Hint(err, "bind the disk to it again, or give that up with `diskhook quorum forget --discard-guest-data %s %s`", words[0], words[1])
		}
		steps := []string{fmt.Sprintf("forget that disk %s of domain %s has used replica set %s", u.Target, domain, u.Set)}
		return p.change(f, c.Bool("dry-run"), replicaSet(u.Set), steps, func() (string, error) {
			return "the domain may start without it; its replicas stay as they are", bindings.ForgetQuorumUse(s.quorum, u)
		})
	}
	err = failure.New(failure.NotFound, "domain %s: disk %s has used no replica set on this host", words[0], words[1])
	return failure.Hint(err, "see `diskhook quorum list`")
}

// quorumUses are the sets that a domain's disks have used, by the receipts and,
// where these were lost, by the sets.
func (s *services) quorumUses(ctx context.Context, domain string) ([]bindings.QuorumUse, error) {
	uses, err := bindings.QuorumUses(s.quorum.Layout, domain)
	if err != nil {
		return nil, err
	}
	sets, err := s.quorum.List(ctx)
	if err != nil {
		s.log.Warn("replica sets", "err", err)
	}
	for _, set := range sets {
		if u := set.User; u != nil && u.Domain == domain {
			uses = append(uses, bindings.QuorumUse{Set: set.Name, SetUUID: set.UUID, Domain: domain, DomainName: u.Name, Target: u.Target, Key: u.Key})
		}
	}
	return uses, nil
}

// domainOf is a domain's uuid, and its name if libvirt was asked for it.
func (s *services) domainOf(ctx context.Context, word string) (id, name string, err error) {
	if id = strings.ToLower(word); host.IsUUID(id) {
		return id, "", nil
	}
	facts, err := s.domains.Libvirt.Facts(ctx, word)
	if err != nil {
		return "", "", failure.Hint(err, "name the domain by its UUID")
	}
	return facts.UUID, facts.Name, nil
}

// quorumAccept is the way out where nothing tells that a set holds what a disk
// holds, and the set is what the operator wants.
func quorumAccept(p *program, c *cli.Context) error {
	f, s, set, words, err := setArgs(p, c, "DOMAIN", "DISK")
	if err != nil {
		return err
	}
	domain, name, err := s.domainOf(c.Context, words[1])
	if err != nil {
		return err
	}
	u := bindings.QuorumUse{Set: set.Name, SetUUID: set.UUID, Domain: domain, DomainName: name, Target: words[2], Key: words[2]}
	if !bindings.IsWord(u.Key) {
		return see(c, failure.New(failure.Usage, "disk %q: not a target or an image", u.Key))
	}
	if err := set.OfAnother(quorum.Use{Domain: domain, Key: u.Key}); err != nil {
		return err
	}
	if !c.Bool("discard-disk-data") {
		err := failure.New(failure.Conflict, "domain %s: disk %s: what the disk itself holds would be out of sight, and the guest would go on with what the replica set %s holds", words[1], u.Key, set.Name)
		return failure.Hint(err, "give that up with `diskhook quorum accept --discard-disk-data %s %s %s`", set.Name, words[1], u.Key)
	}
	steps := []string{fmt.Sprintf("note that replica set %s is disk %s of domain %s", set.Name, u.Key, domain)}
	return p.change(f, c.Bool("dry-run"), replicaSet(set.Name), steps, func() (string, error) {
		return "it is the disk's data from now on", bindings.AcceptQuorumUse(s.quorum, u)
	})
}

// quorumVerify compares replicas, and with --against a disk.
func quorumVerify(p *program, c *cli.Context) error {
	f, s, set, _, err := setArgs(p, c)
	if err != nil {
		return err
	}
	r := p.reporter(f)
	report := r.work("replica set " + set.Name)
	var v quorum.Verification
	against := c.String("against")
	switch {
	case against == "" && c.IsSet("against-format"):
		err = see(c, failure.New(failure.Usage, "--against-format is that of --against, which is missing"))
	case against == "":
		v, err = s.quorum.Verify(c.Context, set.Name, report)
	default:
		disk, unread := s.imageChain(c.Context, against, c.String("against-format"), "--against-format")
		if err = unread; err == nil {
			v, err = s.quorum.VerifyAgainst(c.Context, set.Name, disk, !c.Bool("dry-run"), report)
		}
	}
	r.close()
	if v.Set == "" {
		return err
	}
	if err := p.printVerification(f, v); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	if against != "" {
		fmt.Fprintf(p.stderr, "diskhook: replica set %s: it holds what %s holds\n", harmless(set.Name), harmless(against))
		if c.Bool("dry-run") {
			return wouldChange()
		}
	}
	return v.Err()
}
