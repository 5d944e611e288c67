// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// local binds disks to copies on this machine (package localdisk):
//
//	local=lvm|lvmthin|dir|thin,fill=now|start|instant,template=none|overlay,on-stop=keep|discard,host=MACHINE-ID
type local struct{}

func (local) Name() string { return "local" }

// Migrate refuses: libvirt's own check lets block disks without host cache
// pass, and the guest would go on over whatever lies there on the other host.
func (local) Migrate() Migration { return Refuse }

// Offline is to copy the copy: nothing but the guest's own host has it.
func (local) Offline(d Domain, b Bound) string {
	way := "then copy FILE to the other host and make the disk from it there"
	if d.OVirt {
		way = "then upload FILE as a disk and give the machine that one"
	} else {
		way = fmt.Sprintf("%s; or run `diskhook domain revert --export FILE %s %s` with FILE on shared storage, on which the domain goes on and can be migrated", way, d.NameArg(), b.Disk.Target)
	}
	return fmt.Sprintf("shut the domain down and run `diskhook local export %s %s FILE`, %s", d.NameArg(), b.Disk.Target, way)
}

func (local) Unfit(d Disk) string { return d.Unfit }

// localOptions are the options and their values; nil takes any that is well
// formed. The option copy is beside them: only apply writes it, to metadata.
var localOptions = map[string][]string{
	"fill":     {fillNow, fillStart, fillInstant},
	"template": {templateNone, templateOverlay},
	"on-stop":  {localdisk.Keep, localdisk.Discard},
	"host":     nil,
	"image":    nil,
	"repo":     nil,
}

// How a copy shares the base of its chain with others of this host, where it
// cannot share blocks. It is never chosen by itself: the copy is then a qcow2
// image and not a raw disk, for which its definition must say so, and it is
// nothing without the base that all of them lie on.
const (
	templateNone    = "none"
	templateOverlay = "overlay" // an overlay on the template of its base
)

// When a copy is filled.
const (
	fillNow   = "now"   // by apply; a start never makes a copy
	fillStart = "start" // by the first start
	// By the first start, which does not wait for the data: the copy is an
	// overlay on its source, and is settled while the guest runs.
	fillInstant = "instant"
)

func (local) Check(b Binding) error {
	wrong := func(name, value string, values []string) error {
		err := failure.New(failure.Usage, "%s=%s is not valid", name, clip(value))
		return failure.Hint(err, "use one of %s", strings.Join(values, ", "))
	}
	if b.Value != "" && !slices.Contains(localdisk.Backends(), b.Value) {
		return wrong("local", b.Value, localdisk.Backends())
	}
	if err := b.oneOverlay(); err != nil {
		return err
	}
	if b.Value == "thin" && b.From == Property {
		err := failure.New(failure.Usage, "local=thin is not for VMs of oVirt: VDSM knows the volumes of its own storage only")
		return failure.Hint(err, "use lvm, lvmthin or dir")
	}
	for name, value := range b.Options {
		values, known := localOptions[name]
		switch {
		case name == "copy" && b.From == Metadata:
		case !known:
			err := failure.New(failure.Usage, "local has no option %s", clip(name))
			return failure.Hint(err, "its options are fill, template, on-stop, host, image and repo")
		case values != nil && !slices.Contains(values, value):
			return wrong(name, value, values)
		case (value == fillInstant || value == templateOverlay) && b.From == Property:
			return notForVDSM(name + "=" + value)
		}
	}
	if err := b.checkFrom(); err != nil {
		return err
	}
	if host := b.Options["host"]; host != "" && !isMachineID(host) {
		err := failure.New(failure.Usage, "host=%s is not a machine id", clip(host))
		return failure.Hint(err, "use the content of /etc/machine-id of that host")
	}
	return nil
}

