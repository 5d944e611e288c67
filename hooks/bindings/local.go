// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"context"
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
//	local=lvm|lvmthin|dir,fill=now|start,on-stop=keep|discard,host=MACHINE-ID
type local struct{}

func (local) Name() string { return "local" }

// Migrate refuses: libvirt's own check lets block disks without host cache
// pass, and the guest would go on over whatever lies there on the other host.
func (local) Migrate() Migration { return Refuse }

// localOptions are the options and their values; nil takes what localdisk
// itself checks.
var localOptions = []struct {
	name   string
	values []string
}{
	{"fill", []string{fillNow, fillStart}},
	{"on-stop", []string{localdisk.Keep, localdisk.Discard}},
	{"host", nil},
	{"copy", nil}, // written by apply only
}

// When a copy is filled.
const (
	fillNow   = "now"   // by apply; a start never makes a copy
	fillStart = "start" // by the first start
)

func (local) Check(b Binding) error {
	wrong := func(name, value string, values []string) error {
		err := failure.New(failure.Usage, "%s=%s is not valid", name, clip(value))
		return failure.Hint(err, "use one of %s", strings.Join(values, ", "))
	}
	if b.Value != "" && !slices.Contains(localdisk.Backends(), b.Value) {
		return wrong("local", b.Value, localdisk.Backends())
	}
	for name, value := range b.Options {
		i := slices.IndexFunc(localOptions, func(o struct {
			name   string
			values []string
		}) bool {
			return o.name == name && (name != "copy" || b.From == Metadata)
		})
		if i < 0 {
			err := failure.New(failure.Usage, "local has no option %s", clip(name))
			return failure.Hint(err, "its options are fill, on-stop and host")
		}
		if values := localOptions[i].values; values != nil && !slices.Contains(values, value) {
			return wrong(name, value, values)
		}
	}
	if host := b.Options["host"]; host != "" && !isMachineID(host) {
		err := failure.New(failure.Usage, "host=%s is not a machine id", clip(host))
		return failure.Hint(err, "use the content of /etc/machine-id of that host")
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

// Own follows the stable link, which only a fulfil of this boot has made.
func (k local) Own(ctx context.Context, h *Host, d Domain, bound []Bound, uid, gid int) error {
	for _, b := range bound {
		path := localdisk.StablePath(h.Layout, d.UUID, b.Disk.Target)
		node, err := filepath.EvalSymlinks(path)
		if err != nil {
			err = failure.New(failure.Precondition, "%s: disk %s: %w", d, b.Disk.Target, err)
			return failure.Hint(err, "start the domain again")
		}
		if err := h.Local.SetOwner(ctx, localdisk.Placement{Target: b.Disk.Target, Path: path, Node: node}, uid, gid); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	return nil
}

func (k local) Release(ctx context.Context, h *Host, d Domain, bound []Bound, reason string) error {
	disks := make([]localdisk.Disk, len(bound))
	for i, b := range bound {
		disks[i] = k.disk(h, d, b)
	}
	return h.Local.Release(ctx, d.UUID, disks, reason)
}

// Rewrite points the disk at the path that only a fulfil makes.
func (k local) Rewrite(h *Host, d Domain, b Bound) (xmlrewrite.Rewriter, xmlrewrite.BoundDisk, error) {
	machine, err := h.Layout.MachineID()
	if err != nil {
		return nil, xmlrewrite.BoundDisk{}, failure.Hint(failure.Wrap(failure.Precondition, err), "run `systemd-machine-id-setup`")
	}
	disk := k.disk(h, d, b)
	if err := disk.Validate(); err != nil {
		return nil, xmlrewrite.BoundDisk{}, fmt.Errorf("%s: %w", d, err)
	}
	path := localdisk.StablePath(h.Layout, d.UUID, b.Disk.Target)
	return xmlrewrite.LocalDisk{Target: b.Disk.Target, Path: path, Block: disk.Backend != "dir"},
		xmlrewrite.BoundDisk{
			Target: b.Disk.Target, Serial: b.Disk.Serial, Source: path,
			Local: &xmlrewrite.Local{
				Backend: disk.Backend, Fill: b.Binding.Option("fill", fillNow), OnStop: disk.OnStop,
				Host: b.Binding.Option("host", machine),
			},
		}, nil
}

// expected are the rewrites that a VDSM hook would do once the disks are ready.
func (h *Host) expected(bound []Bound) []xmlrewrite.Rewriter {
	var all []xmlrewrite.Rewriter
	for _, b := range bound {
		p := h.home(b)
		all = append(all, xmlrewrite.LocalDisk{Target: p.Target, Path: p.Path, Block: p.Block})
	}
	return all
}

// home is where the copy of an oVirt disk lies.
func (h *Host) home(b Bound) Placement {
	if backend := cmp.Or(b.Binding.Value, h.Config.Local.Backend); backend == "dir" {
		return Placement{b.Disk.Target, filepath.Join(h.Config.Local.Dir, b.Disk.Volume+".raw"), false}
	}
	return Placement{b.Disk.Target, filepath.Join("/dev", h.Config.Local.VG, b.Disk.Volume), true}
}

// LocalDisks are those of the bound disks that are local, in localdisk's words
// and with the chains to fill their copies from. They may be filled, whatever
// their binding says of starts.
func (h *Host) LocalDisks(ctx context.Context, d Domain, bound []Bound) ([]localdisk.Disk, error) {
	_, groups := byKind(bound)
	return local{}.disks(ctx, h, d, groups[local{}.Name()], true)
}

// disks are the bound disks in localdisk's words, with the chains to fill from
// where they may be needed.
func (k local) disks(ctx context.Context, h *Host, d Domain, bound []Bound, create bool) ([]localdisk.Disk, error) {
	disks := make([]localdisk.Disk, len(bound))
	for i, b := range bound {
		disk := k.disk(h, d, b)
		disk.Create = disk.Create || create
		if err := disk.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
		if err := k.discover(ctx, h, b, &disk); err != nil {
			return nil, err
		}
		disks[i] = disk
	}
	return disks, nil
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
		Create:  b.Binding.Option("fill", fill) == fillStart,
	}
	if d.OVirt {
		disk.Image, disk.Volume = b.Disk.Image, b.Disk.Volume
	}
	disk.Source, _ = b.source()
	if h.IsLocal(b.Disk.Path) && b.Recorded == nil {
		// A path among the copies is never a source: what lies there can be
		// used if it is this disk's, but nothing is made from it.
		disk.Source, disk.Create = nil, false
	}
	return disk
}

// source is the chain that the disk had before it was bound, and whether that
// is all of it.
func (b Bound) source() (layers []imagecheck.Layer, complete bool) {
	if b.Recorded == nil {
		return b.Disk.Layers(), b.Disk.Complete
	}
	origin, err := b.Recorded.OriginDisk()
	if err != nil {
		return nil, false
	}
	was := ReadDisk(origin, false, xmlrewrite.VDSMDevice{})
	return was.Layers(), was.Complete
}

// IsLocal says whether path lies where copies are kept.
func (h *Host) IsLocal(path string) bool {
	for _, dir := range []string{"/dev/" + h.Config.Local.VG, h.Config.Local.Dir, h.Layout.Links()} {
		if within(path, dir) {
			return true
		}
	}
	// device-mapper doubles the hyphens of both names (dm names, lvm(8)).
	return strings.HasPrefix(path, "/dev/mapper/"+strings.ReplaceAll(h.Config.Local.VG, "-", "--")+"-")
}

// discoverTimeout bounds how long a start may look at image headers on shared
// storage.
const discoverTimeout = 10 * time.Second

// discover completes the chain of a disk that may have to be filled, by
// reading image headers. A used copy settles everything: then the shared
// storage may be away. If there is a receipt but no guest used the copy yet, a
// chain that cannot be read is told to the log alone, as the copy is most
// likely ready.
func (k local) discover(ctx context.Context, h *Host, b Bound, disk *localdisk.Disk) error {
	if len(disk.Source) == 0 || disk.Source[len(disk.Source)-1].Format == "raw" {
		return nil
	}
	if _, complete := b.source(); complete {
		return nil
	}
	receipt, err := readReceipt(h.Layout, disk.Domain, disk.Key())
	if err != nil {
		return nil // whoever fulfils reads it again, and says so
	}
	if receipt != nil && receipt.Used && !receipt.Discarding && receipt.Volume == disk.Volume {
		return nil
	}
	if !disk.Create && !disk.OVirt() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	last := len(disk.Source) - 1
	below, err := imagecheck.Discover(ctx, disk.Source[last], h.Config.Paths.Allowed)
	switch {
	case err == nil:
		disk.Source = append(disk.Source[:last:last], below...)
	case receipt == nil:
		return unreadable(*disk, err)
	default:
		h.Log.Warn("the chain of the source cannot be read", "disk", disk.String(), "err", err)
	}
	return nil
}

func unreadable(disk localdisk.Disk, err error) error {
	hint := failure.HintOf(err)
	if hint == "" {
		hint = "bring its storage back, then start again"
	}
	err = fmt.Errorf("%s: there is no local copy yet, and its source %s cannot be read: %w", disk, failure.OneLine(disk.Source[0].Path), err)
	return failure.Hint(err, "%s", hint)
}

// OnlyReady are the same disks, but bound such that no copy is ever made.
func OnlyReady(bound []Bound) []Bound {
	ready := slices.Clone(bound)
	for i, b := range ready {
		ready[i].Binding = b.Binding.with("fill", fillNow)
	}
	return ready
}

// Placed says whether the disk of an oVirt VM lies in its own copy already,
// because another hook point did the work. A path among the copies that is not
// the disk's own is refused: it is never a source.
func (h *Host) Placed(d Domain, b Bound) (Placement, bool, error) {
	if !h.IsLocal(b.Disk.Path) {
		return Placement{}, false, nil
	}
	p := h.home(b)
	if b.Disk.Path == p.Path {
		return p, true, nil
	}
	err := failure.New(failure.Conflict, "%s: disk %s: %s lies where local copies are kept, but is not the disk's own (%s)", d, b.Disk.Target, failure.OneLine(b.Disk.Path), p.Path)
	return p, false, failure.Hint(err, "give the disk its shared volume again, or see which hook changed it")
}
