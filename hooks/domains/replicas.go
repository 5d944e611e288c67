// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

// What verbs on definitions have to know of replica sets.

// hostFor is the host with what its libvirt and QEMU can do, where a disk is or
// will be a replica set; nothing else asks.
func (s *Service) hostFor(ctx context.Context, d Domain, written []bindings.Binding) (*bindings.Host, error) {
	involved := d.Doc != nil && bindings.Inlined(d.Doc) || slices.ContainsFunc(written, func(b bindings.Binding) bool { return b.Kind == "quorum" })
	if d.Metadata != nil {
		involved = involved || slices.ContainsFunc(d.Metadata.Disks, func(e xmlrewrite.BoundDisk) bool { return e.Quorum != nil })
	}
	if !involved {
		return s.Host, nil
	}
	v, err := s.Libvirt.Version(ctx)
	if err != nil {
		return nil, err
	}
	host := *s.Host
	host.Libvirt, host.QEMU = v.Daemon, v.QEMU
	return &host, nil
}

// numbered puts the nodes of inline quorums right once disks were changed.
func (s *Service) numbered(ctx context.Context, d Domain, doc *xmlrewrite.Document) (*xmlrewrite.Document, error) {
	if !bindings.Inlined(doc) {
		return doc, nil
	}
	host, err := s.hostFor(ctx, d, nil)
	if err == nil {
		doc, err = host.Numbered(doc)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, err)
	}
	return doc, nil
}

// replicas are the kind of binding.
type replicas struct{ *Service }

func (replicas) binds(b bindings.Binding) bool { return b.Kind == "quorum" }

func (replicas) free(d Domain, b bindings.Bound, other Facts) error {
	for _, target := range targetsOf(b.Binding.Value, other) {
		if other.UUID == d.UUID && target == b.Disk.Target {
			continue
		}
		return apart(d, b, "replica set "+b.Binding.Value, target, other, "build a set of its own with `diskhook quorum build`, or end the other binding with `diskhook domain revert %s %s`", failure.OneLine(other.Name), target)
	}
	return nil
}

// fits refuses a set whose size is not that of the disk, and a way to serve it that
// this host does not have.
func (k replicas) fits(ctx context.Context, d Domain, b bindings.Bound) error {
	set, err := k.Host.Quorum.Definition(b.Binding.Value)
	if err != nil {
		return onDisk(d, b, err)
	}
	if err := k.sameSize(ctx, d, b, set); err != nil {
		return err
	}
	if b.Binding.Option("transport", "") != quorum.VhostUser {
		return nil
	}
	return onDisk(d, b, k.Quorum.ServesVhostUser(ctx))
}

// note says what becomes of the image that the disk had.
func (replicas) note(_ *Plan, b bindings.Bound) string {
	if b.Disk.Path == "" {
		return ""
	}
	return fmt.Sprintf("disk %s: from its next start it is replica set %s; what is in %s stays there, and is not copied", b.Disk.Target, b.Binding.Value, b.Disk.Path)
}

// sameSize looks at the disk as it is now. The guest has its partitions there,
// so that a disk of another size is not the one it knows.
func (s *Service) sameSize(ctx context.Context, d Domain, b bindings.Bound, set quorum.Set) error {
	if b.Disk.Path == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	layers, err := s.chainOf(ctx, b)
	if err != nil {
		return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
	}
	info, err := s.checker().Chain(ctx, layers)
	if err != nil {
		return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
	}
	if info.VirtualSize == set.Size {
		return nil
	}
	err = failure.New(failure.Conflict, "%s: disk %s has %d bytes, replica set %s has %d", d, b.Disk.Target, info.VirtualSize, set.Name, set.Size)
	return failure.Hint(err, "build a set of the disk with `diskhook quorum build --replicas A,B,C --threshold 2 --from %s NAME`", failure.OneLine(b.Disk.Path))
}

func (s *Service) checker() imagecheck.Checker {
	return imagecheck.Checker{Allowed: s.Host.Config.Paths.Allowed}
}

// chainOf is a disk's chain to its end, which the definition need not name.
func (s *Service) chainOf(ctx context.Context, b bindings.Bound) ([]imagecheck.Layer, error) {
	layers := b.Disk.Layers()
	if b.Disk.Complete {
		return layers, nil
	}
	last := len(layers) - 1
	below, err := s.checker().Discover(ctx, layers[last])
	return append(layers[:last:last], below...), err
}

