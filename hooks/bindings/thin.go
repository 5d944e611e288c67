// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member"
	"diskhook/xmlrewrite"
)

// thin binds disks to volumes of thin clusters (packages below storage/thin):
//
//	thin=VOLUME,cluster=NAME
//
// Without cluster it is the host's own, as `diskhook thin` has it. The disk names a
// path of its own that leads to the volume's device, which only a fulfil makes: the
// volumes that a host has get their devices again when its pool starts, whether or
// not the domain may have its one.
//
// A fulfil claims the volume for the domain, by its UUID, and attaches it to this
// host; a release detaches it. Meanwhile nobody takes it away.
type thin struct{}

// Thin is what bindings need of thin clusters.
type Thin interface {
	// Cluster is the name of the cluster that is meant by a name; "" is the host's
	// own.
	Cluster(name string) (string, error)
	// There refuses a volume that the cluster does not have.
	There(ctx context.Context, cluster, volume string) error
	// Preview refuses what Claim would, as far as it can be told, and changes nothing.
	Preview(ctx context.Context, cluster, volume, domain string) (member.Preview, error)
	// Claim gives a volume to a domain, attached, and returns its path. A master that
	// does not answer is given up early enough for ctx's deadline.
	Claim(ctx context.Context, cluster, volume, domain string) (string, error)
	// Reclaim is Claim for a domain that runs on the volume. It attaches nothing.
	Reclaim(ctx context.Context, cluster, volume, domain string) error
	Release(ctx context.Context, cluster, volume, domain string) error
	// ReleaseRest releases all that a domain has.
	ReleaseRest(ctx context.Context, domain string) error
	// Path is where a volume is while it is attached.
	Path(cluster, volume string) string
}

func (thin) Name() string { return "thin" }

// Migrate refuses: a volume is at one host.
func (thin) Migrate() Migration { return Refuse }

func (thin) Offline(Domain, Bound) string {
	return "shut the domain down, then define and start it on another host of the cluster"
}

func (thin) Check(b Binding) error {
	cluster, given := b.Options["cluster"]
	var err error
	switch {
	case b.From == Property:
		err = failure.New(failure.Usage, "thin is not for VMs of oVirt: VDSM does not know where their volumes are")
		return failure.Hint(err, "take it out of the property")
	case b.Value == "":
		err = failure.New(failure.Usage, "thin: which volume is missing")
		return failure.Hint(err, "write it like vda:thin=VOLUME or vda:thin=VOLUME,cluster=NAME with a volume of `diskhook thin status`")
	case len(b.Options) > 1 || len(b.Options) == 1 && !given:
		return failure.New(failure.Usage, "thin has no option but cluster")
	case !b.Named() && b.From != Rule:
		err = failure.New(failure.Usage, "thin=%s: one volume cannot be every disk of a domain", clip(b.Value))
		return failure.Hint(err, "name the disk, as in vda:thin=%s", clip(b.Value))
	case !layout.ValidName(b.Value) || given && !layout.ValidName(cluster):
		err = failure.New(failure.Usage, "thin: %q: not names of a volume and a cluster", thinOf(b))
		return failure.Hint(err, "see `diskhook thin status`")
	}
	return nil
}

func (thin) Unfit(d Disk) string { return d.Unfit }

func (thin) kept(b Binding) string { return "volume " + thinOf(b) }

// thinOf names a volume, with its cluster as far as that is told.
func thinOf(b Binding) string {
	if cluster := b.Options["cluster"]; cluster != "" {
		return clip(cluster) + "/" + clip(b.Value)
	}
	return clip(b.Value)
}

// complete says which cluster is meant, so that the definition does.
func (thin) complete(h *Host, b Binding) (Binding, error) {
	if h.Thin == nil {
		return b, errNoClusters
	}
	cluster, err := h.Thin.Cluster(b.Options["cluster"])
	if err != nil {
		return b, err
	}
	return b.with("cluster", cluster), nil
}

var errNoClusters = failure.Wrap(failure.Precondition, errors.New("there are no thin clusters here"))

func (k thin) Plan(ctx context.Context, h *Host, d Domain, bound []Bound) ([]Step, error) {
	if h.Thin == nil {
		return nil, errNoClusters
	}
	if err := apart(d, bound); err != nil {
		return nil, err
	}
	var steps []Step
	for _, b := range bound {
		step := Step{Target: b.Disk.Target, Kind: k.Name()}
		cluster, volume := b.Binding.Options["cluster"], b.Binding.Value
		link := thinLink(h.Layout, d.UUID, b.Disk.Target)
		now, err := h.previewThin(ctx, d, b)
		if err == nil {
			err = k.suits(d, b, link)
		}
		what := "attach it to this host"
		switch {
		case err != nil:
			what, step.Err = "it cannot be attached", k.refused(d, b, err)
		case now.Held:
			what = "it is attached"
		default:
			step.Commands = []string{"attach volume " + thinOf(b.Binding) + " for " + d.UUID, "link " + link + " to " + h.Thin.Path(cluster, volume)}
		}
		step.What = fmt.Sprintf("disk %s: volume %s: %s", b.Disk.Target, thinOf(b.Binding), what)
		steps = append(steps, step)
	}
	return steps, nil
}