// notForVDSM: what VDSM believes to be a raw volume would be an image on the
// shared one, and what it does with it (snapshots, merges, monitoring its size)
// would go wrong.
func notForVDSM(option string) error {
	name, _, _ := strings.Cut(option, "=")
	err := failure.New(failure.Usage, "%s is not for VMs of oVirt: VDSM manages the chain of images itself and would not know of the overlay", option)
	return failure.Hint(err, "leave %s out of the property; to have the copy before the start, run `diskhook local prestage VM`", name)
}

// oneOverlay refuses to have a copy lie on its source and on a template at once,
// and an overlay where clones are better.
func (b Binding) oneOverlay() error {
	switch {
	case b.Options["template"] != templateOverlay:
		return nil
	case b.Options["fill"] == fillInstant:
		err := failure.New(failure.Usage, "fill=instant and template=overlay cannot be had together: the copy would lie on its source and on a template")
		return failure.Hint(err, "use one of them")
	case b.Value == "thin":
		err := failure.New(failure.Usage, "template=overlay is not for thin: there are no templates in a thin cluster")
		return failure.Hint(err, "leave template out, or use lvm or dir")
	case b.Value == "lvmthin":
		err := failure.New(failure.Usage, "template=overlay is not for lvmthin, whose copies are snapshots of the template by themselves")
		return failure.Hint(err, "leave template out")
	}
	return nil
}