// replicasCurrent refuses a set that does not hold what the disk holds now: its
// guest would find older data. A set that this very disk has used is the
// disk's own truth, whatever its old image holds; one that another disk has
// used is that one's. It returns the targets of the former.
func (s *Service) replicasCurrent(ctx context.Context, d Domain, bound []bindings.Bound) (truths []string, err error) {
	for _, b := range bound {
		if b.Binding.Kind != "quorum" {
			continue
		}
		own, err := s.ownTruth(d, b)
		if err == nil && !own && b.Disk.Path != "" {
			err = s.current(ctx, b)
		}
		if err != nil {
			return truths, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
		if own {
			truths = append(truths, b.Disk.Target)
		}
	}
	return truths, nil
}

// fingerprints are those of disks that are to become replica sets, by target.
func (s *Service) fingerprints(ctx context.Context, d Domain, bound []bindings.Bound) (map[string]string, error) {
	prints := map[string]string{}
	for _, b := range bound {
		if b.Binding.Kind != "quorum" || b.Disk.Path == "" {
			continue
		}
		layers, err := s.chainOf(ctx, b)
		if err != nil {
			return nil, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
		info, err := s.checker().Chain(ctx, layers)
		if err != nil {
			return nil, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
		prints[b.Disk.Target] = info.Fingerprint
	}
	return prints, nil
}

// unwritten refuses to go on when a disk was written to since its set was held
// against it, which may have taken long.
func (s *Service) unwritten(ctx context.Context, p *Plan) error {
	now, err := s.fingerprints(ctx, p.Domain, p.binds)
	if err != nil {
		return err
	}
	for target, fingerprint := range now {
		if fingerprint != p.sources[target] {
			err := failure.New(failure.Temporary, "%s: disk %s: it was written to while this worked on it", p.Domain, target)
			return failure.Hint(err, "run this again")
		}
	}
	return nil
}

func (s *Service) current(ctx context.Context, b bindings.Bound) error {
	layers, err := s.chainOf(ctx, b)
	if err != nil {
		return err
	}
	return s.Quorum.Current(ctx, b.Binding.Value, layers, nil)
}

// ownTruth says that the disk has used the set that it is bound to.
func (s *Service) ownTruth(d Domain, b bindings.Bound) (own bool, err error) {
	uses, err := bindings.AllQuorumUses(s.Host.Layout)
	if err != nil {
		return false, err
	}
	set := b.Binding.Value
	definition, err := s.Host.Quorum.Definition(set)
	if err == nil {
		err = definition.OfAnother(quorumUse(d, b.Disk.Target))
	}
	if err != nil {
		return false, err
	}
	for _, u := range uses {
		same := u.Domain == d.UUID && u.Target == b.Disk.Target
		switch {
		case same && u.Set == set:
			own = true
			if err := u.Of(definition); err != nil {
				return false, err
			}
		case same:
			err := failure.New(failure.Conflict, "its data is in the replica set %s", u.Set)
			return false, failure.Hint(err, "bind it to that one, save the data with `diskhook domain revert --export FILE %s %s`, or give it up with `diskhook quorum forget --discard-guest-data %s %s`", d.NameArg(), u.Target, u.Domain, u.Target)
		case u.Set == set && u.Of(definition) == nil:
			err := failure.New(failure.Conflict, "replica set %s: it has what the guest of domain %s wrote to its disk %s", set, failure.OneLine(u.DomainName), u.Target)
			return false, failure.Hint(err, "build a set of its own with `diskhook quorum build --replicas A,B,C --threshold 2 --from %s NAME`, or give up what that guest wrote with `diskhook quorum forget --discard-guest-data %s %s`", failure.OneLine(b.Disk.Path), u.Domain, u.Key)
		}
	}
	return own, nil
}

// used are the disks that have receipts of sets.
func (k replicas) used(d Domain) (map[string]string, error) {
	uses, err := bindings.QuorumUses(k.Host.Layout, d.UUID)
	of := map[string]string{}
	for _, u := range uses {
		of[u.Target] = "the replica set " + u.Set
	}
	return of, err
}

// giveBack forgets what the set has of the disk, when it is exported or given up.
func (k replicas) giveBack(p *Plan, target string, g GivingUp) error {
	uses, err := bindings.QuorumUses(k.Host.Layout, p.Domain.UUID)
	if err != nil {
		return fmt.Errorf("%s: %w", p.Domain, err)
	}
	i := slices.IndexFunc(uses, func(u bindings.QuorumUse) bool { return u.Target == target })
	if i < 0 {
		return nil
	}
	u, to := uses[i], g.Export[target]
	if !g.DiscardGuestData && to == "" {
		command := func(option string) string {
			return fmt.Sprintf("diskhook domain revert %s %s %s", option, p.Domain.NameArg(), target)
		}
		err := failure.New(failure.Conflict, "%s: disk %s: what the guest wrote is in the replica set %s, and nowhere else", p.Domain, target, u.Set)
		return failure.Hint(err, "keep it with `%s`, or give it up with `%s`", command("--export FILE"), command("--discard-guest-data"))
	}
	p.forget = append(p.forget, u)
	return nil
}

// undo takes the nodes of a set away that the definition has inline.
func (replicas) undo(e xmlrewrite.BoundDisk) []xmlrewrite.Rewriter {
	if e.Quorum == nil {
		return nil
	}
	return []xmlrewrite.Rewriter{xmlrewrite.RemoveInline{Target: e.Target}}
}

func (s *Service) exportReplicas(ctx context.Context, e Export, notify progress.Func) error {
	return s.Quorum.Export(ctx, e.Set, e.To, ExportFormat(e.To), notify)
}

// forgetReplicas comes after the definition: until then a start finds the use.
func (s *Service) forgetReplicas(p *Plan) error {
	for _, u := range p.forget {
		if err := bindings.ForgetQuorumUse(s.Quorum, u); err != nil {
			return fmt.Errorf("%s: disk %s: %w", p.Domain, u.Target, err)
		}
	}
	return nil
}
