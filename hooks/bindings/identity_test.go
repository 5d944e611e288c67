// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// applied is the plain domain after its disk vda was bound to dir.
func applied(t *testing.T, w *hooktest.World) *xmlrewrite.Document {
	t.Helper()
	r, err := w.Host.Rewrite(parseDoc(t, w.Fixture("hooks/plain.xml")), mustParse(t, "vda:local=dir,fill=start", bindings.Flag))
	if err != nil {
		t.Fatal(err)
	}
	return r.After
}

func edit(t *testing.T, doc *xmlrewrite.Document, from, to string) *xmlrewrite.Document {
	t.Helper()
	if !bytes.Contains(doc.Bytes(), []byte(from)) {
		t.Fatalf("%q is not in\n%s", from, doc.Bytes())
	}
	return parseDoc(t, bytes.ReplaceAll(doc.Bytes(), []byte(from), []byte(to)))
}

func TestIdentity(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	stable := w.Path("run/diskhook/disks/" + hooktest.UUID + "/vda")
	doc := applied(t, w)
	for name, c := range map[string]struct {
		doc   *xmlrewrite.Document
		words []string
	}{
		"clone":            {edit(t, doc, "<uuid>"+hooktest.UUID, "<uuid>11111111-2222-4333-8444-555555555555"), []string{"domain vm", hooktest.UUID, "diskhook domain rebind vm", "diskhook domain unbind vm"}},
		"another source":   {edit(t, doc, "<source file='"+stable+"'", "<source file='/srv/other.raw'"), []string{"vda", stable, "/srv/other.raw", "domain apply --refresh vm"}},
		"metadata swapped": {edit(t, doc, "source='"+stable+"'", "source='"+strings.Replace(stable, "vda", "vdb", 1)+"'"), []string{"vda", stable, "domain apply --refresh vm"}},
		"another's path":   {edit(t, doc, stable, strings.Replace(stable, "/vda", "/vdb", 1)), []string{"vda", stable, "domain apply --refresh vm"}},
		"target renamed":   {edit(t, doc, "<target dev='vda'", "<target dev='vdx'"), []string{"vda", "vdx", "domain apply --refresh vm"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := w.Start(t.Context(), c.doc, nil)
			refused(t, err, failure.Conflict, c.words...)
		})
	}
	t.Run("renamed domain", func(t *testing.T) {
		_, bound, err := w.Start(t.Context(), edit(t, doc, "<name>vm<", "<name>-rf\n../x<"), nil)
		if err != nil || len(bound) != 1 {
			t.Errorf("%v, %v", bound, err)
		}
	})
	t.Run("hint for a hostile name", func(t *testing.T) {
		hostile := edit(t, edit(t, doc, "<name>vm<", "<name>-rf $(x)<"), "<source file='"+stable+"'", "<source file='/srv/other.raw'")
		_, _, err := w.Start(t.Context(), hostile, nil)
		refused(t, err, failure.Conflict, "domain apply --refresh "+hooktest.UUID)
	})
}

// TestExternalSnapshot: an overlay over our copy goes on with it, by the
// chain in the XML or in the image's header; an overlay over something else
// does not.
func TestExternalSnapshot(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	w.Chain("images")
	stable := w.Path("run/diskhook/disks/" + hooktest.UUID + "/vda")
	overlay := func(name, below, format string) string {
		path := w.Path("images/" + name)
		w.Tool("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", below, path, "1M")
		return path
	}
	snap := overlay("snap.qcow2", stable, "raw")
	second := overlay("second.qcow2", snap, "qcow2")
	foreign := overlay("foreign.qcow2", w.Path("images/top.qcow2"), "qcow2")
	doc := applied(t, w)
	with := func(format, path, below string) *xmlrewrite.Document {
		d := edit(t, doc, "type='raw' cache='none' discard='unmap' io='threads'/>", "type='"+format+"' cache='none' discard='unmap' io='threads'/>")
		return edit(t, d, "<source file='"+stable+"'/>", "<source file='"+path+"'/>"+below)
	}
	for name, c := range map[string]*xmlrewrite.Document{
		"by header":       with("qcow2", snap, ""),
		"two deep":        with("qcow2", second, ""),
		"by XML":          with("qcow2", "/gone/x.qcow2", "<backingStore type='file'><format type='raw'/><source file='"+stable+"'/></backingStore>"),
		"by XML, ended":   with("qcow2", "/gone/x.qcow2", "<backingStore type='file'><format type='raw'/><source file='"+stable+"'/><backingStore/></backingStore>"),
		"half in the XML": with("qcow2", second, "<backingStore type='file'><format type='qcow2'/><source file='"+snap+"'/></backingStore>"),
	} {
		_, bound, err := w.Start(t.Context(), c, nil)
		if err != nil || len(bound) != 1 {
			t.Errorf("%s: %v, %v", name, bound, err)
		}
	}
	for name, c := range map[string]*xmlrewrite.Document{
		"over another image": with("qcow2", foreign, ""),
		"cut off":            with("qcow2", snap, "<backingStore/>"),
		"declared raw":       with("raw", snap, ""),
		"gone":               with("qcow2", w.Path("images/gone.qcow2"), ""),
	} {
		_, _, err := w.Start(t.Context(), c, nil)
		t.Run(name, func(t *testing.T) { refused(t, err, failure.Conflict, "vda", stable, "--refresh") })
	}
}

