// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/quorum"
	"diskhook/storage/receipts"
)

// What a guest wrote to a replica set is in the set alone. So that nobody gives
// its disk back what was there before, each disk that used a set leaves a file
// among the domain's receipts, KEY.quorum, which outlives the use.

// QuorumUsed is that file.
type QuorumUsed struct {
	Schema string `json:"schema"`
	QuorumUse
}

const quorumUsedSchema = "diskhook.quorum-use/v1"

const quorumUsedSuffix = ".quorum"

// markQuorumUsed is durable before a guest can write. What is there already is
// not written anew: that could fail, under a guest that runs.
func markQuorumUsed(l host.Layout, u QuorumUse) error {
	if !host.IsUUID(u.Domain) || !isWord(u.Key) {
		return failure.New(failure.Usage, "domain %q, disk %q: not names of receipts", clip(u.Domain), clip(u.Key))
	}
	u.Former, u.Replicas = nil, false
	if was, err := quorumUse(l, u.Domain, u.Key); err == nil && was != nil && reflect.DeepEqual(*was, u) {
		return nil
	}
	return receipts.Write(l, u.Domain, u.Key+quorumUsedSuffix, QuorumUsed{quorumUsedSchema, u})
}

// QuorumUses lists the sets that disks of a domain have used, also disks that
// it has no longer. A file that cannot be read is an error beside the others.
func QuorumUses(l host.Layout, domain string) ([]QuorumUse, error) {
	if !host.IsUUID(domain) {
		return nil, nil
	}
	keys, err := receiptKeys(l, domain, quorumUsedSuffix)
	if err != nil {
		return nil, err
	}
	var uses []QuorumUse
	var faults []error
	for _, key := range keys {
		u, err := quorumUse(l, domain, key)
		if err != nil {
			faults = append(faults, err)
		} else if u != nil {
			uses = append(uses, *u)
		}
	}
	return uses, errors.Join(faults...)
}

// AllQuorumUses is QuorumUses of all domains.
func AllQuorumUses(l host.Layout) ([]QuorumUse, error) {
	domains, err := receipts.Domains(l)
	if err != nil {
		return nil, err
	}
	var all []QuorumUse
	var faults []error
	for _, domain := range domains {
		uses, err := QuorumUses(l, domain) // none of a name that is no domain's
		all, faults = append(all, uses...), append(faults, err)
	}
	return all, errors.Join(faults...)
}

// quorumUse reads one of these files; nil: there is none, or whether there is
// cannot be told, of no domain. Who may not list the directory, as the user vdsm,
// can open it by its name.
func quorumUse(l host.Layout, domain, key string) (*QuorumUse, error) {
	if !host.IsUUID(domain) || !isWord(key) {
		return nil, nil
	}
	b, err := receipts.Read(l, domain, key+quorumUsedSuffix)
	switch {
	case err != nil && failure.KindOf(err) != nil:
		return nil, err
	case b == nil:
		return nil, nil
	}
	var u QuorumUsed
	err = json.Unmarshal(b, &u)
	if err == nil && (u.Schema != quorumUsedSchema || u.Domain != domain || u.Key != key) {
		err = fmt.Errorf("schema %q, domain %q, key %q", clip(u.Schema), clip(u.Domain), clip(u.Key))
	}
	if err != nil {
		return nil, failure.New(failure.Precondition, "receipt %s: %w", receipts.Path(l, domain, key+quorumUsedSuffix), err)
	}
	return &u.QuorumUse, nil
}

// ForgetQuorumUse takes the word of an operator that what the guest wrote to
// the set is given up, or that the disk goes on elsewhere with it. The set knows
// first: as long as there is a receipt, the same call goes on.
func ForgetQuorumUse(sets *quorum.Service, u QuorumUse) error {
	if !host.IsUUID(u.Domain) || !isWord(u.Key) {
		return nil
	}
	if err := sets.Forget(u.Set, u.SetUUID, u.use()); err != nil {
		return err
	}
	return receipts.Remove(sets.Layout, u.Domain, u.Key+quorumUsedSuffix)
}

// AcceptQuorumUse takes the word of an operator that a set, as it is, is the disk
// of u, whatever the disk's own images hold: it leaves the receipt that the first
// start would leave.
func AcceptQuorumUse(sets *quorum.Service, u QuorumUse) error {
	set, err := sets.Load(u.Set)
	if err != nil {
		return err
	}
	was, err := quorumUse(sets.Layout, u.Domain, u.Key)
	if err == nil && was != nil && was.Set != u.Set {
		return u.elsewhere(*was)
	}
	if err != nil {
		return err
	}
	if err := sets.Accept(u.Set, u.use()); err != nil {
		return err
	}
	u.SetUUID = set.UUID
	return markQuorumUsed(sets.Layout, u)
}

// elsewhere refuses to take the data of the disk for that of another set.
func (u QuorumUse) elsewhere(was QuorumUse) error {
	err := failure.New(failure.Conflict, "replica set %s: the disk's data is in another one, %s", u.Set, was.Set)
	return failure.Hint(err, "bind the disk to that one, or give up what the guest wrote with `diskhook quorum forget --discard-guest-data %s %s`", u.Domain, u.Key)
}

// withoutReplicas refuses a domain that has a disk which used a replica set and
// is not bound to it any more: the disk as it stands has older data. That the
// domain lost the disk altogether is no reason; what the set holds stays there.
func (h *Host) withoutReplicas(d Domain, bound []Bound) error {
	for _, disk := range d.Disks {
		u, err := quorumUse(h.Layout, d.UUID, quorumKey(d, disk))
		if err != nil {
			err = fmt.Errorf("%s: disk %s: whether its data is in a replica set cannot be read: %w", d, disk.Target, err)
			return failure.Hint(err, "make the file readable, or restore it from a backup")
		}
		is := slices.ContainsFunc(bound, func(b Bound) bool {
			return u != nil && b.Disk.Target == disk.Target && b.Binding.Kind == (replicated{}).Name() && b.Binding.Value == u.Set
		})
		if u == nil || is {
			continue
		}
		err = failure.New(failure.Conflict, "%s: disk %s: its data is in the replica set %s, but nothing binds the disk to it any more", d, disk.Target, u.Set)
		if d.OVirt {
			return failure.Hint(err, "set the property quorum=%s=%s again, or give up what the guest wrote with `diskhook quorum forget --discard-guest-data %s %s`", disk.Target, u.Set, u.Domain, u.Key)
		}
		return failure.Hint(err, "bind it again with `diskhook domain apply --quorum %s=%s %s`, or give up what the guest wrote with `diskhook domain revert --discard-guest-data %s %s`", disk.Target, u.Set, d.NameArg(), d.NameArg(), disk.Target)
	}
	return nil
}

// quorumKey is by what a disk is found again, whatever its target: VDSM does
// not always tell the image, but makes it the serial.
func quorumKey(d Domain, disk Disk) string {
	if d.OVirt {
		return cmp.Or(disk.Image, disk.Serial, disk.Target)
	}
	return disk.Target
}
