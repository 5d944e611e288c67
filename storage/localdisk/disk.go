// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
)

// Disk is what localdisk has to know of one bound disk of a domain.
type Disk struct {
	Domain     string `json:"domain"`      // the domain's UUID
	DomainName string `json:"domain_name"` // for messages only
	Target     string `json:"target"`      // target/@dev: vda

	// Image and Volume are oVirt's ids of the disk and of its leaf volume.
	// Empty elsewhere.
	Image  string `json:"image,omitempty"`
	Volume string `json:"volume,omitempty"`

	Backend string `json:"backend"` // lvm, lvmthin, dir or thin
	OnStop  string `json:"on_stop"` // keep or discard

	// Copy is the UUID of the copy that the binding names; "" if it names none.
	Copy string `json:"copy,omitempty"`
	// Host is the machine id that the binding is for; "" is any machine.
	Host string `json:"host,omitempty"`

	// Source is the chain to copy from, top first. Only filling reads it: a
	// ready copy is used even when the source is gone.
	Source []imagecheck.Layer `json:"source,omitempty"`
	// From is the image of a storage repository to copy from. Source is empty then.
	From *From `json:"from,omitempty"`
	// held identifies the content of that image while it is held; see from.go.
	held string
	// Create says that a start may make the copy (fill=start, and oVirt).
	// Without it an absent copy is a veto.
	Create bool `json:"create"`
	// Instant says that the copy to make is an overlay on its source
	// (fill=instant), so that nobody waits for its data.
	Instant bool `json:"instant,omitempty"`
	// Template says that the copy to make is an overlay on the template of its
	// base (template=overlay), which has the disk's own images and nothing else.
	Template bool `json:"template,omitempty"`
	// Verify says that the copy to make is read back, and compared with its
	// source, before it is complete. An overlay on the source has nothing of it.
	Verify bool `json:"verify,omitempty"`
	// Opened is the format in which the domain's definition opens the copy, raw
	// or qcow2; "" is not known.
	Opened string `json:"opened,omitempty"`

	// BoundAnew says that the disk is about to be bound: guests may have run on
	// its source until now. Who binds it says so; see stale.go.
	BoundAnew bool `json:"-"`

	// Name is the copy's name as its receipt has it, where that is not the one
	// that the ids give: see Pivoting. It is filled in here.
	Name string `json:"-"`
	// Home is where its receipt says that the copy is, volume group or directory;
	// "" is where copies are configured to go. It is filled in here.
	Home string `json:"-"`
	// On is the name of the template that an overlay to make lies on, or that a
	// copy to make is a clone of. It is filled in here.
	On string `json:"-"`
	// InPlace makes a copy under the path that it has when it is complete, for
	// who has it open then.
	InPlace bool `json:"-"`

	// Fill and Origin are how the disk was bound, in the words of who bound it:
	// when its copy is made, and what the disk was before. They mean nothing
	// here, and go into the receipt to be found there when nothing else tells.
	Fill   string `json:"fill,omitempty"`
	Origin string `json:"origin,omitempty"`
}

// MaxOrigin bounds Disk.Origin, in bytes.
const MaxOrigin = 64 << 10

// Values of Disk.OnStop.
const (
	Keep    = "keep"
	Discard = "discard"
)

// OVirt says that the disk is named by oVirt's ids: the volume carries the
// leaf volume's id, as oVirt's own hook names it, and the path given to QEMU is the
// volume's own.
func (d Disk) OVirt() bool { return d.Volume != "" }

// Key names the disk within its domain, for receipts and locks: the target,
// or oVirt's image id, because Engine hands out targets anew at every start.
func (d Disk) Key() string {
	if d.OVirt() {
		return d.Image
	}
	return d.Target
}

// copyPrefix begins the names of copies that we named.
const copyPrefix = "dh_"

// overlaid says that the copy to make is an image on top of something.
func (d Disk) overlaid() bool { return d.Instant || d.Template }

// format is that of the copy that would be made.
func (d Disk) format() string {
	if d.overlaid() {
		return imagecheck.QCOW2
	}
	return imagecheck.Raw
}

