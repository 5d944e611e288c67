// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"os"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// layers is a chain of images, top first.
func layers(paths ...string) (chain []imagecheck.Layer) {
	for _, path := range paths {
		chain = append(chain, imagecheck.Layer{Path: path, Format: "qcow2"})
	}
	return chain
}

// TestVanished: a bound disk is gone from the definition, and another disk has
// what it was made from.
func TestVanished(t *testing.T) {
	used := &localdisk.Receipt{Used: true, Source: layers("ROOT/images/top.qcow2", "ROOT/images/mid.qcow2", "ROOT/images/base.raw")}
	const elsewhere = "ffffffffffffffffffffffffffffffff"
	for name, c := range map[string]struct {
		other   string // source of the disk that is there now; "" if none is
		below   string // what its chain declares
		entry   string // attributes of the metadata
		receipt *localdisk.Receipt
		refused bool
	}{
		"origin back":             {"ROOT/images/top.qcow2", "", "", used, true},
		"origin back, unclean":    {"ROOT/images//./top.qcow2", "", "", used, true},
		"a lower layer":           {"ROOT/images/base.raw", "", "", used, true},
		"above the origin":        {"/srv/snap.qcow2", "ROOT/images/top.qcow2", "", used, true},
		"beside it, on one base":  {"/srv/other.qcow2", "ROOT/images/base.raw", "", used, false},
		"detached":                {"", "", "", used, false},
		"something else":          {"/srv/other.raw", "", "", used, false},
		"origin, receipt differs": {"ROOT/images/top.qcow2", "", "", &localdisk.Receipt{Used: true, Source: layers("/srv/moved.raw")}, true},
		"not used":                {"ROOT/images/top.qcow2", "", "", &localdisk.Receipt{Source: used.Source}, false},
		"given up":                {"ROOT/images/top.qcow2", "", "", &localdisk.Receipt{Used: true, Discarding: true, Source: used.Source}, false},
		"no receipt":              {"ROOT/images/top.qcow2", "", "", nil, false},
		"no receipt, but a copy":  {"ROOT/images/top.qcow2", "", "copy='u' host='" + hooktest.Machine + "'", nil, true},
		"its copy is elsewhere":   {"ROOT/images/top.qcow2", "", "host='" + elsewhere + "'", nil, true},
		"elsewhere, detached":     {"", "", "copy='u' host='" + elsewhere + "'", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := hooktest.New(t, &hooktest.Local{})
			rooted := func(s string) string { return strings.ReplaceAll(s, "ROOT", w.Root) }
			doc := applied(t, w)
			stable := w.Path("run/diskhook/disks/" + hooktest.UUID + "/vda")
			doc = edit(t, doc, "<target dev='vda'", "<target dev='sdb'")
			if c.entry != "" {
				doc = edit(t, doc, "host='"+hooktest.Machine+"'", c.entry)
			}
			source := "<source file='" + rooted(c.other) + "'/>"
			if c.below != "" {
				source += "<backingStore type='file'><format type='qcow2'/><source file='" + rooted(c.below) + "'/></backingStore>"
			}
			if c.other == "" {
				source = "" // an empty slot
			}
			doc = edit(t, doc, "<source file='"+stable+"'/>", source)
			if c.receipt != nil {
				r := *c.receipt
				r.Source = nil
				for _, l := range c.receipt.Source {
					r.Source = append(r.Source, imagecheck.Layer{Path: rooted(l.Path), Format: l.Format})
				}
				w.Receipt(r)
			}
			_, _, err := w.Start(t.Context(), doc, nil)
			if c.refused {
				refused(t, err, failure.Conflict, "domain vm", "sdb", "vda", "diskhook domain revert --export FILE vm vda", "--discard-guest-data vm vda")
				return
			}
			if err != nil {
				t.Error(err)
			}
			if log := w.Log.String(); !strings.Contains(log, "no longer in the domain") {
				t.Errorf("no word in the log: %s", log)
			}
		})
	}
}

