// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"context"
	"path"
	"strings"

	"github.com/google/uuid"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// noDeadline: VDSM itself has none, and a refusal would have Engine try the
// next host.
const noDeadline = 0

func afterDiskPrepare(ctx context.Context, v *vm) error {
	f, err := open(v.call.env("_hook_json"))
	if err != nil {
		return v.unusable("_hook_json", err)
	}
	dict, err := parseDict(f.content)
	if err != nil {
		return v.unusable("_hook_json", err)
	}
	d := bindings.Domain{UUID: v.id, OVirt: true, Partial: true, Disks: []bindings.Disk{dict.disk()}}
	placements, err := v.fulfil(ctx, d)
	if err != nil || len(placements) == 0 {
		return err
	}
	p := placements[0]
	changed, err := dict.with("path", p.Path, "format", "raw", "diskType", sourceType(p))
	if err != nil {
		return v.unusable("_hook_json", err)
	}
	return f.replace(changed)
}

func sourceType(p bindings.Placement) string {
	if p.Block {
		return "block"
	}
	return "file"
}

// fulfil makes the bound disks of d ready. None bound, nothing is done.
func (v *vm) fulfil(ctx context.Context, d bindings.Domain) ([]bindings.Placement, error) {
	bound, err := v.Settle(ctx, d, v.written)
	if err != nil || len(bound) == 0 {
		return nil, err
	}
	return v.Fulfil(ctx, d, bound, noDeadline)
}

// beforeVMStart does the work where after_disk_prepare is not installed. Where
// it is, the disks lie where they belong already, and only what VDSM leaves of
// the old driver is set right: it keeps io=threads of a file for a volume.
func beforeVMStart(ctx context.Context, v *vm) error {
	f, doc, d, err := v.readDomain()
	if err != nil {
		return err
	}
	bound, err := v.Settle(ctx, d, v.written)
	if err != nil || len(bound) == 0 {
		return err
	}
	var placements []bindings.Placement
	var fresh []bindings.Bound
	for _, b := range bound {
		p, placed, err := v.Placed(d, b)
		switch {
		case err != nil:
			return err
		case placed:
			placements = append(placements, p)
		default:
			fresh = append(fresh, b)
		}
	}
	if len(fresh) > 0 {
		made, err := v.Fulfil(ctx, d, fresh, noDeadline)
		if err != nil {
			return err
		}
		placements = append(placements, made...)
	}
	return v.rewrite(f, doc, placements)
}

func beforeDiskHotplug(ctx context.Context, v *vm) error {
	f, doc, err := v.readXML()
	if err != nil {
		return err
	}
	d := bindings.Domain{UUID: v.id, OVirt: true, Partial: true}
	for _, x := range doc.Disks() {
		d.Disks = append(d.Disks, bindings.ReadDisk(x, true, idsOf(x)))
	}
	placements, err := v.fulfil(ctx, d)
	if err != nil {
		return err
	}
	return v.rewrite(f, doc, placements)
}

// idsOf takes the ids of a hot-plugged image from its path, as VDSM tells
// them no other way: …/DOMAIN/images/IMAGE/VOLUME, where IMAGE is the disk's
// serial, too.
func idsOf(x *xmlrewrite.Disk) xmlrewrite.VDSMDevice {
	parts := strings.Split(path.Clean(x.Source.Path()), "/")
	if len(parts) < 5 {
		return xmlrewrite.VDSMDevice{}
	}
	storage, images, image, volume := parts[len(parts)-4], parts[len(parts)-3], parts[len(parts)-2], parts[len(parts)-1]
	if images != "images" || !isID(storage) || !isID(image) || !isID(volume) || x.Serial != "" && x.Serial != image {
		return xmlrewrite.VDSMDevice{}
	}
	return xmlrewrite.VDSMDevice{DomainID: storage, ImageID: image, VolumeID: volume}
}

func isID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}

// rewrite points the disks at their copies and writes the file, if that
// changes anything.
func (v *vm) rewrite(f file, doc *xmlrewrite.Document, placements []bindings.Placement) error {
	var changes []xmlrewrite.Rewriter
	for _, p := range placements {
		changes = append(changes, xmlrewrite.LocalDisk{Target: p.Target, Path: p.Path, Block: p.Block})
	}
	after, err := xmlrewrite.Apply(doc, changes...)
	if err != nil {
		err = failure.New(failure.Precondition, "vm %s: %w", v.id, err)
		return failure.Hint(err, "take the disk out of the property")
	}
	return f.replace(after.Bytes())
}
