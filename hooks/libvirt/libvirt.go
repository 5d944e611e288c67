// SPDX-License-Identifier: Apache-2.0

// Package libvirt is the contract of libvirt's qemu hook (docs/hooks.rst):
// name, operation, sub-operation and extra word in, domain XML on stdin, XML on
// stdout for those operations that filter.
//
//	prepare begin    make the disks ready, or refuse
//	start begin      give QEMU the nodes that libvirt does not label, or was told not to
//	release end      undo, whatever happened before
//	migrate begin    refuse an incoming domain with disks that cannot be migrated
//	restore begin    refuse a saved domain whose disks are not as they were
//	reconnect begin  make missing links of a running domain again; never fails
//
// Every other operation, also of libvirts to come, does nothing. `started` is
// among them: its failure would kill a QEMU that runs already. The disks of a
// bound domain are named by paths that do not change, so migrate and restore
// have nothing to rewrite and print nothing; libvirt takes that for "as it is".
//
// libvirt holds a lock while a hook runs, so that listing the host's domains
// waits for it. Nothing here works long: a copy goes on in a process of its
// own, and after [local] deadline the start is refused with how far it is.
// libvirt itself is never called from here, which would deadlock.
package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// Call is one call of the hook. Domain is the name as libvirt passed it; it
// may look like an option or a path, and is used for nothing but logs.
type Call struct {
	Domain, Op, SubOp, Extra string
	Stdin                    []byte
}

type operation func(context.Context, *bindings.Host, Call, *xmlrewrite.Document) error

var operations = map[[2]string]operation{
	{"prepare", "begin"}:   prepare,
	{"start", "begin"}:     start,
	{"release", "end"}:     release,
	{"migrate", "begin"}:   migrate,
	{"restore", "begin"}:   restore,
	{"reconnect", "begin"}: reconnect,
}

// Run does what the operation asks for. stdout is to be printed as it is; an
// error refuses the operation. A domain that is none of ours never fails,
// however broken its XML is.
func Run(ctx context.Context, h *bindings.Host, c Call) (stdout []byte, err error) {
	op, known := operations[[2]string{c.Op, c.SubOp}]
	if !known {
		return nil, nil
	}
	log := h.Log.With("domain", failure.OneLine(c.Domain), "op", c.Op)
	began := time.Now()
	doc, err := xmlrewrite.Parse(c.Stdin)
	switch {
	case err == nil:
		err = op(ctx, h, c, doc)
	case !bytes.Contains(c.Stdin, []byte(xmlrewrite.Namespace)) && !bytes.Contains(c.Stdin, []byte(bindings.VolumeLinks)):
		log.Warn("XML of a domain that is not bound", "err", err)
		return nil, nil
	default:
		err = failure.New(failure.Usage, "domain %s: its XML: %w", failure.OneLine(c.Domain), err)
		err = failure.Hint(err, "correct it with `%s`", edit(c.Domain))
	}
	switch {
	case err == nil:
		log.Debug("hook", "took", time.Since(began))
	case c.Op == "reconnect" || c.Op == "release":
		// libvirt kills a running QEMU for the one and ignores the other.
		log.Error("hook", "err", err)
		return nil, nil
	default:
		log.Error("hook", "err", err, "hint", failure.HintOf(err))
	}
	return nil, err
}

// edit is the command that edits a definition that cannot be read, so that only
// its name is known.
func edit(name string) string {
	argv := []string{"virsh", "edit", name}
	if strings.HasPrefix(name, "-") {
		argv = []string{"virsh", "edit", "--", name}
	}
	return command.Quote(argv)
}

// prepare comes before libvirt looks at any disk.
func prepare(ctx context.Context, h *bindings.Host, _ Call, doc *xmlrewrite.Document) error {
	d, bound, err := settle(ctx, h, doc)
	if err != nil || len(bound) == 0 {
		return err
	}
	if err := h.Overridden(doc, d, bound); err != nil {
		return err
	}
	_, err = h.Fulfil(ctx, d, bound, time.Duration(h.Config.Local.Deadline))
	return err
}