// suits refuses a definition that has libvirt open something else than what is there.
func (thin) suits(d Domain, b Bound, link string) error {
	if b.Disk.Path != link || b.Disk.Type == "block" && b.Disk.Format == "raw" {
		return nil // as we wrote it, or a snapshot on top of it
	}
	err := failure.New(failure.Conflict, "volume %s is raw on a block, and the definition says %s on a %s", thinOf(b.Binding), b.Disk.Format, b.Disk.Type)
	return failure.Hint(err, "correct the disk's type and driver with `virsh edit %s`", d.NameArg())
}

// Restorable asks no more than that the volume can be attached: it is the same volume,
// or else refused.
func (k thin) Restorable(ctx context.Context, h *Host, d Domain, bound []Bound) error {
	steps, err := k.Plan(ctx, h, d, bound)
	for _, s := range steps {
		err = errors.Join(err, s.Err)
	}
	return err
}

// Rewrite points the disk at its link.
func (k thin) Rewrite(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error) {
	if d.OVirt {
		_, err := k.Place(h, d, b)
		return nil, xmlrewrite.BoundDisk{}, err
	}
	entry := xmlrewrite.BoundDisk{
		Target: b.Disk.Target, Serial: b.Disk.Serial, Source: thinLink(h.Layout, d.UUID, b.Disk.Target),
		Thin: &xmlrewrite.Thin{Cluster: b.Binding.Options["cluster"], Volume: b.Binding.Value},
	}
	if err := checkLinked(d.UUID, b.Disk.Target); err != nil {
		return nil, entry, err
	}
	change, err := k.Point(h, d, entry)
	return change, entry, err
}

// Place refuses: see Check.
func (k thin) Place(_ *Host, d Domain, b Bound) (xmlrewrite.Rewriter, error) {
	b.Binding.From = Property
	return nil, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, k.Check(b.Binding))
}

// Recorded reads the entry of a disk that is a thin volume.
func (thin) Recorded(r xmlrewrite.BoundDisk) (Binding, bool) {
	if r.Thin == nil {
		return Binding{}, false
	}
	return Binding{Value: r.Thin.Volume, Options: map[string]string{"cluster": r.Thin.Cluster}}, true
}

// Source is the link.
func (thin) Source(h *Host, d Domain, r xmlrewrite.BoundDisk) (string, error) {
	return thinLink(h.Layout, d.UUID, r.Target), nil
}

// Point points the disk at its link. What the guest discards is free again.
func (thin) Point(h *Host, d Domain, r xmlrewrite.BoundDisk) (xmlrewrite.Rewriter, error) {
	return xmlrewrite.VolumeDisk{Target: r.Target, Path: thinLink(h.Layout, d.UUID, r.Target), Block: true, Discard: true}, nil
}

// Reassign refuses: two domains that write to one volume would destroy it.
func (thin) Reassign(_ *Host, d Domain, r *xmlrewrite.BoundDisk) error {
	cluster, volume := clip(r.Thin.Cluster), clip(r.Thin.Volume)
	err := failure.New(failure.Conflict, "its volume %s/%s is that of the domain which this is a clone of", cluster, volume)
	return failure.Hint(err, "run `diskhook domain unbind %[1]s`, make a volume of its own with `diskhook thin clone --cluster %[2]s %[3]s NEW`, then bind it with `diskhook domain apply --thin %[4]s=NEW,cluster=%[2]s %[1]s`",
		d.NameArg(), cluster, volume, r.Target)
}

// ThinThere refuses a volume that its cluster does not have. Where it is now is for
// the start to ask.
func (h *Host) ThinThere(ctx context.Context, b Bound) error {
	if h.Thin == nil {
		return errNoClusters
	}
	return h.Thin.There(ctx, b.Binding.Options["cluster"], b.Binding.Value)
}

// ThinAt is where the volume is that a disk is bound to, while it is attached.
func (h *Host) ThinAt(b Bound) (string, error) {
	if h.Thin == nil {
		return "", errNoClusters
	}
	return h.Thin.Path(b.Binding.Options["cluster"], b.Binding.Value), nil
}

// ThinLink is the path by which a disk that is a thin volume names it.
func (h *Host) ThinLink(d Domain, target string) string { return thinLink(h.Layout, d.UUID, target) }
