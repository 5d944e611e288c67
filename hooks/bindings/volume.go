// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/xmlrewrite"
)

// volume binds disks to managed volumes that are defined on this host (package
// managed):
//
//	volume=ID
//
// The disk names the volume's stable link, which is there only while the volume
// is attached: a domain whose hook did not run does not start. A disk may also
// name that link by itself, without metadata.
type volume struct{}

func (volume) Name() string { return "volume" }

// Migrate refuses: a domain has its volume to itself, and the host it comes to
// would have to attach it while the other still writes.
func (volume) Migrate() Migration { return Refuse }

func (volume) Offline(d Domain, b Bound) string {
	if d.OVirt {
		return fmt.Sprintf("shut the VM down, define the volume on the other host with `diskhook volume define --connection-info FILE %s`, and start the VM there", b.Binding.Value)
	}
	return fmt.Sprintf("shut the domain down; define the volume on the other host with `diskhook volume define --connection-info FILE %s`, and define and start the domain there", b.Binding.Value)
}

func (volume) Check(b Binding) error {
	var err error
	switch {
	case b.Value == "":
		err = failure.New(failure.Usage, "volume: which one is missing")
		return failure.Hint(err, "write it like vda:volume=ID with a volume of `diskhook volume list`")
	case len(b.Options) > 0:
		return failure.New(failure.Usage, "volume has no options")
	case !b.Named() && b.From != Rule: // a rule has its own way to name disks
		err = failure.New(failure.Usage, "volume=%s: one volume cannot be every disk of a domain", clip(b.Value))
		return failure.Hint(err, "name the disk, as in vda:volume=%s", b.Value)
	}
	return managed.CheckID(b.Value)
}

// VolumeLinks ends the directory of the links, wherever the root is.
const VolumeLinks = "/run/diskhook/volumes"

// namedVolume is the id of the volume whose link a path is, or "".
func namedVolume(path string) string {
	dir, id := filepath.Split(path)
	if strings.HasSuffix(filepath.Clean(dir), VolumeLinks) && isWord(id) && managed.CheckID(id) == nil {
		return id
	}
	return ""
}

// byPath is the binding that a disk spells by naming the link of a volume.
func (d Disk) byPath() (Binding, bool) {
	id := namedVolume(d.Path)
	return Binding{Select: d.Target, Kind: "volume", Value: id, From: Element}, id != ""
}

const isVolume = "it is a managed volume"

// Unfit takes what names a volume already, whatever it is to the guest: a start
// attaches the volume, and leaves the disk as it is.
func (volume) Unfit(d Disk) string {
	if d.Unfit == isVolume && namedVolume(d.Path) != "" {
		return ""
	}
	return d.Unfit
}

func (volume) kept(b Binding) string { return "volume " + clip(b.Value) }

// volumes is the service.
func (h *Host) volumes(d Domain) (Volumes, error) {
	if h.Volumes == nil {
		return nil, failure.New(failure.Precondition, "%s: there are no managed volumes here", d)
	}
	return h.Volumes, nil
}

func (k volume) Plan(ctx context.Context, h *Host, d Domain, bound []Bound) ([]Step, error) {
	s, err := h.volumes(d)
	if err == nil {
		err = apart(d, bound)
	}
	if err != nil {
		return nil, err
	}
	var steps []Step
	for _, b := range bound {
		step := Step{Target: b.Disk.Target, Kind: k.Name()}
		what := "attach it as " + s.Link(b.Binding.Value)
		lines, err := s.ExplainAttach(ctx, managed.Request{ID: b.Binding.Value, Domain: d.UUID})
		switch {
		case err != nil:
			what, step.Err = "it cannot be attached", fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		case len(lines) == 0:
			what = "it is attached"
		}
		step.What = fmt.Sprintf("disk %s: volume %s: %s", b.Disk.Target, b.Binding.Value, what)
		step.Commands = lines
		steps = append(steps, step)
	}
	return steps, nil
}

// Fulfil attaches the volumes, one after the other: paths to one storage are
// shared, and most are there after the first. What was attached before one
// failed is released again.
func (k volume) Fulfil(ctx context.Context, h *Host, d Domain, bound []Bound, deadline time.Duration) ([]Placement, error) {
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	if err := apart(d, bound); err != nil {
		return nil, err
	}
	var placed []Placement
	for i, b := range bound {
		p, err := k.fulfil(ctx, h, d, b)
		if err != nil {
			if undo := k.Release(context.WithoutCancel(ctx), h, d, bound[:i+1], ""); undo != nil {
				h.Log.Warn("undo", "domain", d.UUID, "err", undo)
			}
			err = fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
			if failure.HintOf(err) == "" {
				err = failure.Hint(err, "see that the storage offers the volume to this host, and try `diskhook volume attach %s`", b.Binding.Value)
			}
			return nil, err
		}
		placed = append(placed, p)
	}
	return placed, nil
}

// Relink makes the links again, and claims that are gone. Only libvirt's hook
// asks for it, which is root.
func (volume) Relink(ctx context.Context, h *Host, d Domain, bound []Bound, _ time.Duration) error {
	s, can := h.Volumes.(interface {
		Relink(context.Context, managed.Request) error
	})
	if !can {
		return failure.New(failure.Precondition, "%s: managed volumes are made again by root only", d)
	}
	var failed []error
	for _, b := range bound {
		if err := s.Relink(ctx, managed.Request{ID: b.Binding.Value, Domain: d.UUID}); err != nil {
			failed = append(failed, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err))
		}
	}
	return errors.Join(failed...)
}

