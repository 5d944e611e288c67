// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/beevik/etree"
)

// LocalDisk points a disk at its copy on this host. What belongs to the old
// source goes (hosts, credentials, the backing chain, startupPolicy: a copy
// that is missing must never be skipped), everything else of the disk stays.
//
// No <backingStore> is written, not even the empty one that ends a chain: on an
// image that does have a backing file it would give the guest zeros.
type LocalDisk struct {
	Target string
	Path   string // absolute
	Block  bool   // a block device; else a file
	Format string // "" means raw
	Cache  string // "" means none
	IO     string // "" means native for a block device without host cache, else threads
	// Pause stops the guest at an I/O error, unless the definition says what
	// becomes of it.
	Pause bool
}

// These belong to one type of source and mean nothing in another
// (libvirt's storagecommon.rng and domaincommon.rng, diskSource*).
var (
	sourceAttrs = []string{"file", "dev", "dir", "name", "protocol", "tls", "tlsHostname", "query", "pool", "volume", "mode",
		"type", "path", "managed", "namespace", "startupPolicy", "index"}
	sourceChildren = []string{"host", "auth", "ssl", "snapshot", "config", "readahead", "timeout", "initiator", "identity",
		"reconnect", "knownHosts", "address"}
)

// Rewrite fails with ErrUnsupported if the copy could not stand for what the
// disk is.
func (l LocalDisk) Rewrite(doc *Document) error {
	return doc.editDisk(l.Target, func(ed *edit, disk *etree.Element) error {
		if err := l.check(disk); err != nil {
			return err
		}
		key, kind := "file", "file"
		if l.Block {
			key, kind = "dev", "block"
		}
		disk.CreateAttr("type", kind)

		source := child(disk, "source")
		source.Attr = append([]etree.Attr{{Key: key, Value: l.Path}}, slices.DeleteFunc(source.Attr, func(a etree.Attr) bool {
			return a.Space == "" && slices.Contains(sourceAttrs, a.Key)
		})...)
		for _, c := range source.ChildElements() {
			if slices.ContainsFunc(sourceChildren, func(name string) bool { return is(c, "", name) }) {
				remove(c)
			}
		}
		remove(child(disk, "auth"))
		remove(child(disk, "backingStore"))
		return l.setDriver(ed, disk)
	})
}

func (l LocalDisk) setDriver(ed *edit, disk *etree.Element) error {
	format, cache := or(l.Format, "raw"), or(l.Cache, "none")
	direct := cache == "none" || cache == "directsync"
	io := l.IO
	switch {
	case io == "" && l.Block && direct:
		io = "native"
	case io == "":
		io = "threads"
	case io == "native" && !direct:
		return fmt.Errorf("%w: io native needs cache none or directsync, not %s", ErrUnsupported, clip(cache))
	}
	driver := child(disk, "driver")
	if driver == nil {
		driver = etree.NewElement("driver")
		driver.CreateAttr("name", "qemu")
		ed.insertBefore(child(disk, "source"), driver)
	}
	driver.CreateAttr("type", format)
	driver.CreateAttr("cache", cache)
	driver.CreateAttr("io", io)
	if l.Pause && driver.SelectAttr("error_policy") == nil && driver.SelectAttr("rerror_policy") == nil {
		driver.CreateAttr("error_policy", "stop")
		driver.CreateAttr("rerror_policy", "stop")
	}
	if format != "qcow2" { // libvirt refuses these with any other format
		driver.RemoveAttr("discard_no_unref")
		remove(child(driver, "metadata_cache"))
	}
	return nil
}

func (l LocalDisk) check(e *etree.Element) error {
	if !filepath.IsAbs(l.Path) || filepath.Clean(l.Path) != l.Path {
		return fmt.Errorf("%w: %q is no clean absolute path", ErrUnsupported, clip(l.Path))
	}
	for _, name := range []string{"driver", "source", "backingStore", "target"} {
		n := 0
		for c := range e.ChildElementsSeq() {
			if is(c, "", name) {
				n++
			}
		}
		if n > 1 {
			return fmt.Errorf("%w: more than one <%s>", ErrUnsupported, name)
		}
	}
	d, source := readDisk(e), child(e, "source")
	for _, no := range []struct {
		found bool
		what  string
	}{
		{source == nil, "the drive has no medium"},
		{d.Device == "lun", "a LUN passed through has no local copy"},
		{d.Mirror, "a block copy of the disk is under way"},
		{d.Encrypted, "the disk is encrypted"},
		{d.Shareable, "the disk is shared with other domains"},
		{d.Transient, "the disk is transient"},
		{d.Source.HasSlices, "its source is a slice of an image"},
		{d.Source.HasDataStore, "its source keeps its data in a second file"},
		{d.Source.HasReservations, "its source has persistent reservations"},
		{d.Source.HasCookies, "its source has cookies, which are secrets"},
		{d.Source.FDGroup != "", "its source is an open descriptor"},
	} {
		if no.found {
			return fmt.Errorf("%w: %s", ErrUnsupported, no.what)
		}
	}
	return nil
}