// TestRealCopies runs the whole way with real copies in a directory: nothing,
// start, the guest writes, start again, and what a change of the definition
// gets then.
func TestRealCopies(t *testing.T) {
	w := hooktest.New(t, nil)
	want := w.Chain("images")
	w.Write("images/data.raw", strings.Repeat("d", 4096))
	doc := applied(t, w)
	stable := w.Path("run/diskhook/disks/" + hooktest.UUID + "/vda")

	start := func() error {
		d, bound, err := w.Start(t.Context(), doc, nil)
		if err != nil {
			return err
		}
		placements, err := w.Fulfil(t.Context(), d, bound, 0)
		if err == nil && (len(placements) != 1 || placements[0] != bindings.Placement{Target: "vda", Path: stable}) {
			t.Errorf("placed at %v", placements)
		}
		return err
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(stable); err != nil || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("the copy differs from the chain: %v", err)
	}

	// The guest writes; the shared storage goes away.
	guest := []byte("written by the guest")
	if err := os.WriteFile(stable, append(guest, want[len(guest):]...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.Path("images")); err != nil {
		t.Fatal(err)
	}
	d, bound, err := w.Start(t.Context(), doc, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Release(t.Context(), d, bound, "shutdown"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(stable); err == nil {
		t.Error("the link outlived the release")
	}
	if err := start(); err != nil {
		t.Fatalf("second start: %v", err)
	}
	if got, _ := os.ReadFile(stable); !bytes.HasPrefix(got, guest) {
		t.Error("the guest's writes are gone")
	}

	// The definition forgets the binding.
	_, _, err = w.Start(t.Context(), parseDoc(t, w.Fixture("hooks/plain.xml")), nil)
	refused(t, err, failure.Conflict, "vda", "local remove --discard-guest-data vm vda", "local export vm vda")
	// Another machine.
	w.Write("etc/machine-id", strings.Repeat("f", 32))
	refused(t, start(), failure.Precondition, "vda", hooktest.Machine)
}

// TestChainIsLookedAtOnlyWhenNeeded: the chain is given complete to who fills,
// and not read for a copy that a guest used.
func TestChainIsLookedAtOnlyWhenNeeded(t *testing.T) {
	local := &hooktest.Local{}
	w := hooktest.New(t, local)
	w.Chain("images")
	d, bound, err := w.Start(t.Context(), applied(t, w), nil)
	if err != nil {
		t.Fatal(err)
	}
	layers := func() string {
		var all []string
		for _, l := range local.Asked[0].Source {
			all = append(all, strings.TrimPrefix(l.Path, w.Root)+":"+l.Format)
		}
		return strings.Join(all, " ")
	}
	if _, err := w.Fulfil(context.Background(), d, bound, 0); err != nil {
		t.Fatal(err)
	}
	if got, want := layers(), "/images/top.qcow2:qcow2 /images/mid.qcow2:qcow2 /images/base.raw:raw"; got != want {
		t.Errorf("chain %s", got)
	}

	used := func(volume string) {
		path := w.Receipt(localdisk.Receipt{Used: true, Image: "vda", Volume: volume})
		if want := w.Path("var/lib/diskhook/receipts/" + hooktest.UUID + "/vda.json"); path != want {
			t.Fatalf("%s, want %s", path, want)
		}
	}
	used("")
	if _, err := w.Fulfil(context.Background(), d, bound, 0); err != nil || layers() != "/images/top.qcow2:qcow2" {
		t.Errorf("read for a used copy: %s, %v", layers(), err)
	}
	used("another leaf")
	if _, err := w.Fulfil(context.Background(), d, bound, 0); err != nil || !strings.HasSuffix(layers(), "base.raw:raw") {
		t.Errorf("not read for another leaf: %s, %v", layers(), err)
	}
	if err := os.RemoveAll(w.Path("var")); err != nil {
		t.Fatal(err)
	}

	if err := os.RemoveAll(w.Path("images")); err != nil {
		t.Fatal(err)
	}
	_, err = w.Fulfil(context.Background(), d, bound, 0)
	if err == nil || !strings.Contains(err.Error(), "top.qcow2") {
		t.Errorf("no copy, no source: %v", err)
	}
	used("")
	if _, err := w.Fulfil(context.Background(), d, bound, 0); err != nil {
		t.Errorf("a used copy, its source away: %v", err)
	}
}

// TestForsaken: which receipts of an unbound disk forbid its start.
func TestForsaken(t *testing.T) {
	for name, c := range map[string]struct {
		receipt *localdisk.Receipt
		ovirt   bool
		refused bool
	}{
		"none":                   {nil, false, false},
		"used":                   {&localdisk.Receipt{Used: true}, false, true},
		"not used":               {&localdisk.Receipt{}, false, false},
		"given up":               {&localdisk.Receipt{Used: true, Discarding: true}, false, false},
		"of oVirt, not its hook": {&localdisk.Receipt{Used: true, Image: "vda", Volume: "v"}, false, false},
		"oVirt, used":            {&localdisk.Receipt{Used: true, Image: "vda", Volume: "v"}, true, true},
		"oVirt, not used":        {&localdisk.Receipt{Image: "vda", Volume: "v"}, true, true},
		"oVirt, given up":        {&localdisk.Receipt{Used: true, Image: "vda", Volume: "v", Discarding: true}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := hooktest.New(t, &hooktest.Local{})
			d := domainWith(nil)
			d.OVirt, d.Disks[0].Image = c.ovirt, "vda"
			if c.receipt != nil {
				w.Receipt(*c.receipt)
			}
			err := w.Forsaken(d, nil)
			if (err != nil) != c.refused || err != nil && failure.HintOf(err) == "" {
				t.Errorf("%v", err)
			}
			if err := w.Forsaken(d, []bindings.Bound{{Disk: d.Disks[0]}}); err != nil {
				t.Errorf("bound, and refused: %v", err)
			}
			// VDSM does not tell the image of every disk, but it is the serial.
			d.Disks[0].Image, d.Disks[0].Serial, d.Disks[0].Target = "", "vda", "sdq"
			if err := w.Forsaken(d, nil); c.ovirt && (err != nil) != c.refused {
				t.Errorf("by serial: %v", err)
			}
		})
	}
}

// TestIllegibleReceipts: one that is there but cannot be read or understood
// may say that the guest used the copy; a domain without receipts of its own
// starts whatever is wrong.
func TestIllegibleReceipts(t *testing.T) {
	const dir = "var/lib/diskhook/receipts/" + hooktest.UUID
	text := func(content string) func(*hooktest.World) error {
		return func(w *hooktest.World) error { w.Write(dir+"/vda.json", content); return nil }
	}
	for name, c := range map[string]struct {
		harm    func(*hooktest.World) error
		refused bool
	}{
		"cut off":             {text(`{"used":`), true},
		"empty":               {text(""), true},
		"null":                {text("null"), true},
		"of a newer diskhook": {text(`{"schema":"diskhook.receipt/v2","domain":"` + hooktest.UUID + `","copy":"u"}`), true},
		"of another domain":   {text(`{"schema":"diskhook.receipt/v1","domain":"` + hooktest.Machine + `","copy":"u"}`), true},
		"a directory":         {func(w *hooktest.World) error { return os.MkdirAll(w.Path(dir+"/vda.json"), 0o755) }, true},
		"a link to nowhere": {func(w *hooktest.World) error {
			return errors.Join(os.MkdirAll(w.Path(dir), 0o755), os.Symlink("/nonexistent/x", w.Path(dir+"/vda.json")))
		}, true},
		"a link to itself": {func(w *hooktest.World) error {
			return errors.Join(os.MkdirAll(w.Path(dir), 0o755), os.Symlink("vda.json", w.Path(dir+"/vda.json")))
		}, true},
		"no receipt in it":     {func(w *hooktest.World) error { return os.MkdirAll(w.Path(dir), 0o755) }, false},
		"a file for directory": {func(w *hooktest.World) error { w.Write(dir, "x"); return nil }, false},
		"none of any domain":   {func(w *hooktest.World) error { w.Write("var/lib/diskhook/receipts", "x"); return nil }, false},
		"links all the way": {func(w *hooktest.World) error {
			return errors.Join(os.MkdirAll(w.Path("var/lib/diskhook"), 0o755), os.Symlink("receipts", w.Path("var/lib/diskhook/receipts")))
		}, false},
	} {
		for _, ovirt := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				w := hooktest.New(t, &hooktest.Local{})
				if err := c.harm(w); err != nil {
					t.Fatal(err)
				}
				d := domainWith(nil)
				d.OVirt, d.Disks[0].Image = ovirt, "vda"
				err := w.Forsaken(d, nil)
				if !c.refused {
					if err != nil {
						t.Error(err)
					}
					return
				}
				refused(t, err, failure.Precondition, "domain vm", "vda", "receipt", dir)
			})
		}
	}
}

// TestLocalDisks: a verb may fill what a start may not, but not from a copy.
func TestLocalDisks(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	w.Chain("images")
	doc := parseDoc(t, w.Fixture("hooks/plain.xml"))
	bound := func(doc *xmlrewrite.Document) (bindings.Domain, []bindings.Bound) {
		d, err := bindings.ReadDomain(doc)
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := bindings.Resolve(d, mustParse(t, "vda:local=dir,fill=now", bindings.Flag))
		if err != nil {
			t.Fatal(err)
		}
		return d, b
	}
	d, b := bound(doc)
	disks, err := w.LocalDisks(t.Context(), d, b)
	if err != nil || len(disks) != 1 || !disks[0].Create || len(disks[0].Source) != 3 {
		t.Errorf("%+v, %v", disks, err)
	}
	d, b = bound(edit(t, doc, w.Path("images/top.qcow2"), w.Path("var/lib/diskhook/local/x.raw")))
	_, err = w.LocalDisks(t.Context(), d, b)
	refused(t, err, failure.Precondition, "vda", "never a source")
}