func (volume) fulfil(ctx context.Context, h *Host, d Domain, b Bound) (Placement, error) {
	s, err := h.volumes(d)
	if err != nil {
		return Placement{}, err
	}
	link := s.Link(b.Binding.Value)
	if err := misnamed(d, b, link); err != nil {
		return Placement{}, err
	}
	a, err := s.Attach(ctx, managed.Request{ID: b.Binding.Value, Domain: d.UUID})
	if err != nil {
		return Placement{}, err
	}
	// libvirt would have QEMU take a device for a file, or the other way round.
	// Where VDSM runs the domain the hook sets that right.
	if want := map[bool]string{true: "block", false: "file"}[a.Block]; !d.OVirt && b.Disk.Path == link && b.Disk.Type != want {
		err := failure.New(failure.Conflict, "volume %s is of type %s, and the disk says type='%s'", a.ID, want, b.Disk.Type)
		return Placement{}, failure.Hint(err, "correct type and source with `virsh edit %s`", d.NameArg())
	}
	return Placement{b.Disk.Target, link, a.Block}, nil
}

// misnamed refuses a disk that names the link of another volume, or a link
// where there are none.
func misnamed(d Domain, b Bound, link string) error {
	named := namedVolume(b.Disk.Path)
	way := fmt.Sprintf("set the source to %s with `virsh edit %s`", link, d.NameArg())
	if d.OVirt {
		way = "correct the property, or see which hook wrote the source"
	}
	switch {
	case b.Recorded != nil || b.Disk.Path == link, b.Binding.From == Property && named == "":
		return nil
	case named != "" && named != b.Binding.Value:
		err := failure.New(failure.Conflict, "its source names volume %s, and the %s says %s", named, b.Binding.From, b.Binding.Value)
		return failure.Hint(err, "%s", way)
	}
	err := failure.New(failure.Conflict, "%s is not where this host has its volumes", failure.OneLine(b.Disk.Path))
	return failure.Hint(err, "%s", way)
}

// Restorable asks no more than that the volume can be attached: it is the same
// volume, or else refused.
func (k volume) Restorable(ctx context.Context, h *Host, d Domain, bound []Bound) error {
	steps, err := k.Plan(ctx, h, d, bound)
	for _, s := range steps {
		err = errors.Join(err, s.Err)
	}
	return err
}

func (volume) Labelled() bool { return true }

// Own follows the link, which only a fulfil of this boot has made.
func (volume) Own(ctx context.Context, h *Host, d Domain, bound []Bound, label Label) error {
	if !label.Owned {
		return nil
	}
	s, err := h.volumes(d)
	if err != nil {
		return err
	}
	for _, b := range bound {
		if err := s.Own(ctx, b.Binding.Value, label.UID, label.GID); err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
	}
	return nil
}

// detachTime bounds the end of a domain, for which libvirt waits. What is not
// done by then `diskhook volume reconcile` finds.
const detachTime = time.Minute

// Release gives the volumes back. All are tried.
func (volume) Release(ctx context.Context, h *Host, d Domain, bound []Bound, _ string) error {
	s, err := h.volumes(d)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, detachTime)
	defer cancel()
	var failed []error
	for _, b := range bound {
		if err := s.Release(ctx, b.Binding.Value, d.UUID); err != nil {
			failed = append(failed, fmt.Errorf("disk %s: %w", b.Disk.Target, err))
		}
	}
	return errors.Join(failed...)
}

// ReleaseVolumes gives back what a domain that has gone still has: volumes of
// disks that were unplugged before it ended.
func (h *Host) ReleaseVolumes(ctx context.Context, d Domain) error {
	if h.Volumes == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, detachTime)
	defer cancel()
	return h.Volumes.ReleaseRest(ctx, d.UUID)
}

// Rewrite points the disk at the volume's link.
func (k volume) Rewrite(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error) {
	entry := xmlrewrite.BoundDisk{
		Target: b.Disk.Target, Serial: b.Disk.Serial, Volume: &xmlrewrite.Volume{ID: b.Binding.Value},
	}
	change, err := k.Point(h, d, entry)
	if err == nil {
		entry.Source, err = k.Source(h, d, entry)
	}
	return change, entry, err
}

// Place points the disk at the volume for one start.
func (k volume) Place(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, error) {
	change, _, err := k.Rewrite(h, d, b)
	return change, err
}

// Recorded reads the entry of a disk that is a volume.
func (volume) Recorded(r xmlrewrite.BoundDisk) (Binding, bool) {
	if r.Volume == nil {
		return Binding{}, false
	}
	return Binding{Value: r.Volume.ID}, true
}

// Source is the link.
func (volume) Source(h *Host, d Domain, r xmlrewrite.BoundDisk) (string, error) {
	s, err := h.volumes(d)
	if err != nil {
		return "", err
	}
	return s.Link(r.Volume.ID), nil
}

// Point needs the definition, which says what kind of node there will be.
func (k volume) Point(h *Host, d Domain, r xmlrewrite.BoundDisk) (xmlrewrite.Rewriter, error) {
	s, err := h.volumes(d)
	if err != nil {
		return nil, err
	}
	node, err := s.Node(r.Volume.ID)
	if err != nil {
		return nil, fmt.Errorf("%s: disk %s: %w", d, r.Target, err)
	}
	return xmlrewrite.VolumeDisk{Target: r.Target, Path: s.Link(r.Volume.ID), Block: node.Block, Discard: node.Discard}, nil
}

// Reassign refuses: two domains that write to one volume would destroy it.
func (volume) Reassign(_ *Host, d Domain, r *xmlrewrite.BoundDisk) error {
	err := failure.New(failure.Conflict, "its volume %s is that of the domain which this is a clone of", r.Volume.ID)
	return failure.Hint(err, "run `diskhook domain unbind %s`, have the storage make a volume of its own, then bind it with `diskhook domain apply --volume %s=ID %s`", d.NameArg(), r.Target, d.NameArg())
}
