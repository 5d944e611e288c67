// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import "fmt"

// Namespace is that of the element in <metadata> that says what diskhook did
// to the disks of a domain:
//
//	<dh:disks xmlns:dh='urn:diskhook:1' domain='UUID of this domain'>
//	  <dh:disk target='vda' serial='…' source='the path as we wrote it'>
//	    <dh:local backend='lvmthin' fill='now' on-stop='keep' copy='UUID' host='machine-id'/>
//	    <dh:origin><disk type='file'>driver, auth, source, backingStore as they were</disk></dh:origin>
//	  </dh:disk>
//	</dh:disks>
//
// libvirt keeps it through libxml2, which writes its attributes in double
// quotes, and drops a second one.
const Namespace = "urn:diskhook:1"

// Metadata is the content of that element.
type Metadata struct {
	Domain string // uuid of the domain it was written for: another one means a clone
	Disks  []BoundDisk
}

// BoundDisk says what a disk is bound to: exactly one of the kinds is set,
// unless Unknown tells that a newer diskhook wrote something else.
type BoundDisk struct {
	Target, Serial string
	Source         string // the path that was written into the disk's <source>

	Local  *Local
	Volume *Volume
	Quorum *Quorum
	Image  *Image
	Thin   *Thin

	// Origin is what the disk was before, as Document.Origin returned it: a
	// <disk> element. An image or a thin volume may lie below it.
	Origin      []byte
	OriginImage *Image
	OriginThin  *Thin

	// Unknown names the elements and attributes that this program does not
	// know. Whoever acts on the disk must refuse then: it may mean anything.
	Unknown []string
}

// Local binds a disk to a copy on one host.
type Local struct{ Backend, Fill, Template, OnStop, Copy, Host string }

// Volume binds a disk to a managed volume.
type Volume struct{ ID string }

// Quorum binds a disk to a set of replicas. Lower is how libvirt gets to see
// it (export, inline, none), Transport how an export is reached (nbd or
// vhost-user; "" is nbd).
type Quorum struct{ Set, Lower, Transport string }

// Image binds a disk to an image of a storage repository. Format is the one that
// the disk was defined with: what an image on top of it takes it for.
type Image struct{ Repo, ID, Format string }

// Thin binds a disk to a volume of a thin cluster.
type Thin struct{ Cluster, Volume string }

// Disk returns the entry of a disk.
func (m *Metadata) Disk(target string) (*BoundDisk, bool) {
	if m != nil {
		for i := range m.Disks {
			if m.Disks[i].Target == target {
				return &m.Disks[i], true
			}
		}
	}
	return nil, false
}

// Kind returns the name of what the disk is bound to ("local", "volume", …);
// "" if only a newer diskhook knows.
func (b *BoundDisk) Kind() string {
	for _, e := range b.bindings() {
		return e.name
	}
	return ""
}

// field ties an attribute of the XML to its place in Go.
type field struct {
	name string
	at   *string
}

func (l *Local) fields() []field {
	return []field{{"backend", &l.Backend}, {"fill", &l.Fill}, {"template", &l.Template}, {"on-stop", &l.OnStop}, {"copy", &l.Copy}, {"host", &l.Host}}
}
func (v *Volume) fields() []field { return []field{{"id", &v.ID}} }
func (q *Quorum) fields() []field {
	return []field{{"set", &q.Set}, {"lower", &q.Lower}, {"transport", &q.Transport}}
}
func (i *Image) fields() []field {
	return []field{{"repo", &i.Repo}, {"id", &i.ID}, {"format", &i.Format}}
}
func (t *Thin) fields() []field { return []field{{"cluster", &t.Cluster}, {"volume", &t.Volume}} }

// element is one element of the XML with its attributes.
type element struct {
	name   string
	fields []field
}

// bindings lists the kinds that are set.
func (b *BoundDisk) bindings() (set []element) {
	if b.Local != nil {
		set = append(set, element{"local", b.Local.fields()})
	}
	if b.Volume != nil {
		set = append(set, element{"volume", b.Volume.fields()})
	}
	if b.Quorum != nil {
		set = append(set, element{"quorum", b.Quorum.fields()})
	}
	return append(set, layers(b.Image, b.Thin)...)
}

// layers lists those kinds that can also lie below another one.
func layers(i *Image, t *Thin) (set []element) {
	if i != nil {
		set = append(set, element{"image", i.fields()})
	}
	if t != nil {
		set = append(set, element{"thin", t.fields()})
	}
	return set
}

// bind makes the kind of that name and returns its fields; nil if the name is
// of no kind.
func (b *BoundDisk) bind(name string) []field {
	switch name {
	case "local":
		b.Local = new(Local)
		return b.Local.fields()
	case "volume":
		b.Volume = new(Volume)
		return b.Volume.fields()
	case "quorum":
		b.Quorum = new(Quorum)
		return b.Quorum.fields()
	}
	return bindLayer(name, &b.Image, &b.Thin)
}

func bindLayer(name string, i **Image, t **Thin) []field {
	switch name {
	case "image":
		*i = new(Image)
		return (*i).fields()
	case "thin":
		*t = new(Thin)
		return (*t).fields()
	}
	return nil
}

// check finds what must be true of metadata both when read and when written.
func (m *Metadata) check() error {
	if m.Domain == "" {
		return fmt.Errorf("%w: it names no domain", ErrMetadata)
	}
	seen := map[string]bool{}
	for i := range m.Disks {
		b := &m.Disks[i]
		switch n := len(b.bindings()); {
		case b.Target == "":
			return fmt.Errorf("%w: a disk without target", ErrMetadata)
		case seen[b.Target]:
			return fmt.Errorf("%w: disk %s is there twice", ErrMetadata, clip(b.Target))
		case n > 1:
			return fmt.Errorf("%w: disk %s is bound to %d things", ErrMetadata, clip(b.Target), n)
		case n == 0 && len(b.Unknown) == 0:
			return fmt.Errorf("%w: disk %s is bound to nothing", ErrMetadata, clip(b.Target))
		}
		seen[b.Target] = true
	}
	return nil
}