// settle is Host.Start, but leaves alone what VDSM runs: there the hook points
// of VDSM have done the work, and its disks do not have the paths of their
// definition any more.
func settle(ctx context.Context, h *bindings.Host, doc *xmlrewrite.Document) (bindings.Domain, []bindings.Bound, error) {
	d, err := bindings.ReadDomain(doc)
	if err != nil || d.OVirt && d.Metadata == nil {
		return d, nil, err
	}
	bound, err := h.Settle(ctx, d, nil)
	return d, bound, err
}

// start comes when labels are chosen and not yet applied. libvirt labels files
// and devices itself, through our links, unless the disk says relabel='no'; a
// socket that it only connects to it leaves alone.
func start(ctx context.Context, h *bindings.Host, _ Call, doc *xmlrewrite.Document) error {
	d, bound, err := settle(ctx, h, doc)
	if err != nil {
		return err
	}
	if err := h.Overridden(doc, d, bound); err != nil {
		return err // libvirt has numbered the images only now
	}
	if bound = unlabelled(doc, bound); len(bound) == 0 {
		return nil
	}
	return h.Own(ctx, d, bound, imageLabel(doc))
}

// release comes after every end of a domain, also after a start that failed
// before anything was done. Extra is the reason since libvirt 10.5.
func release(ctx context.Context, h *bindings.Host, c Call, doc *xmlrewrite.Document) error {
	d, err := bindings.ReadDomain(doc)
	if err != nil || d.OVirt && d.Metadata == nil || bindings.SameDomain(d) != nil {
		return err
	}
	bound, _, err := bindings.Resolve(d, nil)
	if err != nil {
		return err
	}
	reason := c.Extra
	if reason == "-" {
		reason = ""
	}
	err = h.Release(ctx, d, bound, reason)
	if d.Metadata != nil { // what was bound, and unplugged before the domain ended
		err = errors.Join(err, h.Local.ReleaseRest(ctx, d.UUID), h.Quorum.StopRest(ctx, d.UUID), h.ReleaseImages(ctx, d), h.ReleaseThin(ctx, d))
	}
	if d.Metadata != nil || len(bound) > 0 {
		err = errors.Join(err, h.ReleaseVolumes(ctx, d))
	}
	return err
}

// migrate runs on the host to which the domain comes. The domain may be a
// clone or drifted; that its disks stay behind is reason enough.
func migrate(_ context.Context, _ *bindings.Host, _ Call, doc *xmlrewrite.Document) error {
	d, err := bindings.ReadDomain(doc)
	if err != nil {
		return err
	}
	bound, _, err := bindings.Resolve(d, nil)
	if err != nil {
		return err
	}
	return bindings.Migratable(d, bound)
}

// restore is followed by prepare, which makes the disks ready and cannot know
// that memory was saved with them. So what such memory needs is checked here:
// copies that are there already.
func restore(ctx context.Context, h *bindings.Host, _ Call, doc *xmlrewrite.Document) error {
	d, bound, err := settle(ctx, h, doc)
	if err != nil || len(bound) == 0 {
		return err
	}
	return h.Restorable(ctx, d, bound)
}

// reconnectTimeout bounds what is tried for a domain that runs anyway.
const reconnectTimeout = 10 * time.Second

// reconnect comes for every running domain when the daemon starts. It gives
// its disks back what the host lost of them, and never makes a copy.
func reconnect(ctx context.Context, h *bindings.Host, _ Call, doc *xmlrewrite.Document) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reconnect: %v", r)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, reconnectTimeout)
	defer cancel()
	d, bound, err := settle(ctx, h, doc)
	if err != nil || len(bound) == 0 {
		return err
	}
	return h.Relink(ctx, d, bound, reconnectTimeout)
}
