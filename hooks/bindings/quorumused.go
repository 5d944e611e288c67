// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
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

func quorumUsedPath(l host.Layout, domain, key string) string {
	return filepath.Join(l.Receipts(), domain, key+".quorum")
}

// markQuorumUsed is durable before a guest can write.
func markQuorumUsed(l host.Layout, u QuorumUse) error {
	if !host.IsUUID(u.Domain) || !isWord(u.Key) {
		return failure.New(failure.Usage, "domain %q, disk %q: not names of receipts", clip(u.Domain), clip(u.Key))
	}
	path := quorumUsedPath(l, u.Domain, u.Key)
	for _, dir := range []string{l.State(), l.Receipts(), filepath.Dir(path)} {
		if err := atomicfile.MkdirAll(dir, 0o711); err != nil { // as those of local copies
			return err
		}
	}
	return atomicfile.WriteJSON(path, QuorumUsed{quorumUsedSchema, u}, 0o644)
}

// QuorumUses lists the sets that disks of a domain have used, also disks that
// it has no longer. A file that cannot be read is an error beside the others.
func QuorumUses(l host.Layout, domain string) ([]QuorumUse, error) {
	if !host.IsUUID(domain) {
		return nil, nil
	}
	entries, err := receiptFiles(l, domain)
	if err != nil {
		return nil, err
	}
	var uses []QuorumUse
	var faults []error
	for _, e := range entries {
		key, is := strings.CutSuffix(e.Name(), ".quorum")
		if !is || !isWord(key) {
			continue
		}
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
	entries, err := os.ReadDir(l.Receipts())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	var all []QuorumUse
	var faults []error
	for _, e := range entries {
		uses, err := QuorumUses(l, e.Name()) // none of a name that is no domain's
		all, faults = append(all, uses...), append(faults, err)
	}
	return all, errors.Join(faults...)
}

// quorumUse reads one of these files; nil: there is none. Who may not list the
// directory, as the user vdsm, can open it by its name.
func quorumUse(l host.Layout, domain, key string) (*QuorumUse, error) {
	if !host.IsUUID(domain) || !isWord(key) {
		return nil, nil
	}
	path := quorumUsedPath(l, domain, key)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrPermission) {
		return nil, nil // whether it is there cannot be told, of no domain
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, nil
	}
	var u QuorumUsed
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	if err == nil && (u.Schema != quorumUsedSchema || u.Domain != domain || u.Key != key) {
		err = fmt.Errorf("schema %q, domain %q, key %q", clip(u.Schema), clip(u.Domain), clip(u.Key))
	}
	if err != nil {
		return nil, failure.New(failure.Precondition, "receipt %s: %w", path, err)
	}
	return &u.QuorumUse, nil
}

// ForgetQuorumUse takes the word of an operator that what the guest wrote to
// the set is given up, or that the disk goes on elsewhere with it.
func ForgetQuorumUse(l host.Layout, domain, key string) error {
	if !host.IsUUID(domain) || !isWord(key) {
		return nil
	}
	path := quorumUsedPath(l, domain, key)
	if err := atomicfile.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(filepath.Dir(path)) // if it was the last receipt
	return nil
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

// ReleaseReplicas stops sets that disks of a domain used which it had no longer
// when it ended.
func (h *Host) ReleaseReplicas(ctx context.Context, d Domain, bound []Bound) error {
	uses, err := QuorumUses(h.Layout, d.UUID)
	for _, u := range uses {
		if slices.ContainsFunc(bound, func(b Bound) bool { return b.Disk.Target == u.Target }) {
			continue
		}
		err = errors.Join(err, h.Quorum.Stop(ctx, u))
	}
	return err
}