// CopyName is the name of the volume or file. It comes from ids only, so
// that renaming the domain is harmless.
func (d Disk) CopyName() string {
	if d.Name != "" {
		return d.Name
	}
	if d.OVirt() {
		return d.Volume
	}
	return copyPrefix + d.Domain + "_" + d.Target
}

// String names the disk in messages.
func (d Disk) String() string {
	name := d.DomainName
	if name == "" {
		name = d.Domain
	}
	return fmt.Sprintf("domain %s: disk %s", failure.OneLine(name), d.Target)
}

// Validate checks everything that came from outside by a strict grammar. The
// error is a failure.Usage.
func (d Disk) Validate() error {
	bad := func(what, value string) error {
		return failure.New(failure.Usage, "disk %q: %s %q is not valid", d.Target, what, value)
	}
	switch {
	case !host.IsUUID(d.Domain):
		return bad("domain uuid", d.Domain)
	case !validTarget(d.Target):
		return bad("target", d.Target)
	case d.Volume != "" && (!host.IsUUID(d.Volume) || !host.IsUUID(d.Image)):
		return bad("image or volume id", d.Image+"/"+d.Volume)
	case d.Volume == "" && d.Image != "":
		return bad("image id without a volume id", d.Image)
	case !slices.Contains(Backends(), d.Backend):
		return failure.Hint(bad("backend", d.Backend), "use one of %s", strings.Join(Backends(), ", "))
	case d.Backend == thinBackend && d.OVirt():
		return failure.Hint(bad("backend", d.Backend), "use another one for VMs of oVirt: VDSM knows the volumes of its own storage only")
	case d.Backend == thinBackend && (len(d.Target) > maxThinTarget || d.Template):
		return bad("disk of backend", d.Backend)
	case d.OnStop != Keep && d.OnStop != Discard:
		return failure.Hint(bad("on-stop", d.OnStop), "use keep or discard")
	case strings.ContainsFunc(d.Host, notHex):
		return bad("host", d.Host)
	case d.overlaid() && d.OVirt():
		return bad("volume of an overlay", d.Volume)
	case d.Instant && d.Template:
		return bad("fill", "an overlay on a template is not made at once")
	case d.From != nil && (d.OVirt() || d.Instant || len(d.Target) > maxHeldTarget || !host.IsUUID(d.From.ID) || d.From.Repo == ""):
		return bad("image", failure.OneLine(d.From.String()))
	case d.Opened != "" && d.Opened != imagecheck.Raw && d.Opened != imagecheck.QCOW2:
		return bad("format", d.Opened)
	case len(d.Fill) > 16 || strings.ContainsFunc(d.Fill, func(r rune) bool { return r < 'a' || r > 'z' }):
		return bad("fill", failure.OneLine(d.Fill))
	case len(d.Origin) > MaxOrigin || d.OVirt() && d.Origin != "": // oVirt tells at each start what a disk is
		return bad("origin", fmt.Sprintf("%d bytes", len(d.Origin)))
	}
	for _, layer := range d.Source {
		if !filepath.IsAbs(layer.Path) || filepath.Clean(layer.Path) != layer.Path {
			return bad("source", layer.Path)
		}
	}
	return nil
}

func validate(disks []Disk) error {
	for _, d := range disks {
		if err := d.Validate(); err != nil {
			return err
		}
	}
	return nil
}

func validKey(domain, key string) error {
	if !host.IsUUID(domain) || !host.IsUUID(key) && !validTarget(key) {
		return failure.New(failure.Usage, "domain %q, disk %q: not valid", domain, key)
	}
	return nil
}

// validTarget is the device name grammar of libvirt's schema, bounded.
func validTarget(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}

func notHex(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') && r != '-' }

// link is the stable path that only a fulfil makes.
func link(l host.Layout, d Disk) string { return filepath.Join(l.Links(), d.Domain, d.Target) }

// StablePath is the path by which a bound disk's XML names its copy. It
// exists between a fulfil and the domain's release.
func StablePath(l host.Layout, domain, target string) string {
	return filepath.Join(l.Links(), domain, target)
}
