// SPDX-License-Identifier: Apache-2.0

// Package vdsm is the contract of VDSM's hook points (oVirt): the VM's id and
// custom properties in the environment, a file to read and to write back, and
// an exit code.
//
//	after_disk_prepare        JSON of one disk: make it ready, write its path
//	before_vm_start           XML: the same for all disks at once, and set the drivers right
//	before_disk_hotplug       XML of one disk
//	after_disk_hotunplug      XML of one disk: stop the replica set that it was, detach the volume
//	before_vm_migrate_source  refuse a VM with disks that cannot be migrated
//	after_vm_destroy          deactivate, detach, and discard what was bound so
//	before_vm_dehibernate     refuse to resume where the disks are not those of the saved memory
//	after_vm_hibernate        the VM has saved memory that needs its disks as they are
//	after_vm_dehibernate      it has none any more
//	before_vdsm_start         drop links of an earlier boot (root)
//	after_get_caps            JSON: tell Engine connector_info, if VDSM does not
//
// Several of them may be installed at once: what one did the next finds done.
// VDSM calls them again for running VMs after its own restart, when they are
// quick and change nothing.
//
// The last two are for the host and not for a VM, and never fail.
//
// The file is written only when everything succeeded, in one step. Every other
// byte of XML, and every other key of JSON, stays as it was. A copy has no
// deadline here: VDSM waits.
//
// The caller must have scrubbed the environment (qemu-hook does): VDSM puts
// custom properties into it under any name.
package vdsm

import (
	"context"
	"fmt"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"

	"github.com/google/uuid"
)

// Call is one call of a hook point. Lookup reads the environment, as
// os.LookupEnv does.
type Call struct {
	Point  string
	Lookup func(string) (string, bool)
}

func (c Call) env(name string) string {
	v, _ := c.Lookup(name)
	return v
}

type point func(context.Context, *vm) error

var points = map[string]point{
	"after_disk_prepare":       afterDiskPrepare,
	"before_vm_start":          beforeVMStart,
	"before_disk_hotplug":      beforeDiskHotplug,
	"after_disk_hotunplug":     afterDiskHotunplug,
	"before_vm_migrate_source": beforeVMMigrateSource,
	"after_vm_destroy":         afterVMDestroy,
	"before_vm_dehibernate":    beforeVMDehibernate,
	"after_vm_hibernate":       afterVMHibernate,
	"after_vm_dehibernate":     afterVMDehibernate,
}

// Run does what the hook point asks for. An error is to be printed as one line
// and to end with exit code 2, upon which VDSM stops. Unknown hook points do
// nothing.
func Run(ctx context.Context, h *bindings.Host, c Call) error {
	log := h.Log.With("vm", c.env("vmId"), "point", c.Point)
	switch c.Point {
	case "before_vdsm_start":
		beforeVDSMStart(h, log)
		return nil
	case "after_get_caps":
		afterGetCaps(ctx, h, c, log)
		return nil
	}
	do, known := points[c.Point]
	if !known {
		return nil
	}
	began := time.Now()
	err := func() error {
		v, err := newVM(h, c)
		if err != nil {
			return err
		}
		return do(ctx, v)
	}()
	if err != nil {
		log.Error("hook", "err", err, "hint", failure.HintOf(err))
		return err
	}
	log.Info("hook", "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// vm is a call, read.
type vm struct {
	*bindings.Host
	call    Call
	id      string
	written []bindings.Binding
	unknown []bindings.Disk // that may be images, but have no ids; see identified
}

func newVM(h *bindings.Host, c Call) (*vm, error) {
	id, err := uuid.Parse(c.env("vmId"))
	if err != nil {
		err := failure.New(failure.Usage, "vmId %q: not a uuid", c.env("vmId"))
		return nil, failure.Hint(err, "install the hook in one of VDSM's hook directories; VDSM sets vmId")
	}
	written, err := bindings.Properties(c.Lookup)
	if err != nil {
		return nil, failure.Hint(fmt.Errorf("vm %s: %w", id, err), "%s", failure.HintOf(err))
	}
	return &vm{Host: h, call: c, id: id.String(), written: written}, nil
}

// unusable is for the file that VDSM named in the variable.
func (v *vm) unusable(variable string, err error) error {
	hint := failure.HintOf(err)
	if hint == "" {
		hint = "see in vdsm.log which hook before this one wrote it"
	}
	if failure.KindOf(err) == nil {
		err = failure.Wrap(failure.Usage, err)
	}
	return failure.Hint(fmt.Errorf("vm %s: %s: %w", v.id, variable, err), "%s", hint)
}

// readXML reads the file of a hook point that gets XML.
func (v *vm) readXML() (file, *xmlrewrite.Document, error) {
	f, err := open(v.call.env("_hook_domxml"))
	if err != nil {
		return f, nil, v.unusable("_hook_domxml", err)
	}
	doc, err := xmlrewrite.Parse(f.content)
	if err != nil {
		return f, nil, v.unusable("_hook_domxml", err)
	}
	return f, doc, nil
}

// readDomain reads the file as the XML of this VM.
func (v *vm) readDomain() (file, *xmlrewrite.Document, bindings.Domain, error) {
	f, doc, err := v.readXML()
	if err != nil {
		return f, nil, bindings.Domain{}, err
	}
	d, err := bindings.ReadDomain(doc)
	if err != nil {
		return f, nil, d, err
	}
	if d.UUID != v.id {
		err := failure.New(failure.Usage, "vm %s: the domain XML is that of %s", v.id, failure.OneLine(d.UUID))
		return f, nil, d, failure.Hint(err, "see which hook before this one wrote it")
	}
	d.OVirt = true
	told, _ := doc.VDSM()
	for i, x := range doc.Disks() {
		d.Disks[i] = v.readDisk(x, told.Disks[x.Target])
	}
	return f, doc, d, nil
}