func isMachineID(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

func (k local) Plan(ctx context.Context, h *Host, d Domain, bound []Bound) ([]Step, error) {
	disks, err := k.disks(ctx, h, d, bound, false)
	if err != nil {
		return nil, err
	}
	observed, err := h.Local.Observe(ctx, disks)
	if err != nil {
		return nil, err
	}
	var steps []Step
	for _, o := range observed {
		decision := localdisk.Decide(o)
		steps = append(steps, Step{
			Target: o.Disk.Target, Kind: k.Name(),
			What: o.Describe(decision), Commands: h.Local.Commands(ctx, o, decision), Err: decision.Err,
		})
	}
	return steps, nil
}

func (k local) Fulfil(ctx context.Context, h *Host, d Domain, bound []Bound, deadline time.Duration) ([]Placement, error) {
	disks, err := k.disks(ctx, h, d, bound, false)
	if err != nil {
		return nil, err
	}
	placed, err := h.Local.Fulfil(ctx, disks, localdisk.Waiting{Deadline: deadline, Notify: h.Notify})
	if err != nil {
		return nil, err
	}
	placements := make([]Placement, len(placed))
	for i, p := range placed {
		placements[i] = Placement{p.Target, p.Path, p.Block}
	}
	return placements, nil
}

// Relink looks at all copies at once; only where one is amiss, one by one.
func (k local) Relink(ctx context.Context, h *Host, d Domain, bound []Bound, deadline time.Duration) error {
	ready := OnlyReady(bound)
	_, err := k.Fulfil(ctx, h, d, ready, deadline)
	if err == nil || len(ready) == 1 {
		return err
	}
	var failed []error
	for _, b := range ready {
		_, err := k.Fulfil(ctx, h, d, []Bound{b}, deadline)
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

func (local) Labelled() bool { return true }

// Own follows the stable link, which only a fulfil of this boot has made.
// Labels of SELinux are libvirt's to set, whatever it does with owners.
func (k local) Own(ctx context.Context, h *Host, d Domain, bound []Bound, label Label) error {
	if !label.Owned {
		return nil
	}
	for _, b := range bound {
		path := localdisk.StablePath(h.Layout, d.UUID, b.Disk.Target)
		node, err := filepath.EvalSymlinks(path)
		if err != nil {
			err = failure.New(failure.Precondition, "%s: disk %s: %w", d, b.Disk.Target, err)
			return failure.Hint(err, "start the domain again")
		}
		nodes := []string{node}
		if r, err := localdisk.ReadReceipt(h.Layout, d.UUID, b.Disk.Target); err == nil && r != nil && r.OnTemplate() {
			nodes = append(nodes, r.Overlay.Template.Path) // which QEMU opens, too
		}
		for _, node := range nodes {
			if err := h.Local.SetOwner(ctx, localdisk.Placement{Target: b.Disk.Target, Path: path, Node: node}, label.UID, label.GID); err != nil {
				return fmt.Errorf("%s: %w", d, err)
			}
		}
	}
	return nil
}

func (k local) Release(ctx context.Context, h *Host, d Domain, bound []Bound, reason string) error {
	disks := make([]localdisk.Disk, len(bound))
	for i, b := range bound {
		disks[i] = k.disk(h, d, b)
		if !h.runsOnCopy(d, b) {
			// Discarding is for what the guest wrote, and that is not all in the
			// copy: whoever looks at the layer above it would find it torn.
			disks[i].OnStop = localdisk.Keep
		}
	}
	return h.Local.Release(ctx, d.UUID, disks, reason)
}

// Rewrite points the disk at the path that only a fulfil makes.
func (k local) Rewrite(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error) {
	machine, err := h.Layout.MachineID()
	if err != nil {
		return nil, xmlrewrite.BoundDisk{}, failure.Hint(failure.Wrap(failure.Precondition, err), "run `systemd-machine-id-setup`")
	}
	for name, value := range map[string]string{"fill": fillInstant, "template": templateOverlay} {
		if d.OVirt && b.Binding.Options[name] == value {
			return nil, xmlrewrite.BoundDisk{}, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, notForVDSM(name+"="+value))
		}
	}
	if d.OVirt && b.Binding.from() != nil {
		b.Binding.From = Property
		return nil, xmlrewrite.BoundDisk{}, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, b.Binding.checkFrom())
	}
	disk := k.disk(h, d, b)
	b.Binding.Value = disk.Backend // with the default
	if err := b.Binding.oneOverlay(); err != nil {
		return nil, xmlrewrite.BoundDisk{}, fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
	}
	if err := disk.Validate(); err != nil {
		return nil, xmlrewrite.BoundDisk{}, fmt.Errorf("%s: %w", d, err)
	}
	path := localdisk.StablePath(h.Layout, d.UUID, b.Disk.Target)
	return asCopy(path, disk),
		xmlrewrite.BoundDisk{
			Target: b.Disk.Target, Serial: b.Disk.Serial, Source: path,
			Local: &xmlrewrite.Local{
				Backend: disk.Backend, Fill: b.Binding.Option("fill", fillNow), OnStop: disk.OnStop,
				Host: b.Binding.Option("host", machine), Template: templateOf(disk),
			},
			OriginImage: b.Binding.originImage(),
		}, nil
}

// Place points a disk of oVirt's at the place of its copy.
func (k local) Place(h *Host, _ Domain, b Bound) (xmlrewrite.Rewriter, error) {
	p := h.home(b)
	return xmlrewrite.LocalDisk{Target: p.Target, Path: p.Path, Block: p.Block}, nil
}

// Recorded reads the entry of a disk with a local copy.
func (local) Recorded(r xmlrewrite.BoundDisk) (Binding, bool) {
	if r.Local == nil {
		return Binding{}, false
	}
	b := Binding{Value: r.Local.Backend, Options: map[string]string{}}
	for name, value := range map[string]string{"fill": r.Local.Fill, "template": r.Local.Template, "on-stop": r.Local.OnStop, "host": r.Local.Host, "copy": r.Local.Copy} {
		if value != "" {
			b.Options[name] = value
		}
	}
	if i := r.OriginImage; i != nil {
		b.Options["image"], b.Options["repo"] = i.ID, i.Repo
	}
	return b, true
}

// Source is the stable path, which only a fulfil makes.
func (local) Source(h *Host, d Domain, r xmlrewrite.BoundDisk) (string, error) {
	return localdisk.StablePath(h.Layout, d.UUID, r.Target), nil
}

func (k local) Point(h *Host, d Domain, r xmlrewrite.BoundDisk) (xmlrewrite.Rewriter, error) {
	path, err := k.Source(h, d, r)
	return asCopy(path, localdisk.Disk{
		Target: r.Target, Backend: r.Local.Backend, Instant: r.Local.Fill == fillInstant, Template: r.Local.Template == templateOverlay,
	}), err
}

// Reassign gives a clone's disk to this machine, with no copy yet.
func (local) Reassign(h *Host, _ Domain, r *xmlrewrite.BoundDisk) error {
	machine, err := h.Layout.MachineID()
	l := *r.Local
	l.Copy, l.Host = "", machine
	r.Local = &l
	return err
}

// asCopy points a disk at its copy.
func asCopy(path string, d localdisk.Disk) xmlrewrite.LocalDisk {
	l := xmlrewrite.LocalDisk{Target: d.Target, Path: path, Block: d.Backend != "dir"}
	switch {
	case d.Instant:
		// A part of the disk is on shared storage still: the guest waits when that
		// does not answer, instead of being told that its disk is broken.
		l.Format, l.Pause = imagecheck.QCOW2, true
	case d.Template:
		l.Format = imagecheck.QCOW2
	}
	return l
}

// templateOf is what the metadata say of how a copy shares its base; nothing of
// one that does not.
func templateOf(d localdisk.Disk) string {
	if d.Template {
		return templateOverlay
	}
	return ""
}

func (k local) disk(h *Host, d Domain, b Bound) localdisk.Disk {
	fill := fillNow
	if d.OVirt {
		fill = fillStart // as oVirt's own hook does
	}
	disk := localdisk.Disk{
		Domain: d.UUID, DomainName: d.Name, Target: b.Disk.Target,
		Backend: cmp.Or(b.Binding.Value, h.Config.Local.Backend),
		OnStop:  b.Binding.Option("on-stop", localdisk.Keep),
		Copy:    b.Binding.Option("copy", ""),
		Host:    b.Binding.Option("host", ""),
		Create:  b.Binding.Option("fill", fill) != fillNow,
	}
	if d.OVirt {
		disk.Image, disk.Volume = b.Disk.Image, b.Disk.Volume
	} else {
		disk.Fill, disk.Origin = b.memo()
		disk.Instant, disk.Template = b.instant(), b.onTemplate()
	}
	if b.Recorded != nil && !b.overlaid() {
		disk.Opened = b.Disk.Format
	}
	if b.overlaid() {
		// The layer above is worth nothing without this very copy.
		disk.OnStop, disk.Create = localdisk.Keep, false
	}
	if disk.From = b.Binding.from(); disk.From != nil {
		return disk
	}
	disk.Source, _ = b.source()
	if h.IsLocal(b.Disk.Path) && b.Recorded == nil {
		// A path among the copies is never a source: what lies there can be
		// used if it is this disk's, but nothing is made from it.
		disk.Source, disk.Create = nil, false
	}
	return disk
}

// instant says that the disk's copy is an overlay, also of one of OnlyReady.
func (b Bound) instant() bool {
	return b.Binding.Options["fill"] == fillInstant || b.Recorded != nil && b.Recorded.Local != nil && b.Recorded.Local.Fill == fillInstant
}

// onTemplate says that the disk's copy is an overlay on a template.
func (b Bound) onTemplate() bool {
	return b.Binding.Options["template"] == templateOverlay || b.Recorded != nil && b.Recorded.Local != nil && b.Recorded.Local.Template == templateOverlay
}

// memo is what the receipt of a copy keeps of the binding: without it nobody
// could tell what to go back to once the metadata are lost. There are no
// secrets in an origin, which may be read by all: a disk with any cannot be
// bound (xmlrewrite.LocalDisk).
func (b Bound) memo() (fill, origin string) {
	r := b.Recorded
	if r == nil || r.Local == nil || r.OriginThin != nil || len(r.Origin) > localdisk.MaxOrigin {
		return "", ""
	}
	return r.Local.Fill, string(r.Origin)
}

// OnlyReady are the same disks, but bound such that no copy is ever made.
func OnlyReady(bound []Bound) []Bound {
	ready := slices.Clone(bound)
	for i, b := range ready {
		if b.Binding.Kind == (local{}).Name() {
			ready[i].Binding = b.Binding.with("fill", fillNow)
		}
	}
	return ready
}