// TestVanishedIllegible: a receipt that cannot be read may say that the guest
// used the copy.
func TestVanishedIllegible(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	stable := w.Path("run/diskhook/disks/" + hooktest.UUID + "/vda")
	doc := edit(t, applied(t, w), "<target dev='vda'", "<target dev='sdb'")
	w.Write("var/lib/diskhook/receipts/"+hooktest.UUID+"/vda.json", "")
	_, _, err := w.Start(t.Context(), edit(t, doc, stable+"'/>", w.Path("images/top.qcow2")+"'/>"), nil)
	refused(t, err, failure.Precondition, "vda", "vda.json")
	// Such a start failed; what comes after it is harmless.
	d, bound, _ := w.Start(t.Context(), doc, nil)
	if err := w.Release(t.Context(), d, bound, "shutdown"); err != nil {
		t.Error(err)
	}
}

// TestDisplaced: the same without metadata, by the receipt alone.
func TestDisplaced(t *testing.T) {
	for name, c := range map[string]struct {
		receipt localdisk.Receipt
		refused bool
	}{
		"source back":      {localdisk.Receipt{Target: "sdb", Used: true, Source: layers("/srv/a")}, true},
		"a lower layer":    {localdisk.Receipt{Target: "sdb", Used: true, Source: layers("/srv/top", "/srv/x/../a")}, true},
		"something else":   {localdisk.Receipt{Target: "sdb", Used: true, Source: layers("/srv/c")}, false},
		"not used":         {localdisk.Receipt{Target: "sdb", Source: layers("/srv/a")}, false},
		"given up":         {localdisk.Receipt{Target: "sdb", Used: true, Discarding: true, Source: layers("/srv/a")}, false},
		"of oVirt":         {localdisk.Receipt{Image: "c9865ca8-f6d2-4363-bec2-af870a87a819", Volume: "v", Used: true, Source: layers("/srv/a")}, false},
		"no source at all": {localdisk.Receipt{Target: "sdb", Used: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := hooktest.New(t, &hooktest.Local{})
			w.Receipt(c.receipt)
			d := domainWith(nil)
			err := w.Forsaken(d, nil)
			if !c.refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, failure.Conflict, "disk vda has /srv/a", "disk sdb", "domain revert --export FILE vm sdb")
			for what, bound := range map[string]bindings.Bound{"the copy's": {Disk: bindings.Disk{Target: "sdb"}}, "the one with its source": {Disk: d.Disks[0]}} {
				if err := w.Forsaken(d, []bindings.Bound{bound}); err != nil {
					t.Errorf("%s disk is bound, and refused: %v", what, err)
				}
			}
		})
	}
	t.Run("illegible", func(t *testing.T) {
		w := hooktest.New(t, &hooktest.Local{})
		if err := os.MkdirAll(w.Path("var/lib/diskhook/receipts/"+hooktest.UUID+"/sdb.json"), 0o755); err != nil {
			t.Fatal(err)
		}
		refused(t, w.Forsaken(domainWith(nil), nil), failure.Precondition, "sdb", "sdb.json")
		if err := w.Forsaken(bindings.Domain{UUID: hooktest.UUID, Disks: []bindings.Disk{{Target: "hda"}}}, nil); err != nil {
			t.Errorf("no disk could have its source: %v", err)
		}
	})
}

// TestRewriteOfADisplacedDisk would make a fresh copy of the older data.
func TestRewriteOfADisplacedDisk(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	plain := edit(t, parseDoc(t, w.Fixture("hooks/plain.xml")), "<target dev='vda'", "<target dev='sdb'")
	moved := edit(t, edit(t, applied(t, w), "<target dev='vda'", "<target dev='sdb'"), w.Path("run/diskhook/disks/"+hooktest.UUID+"/vda")+"'/>", w.Path("images/top.qcow2")+"'/>")
	rewrite := func(doc *xmlrewrite.Document) error {
		_, err := w.Rewrite(doc, mustParse(t, "sdb:local=dir", bindings.Flag))
		return err
	}
	if err := rewrite(plain); err != nil {
		t.Fatal(err)
	}
	w.Receipt(localdisk.Receipt{Used: true, Source: layers(w.Path("images/top.qcow2"))})
	for _, doc := range []*xmlrewrite.Document{plain, moved} {
		refused(t, rewrite(doc), failure.Conflict, "disk sdb", "disk vda", "domain revert")
	}
	// The disk that is bound again under its own target is what the hints ask for.
	if _, err := w.Rewrite(parseDoc(t, w.Fixture("hooks/plain.xml")), mustParse(t, "vda:local=dir", bindings.Flag)); err != nil {
		t.Error(err)
	}
}
