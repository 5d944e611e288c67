// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/storage/receipts"
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
	bound, err := v.settle(ctx, d)
	if bound = but(bound, "quorum"); err != nil || len(bound) == 0 {
		return err // a replica set takes the disk's place in the XML, later
	}
	placements, err := v.Fulfil(ctx, d, bound, noDeadline)
	if err != nil || len(placements) == 0 {
		return err
	}
	p := placements[0]
	changed, err := dict.with("path", p.Path, "format", "raw", "diskType", sourceType(p))
	if err != nil {
		err = v.unusable("_hook_json", err)
	} else {
		err = f.replace(changed)
	}
	return v.orReleased(ctx, d, bound, err)
}

func sourceType(p bindings.Placement) string {
	if p.Block {
		return "block"
	}
	return "file"
}

// settle settles which disks of d are bound to what. Everything that forbids a
// start before storage is asked is an error.
func (v *vm) settle(ctx context.Context, d bindings.Domain) ([]bindings.Bound, error) {
	if err := v.identified(d); err != nil {
		return nil, err
	}
	return v.Settle(ctx, d, v.written)
}

// but are the disks that are not bound to a kind of storage.
func but(bound []bindings.Bound, kind string) []bindings.Bound {
	return slices.DeleteFunc(slices.Clone(bound), func(b bindings.Bound) bool { return b.Binding.Kind == kind })
}

// beforeVMStart does the work for all disks at once. Where after_disk_prepare
// has done it already, it looks again, which takes a moment: QEMU is about to
// open what the paths name. And it sets right what VDSM leaves of the old
// driver, io=threads of a file for a volume.
func beforeVMStart(ctx context.Context, v *vm) error {
	f, doc, d, err := v.readDomain()
	if err != nil {
		return err
	}
	bound, err := v.settle(ctx, d)
	if err != nil || len(bound) == 0 {
		return err
	}
	told, _ := doc.VDSM()
	for i, b := range bound {
		if b.Binding.Kind != "local" {
			continue
		}
		_, placed, err := v.Placed(d, b)
		if err == nil && placed {
			bound[i], err = v.received(ctx, d, b, told.Disks[b.Disk.Target])
		}
		if err != nil {
			return err
		}
	}
	return v.ready(ctx, f, doc, d, bound)
}

// ready makes the disks ready and points the domain at them. What the domain
// does not allow is known before any storage is asked.
func (v *vm) ready(ctx context.Context, f file, doc *xmlrewrite.Document, d bindings.Domain, bound []bindings.Bound) error {
	changes, err := v.Place(d, bound)
	if err != nil {
		return err
	}
	after, err := xmlrewrite.Apply(doc, changes...)
	if err != nil {
		err = failure.New(failure.Precondition, "vm %s: %w", v.id, err)
		return failure.Hint(err, "take the disk out of the property, or see which hook wrote it")
	}
	if _, err := v.Fulfil(ctx, d, bound, noDeadline); err != nil {
		return err
	}
	return v.orReleased(ctx, d, bound, f.replace(after.Bytes()))
}

// orReleased takes volumes away again that were attached for a start which
// fails here. Copies and sets cost nothing until the VM's end is told.
func (v *vm) orReleased(ctx context.Context, d bindings.Domain, bound []bindings.Bound, err error) error {
	if err == nil {
		return nil
	}
	volumes := slices.DeleteFunc(slices.Clone(bound), func(b bindings.Bound) bool { return b.Kept() == "" })
	if left := v.Release(context.WithoutCancel(ctx), d, volumes, ""); left != nil {
		v.Log.Warn("the volumes that were attached for this start stay", "err", left)
	}
	return err
}

// received passes a disk that lies among the copies and has a receipt. Without
// one it was not diskhook that placed it. A complete volume may be that of
// oVirt's own hook and be adopted, for which it is compared with the image that
// it was made from; the path of that comes from the ids.
func (v *vm) received(ctx context.Context, d bindings.Domain, b bindings.Bound, told xmlrewrite.VDSMDevice) (bindings.Bound, error) {
	_, err := os.Lstat(receipts.Path(v.Layout, v.id, b.Disk.Image+".json"))
	if !errors.Is(err, fs.ErrNotExist) {
		return b, nil // one that cannot be read is refused by who reads it
	}
	disks := v.BoundDisks(d, []bindings.Bound{b})
	observed, err := v.Local.Observe(ctx, disks)
	if err != nil {
		return b, err
	}
	switch {
	case observed[0].Copy.State != localdisk.Ready:
		return b, unreceived(d, b, "is "+string(observed[0].Copy.State))
	case told.PoolID == "" || told.DomainID == "":
		return b, unreceived(d, b, "cannot be compared with its image, whose pool and domain the metadata do not tell")
	}
	image := imagecheck.Layer{Format: imagecheck.QCOW2, Path: filepath.Join("/", v.Layout.Root, "rhev/data-center",
		told.PoolID, told.DomainID, "images", b.Disk.Image, b.Disk.Volume)}
	if _, err := v.Discover(ctx, disks[0], image); err != nil {
		image.Format = imagecheck.Raw // what else may be wrong with it comes up again
	}
	b = bindings.OnlyReady([]bindings.Bound{b})[0]
	b.Disk.Path, b.Disk.Format, b.Disk.Chain = image.Path, image.Format, nil
	return b, nil
}

func unreceived(d bindings.Domain, b bindings.Bound, why string) error {
	err := failure.New(failure.Conflict, "%s: disk %s: %s lies where local copies are kept, but this host has no receipt for it, and it %s", d, b.Disk.Target, failure.OneLine(b.Disk.Path), why)
	return failure.Hint(err, "see which hook placed it, and have it leave the disk on its shared volume; if it is this disk's copy and complete, run `diskhook local adopt %s %s`", d.NameArg(), b.Disk.Target)
}

func beforeDiskHotplug(ctx context.Context, v *vm) error {
	f, doc, err := v.readXML()
	if err != nil {
		return err
	}
	d := v.partOf(doc)
	bound, err := v.settle(ctx, d)
	if err != nil || len(bound) == 0 {
		return err
	}
	return v.ready(ctx, f, doc, d, bound)
}

// partOf is the VM as the XML of one disk tells of it.
func (v *vm) partOf(doc *xmlrewrite.Document) bindings.Domain {
	d := bindings.Domain{UUID: v.id, OVirt: true, Partial: true}
	for _, x := range doc.Disks() {
		d.Disks = append(d.Disks, v.readDisk(x, xmlrewrite.VDSMDevice{}))
	}
	return d
}
