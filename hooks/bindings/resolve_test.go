// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/xmlrewrite"
)

// TestWhichDisksCanBeBound walks over a domain as Engine writes it, with every
// sort of disk that it has.
func TestWhichDisksCanBeBound(t *testing.T) {
	w := hooktest.New(t, &hooktest.Local{})
	d, err := bindings.ReadDomain(parseDoc(t, w.Fixture("vdsm/engine.xml")))
	if err != nil {
		t.Fatal(err)
	}
	if !d.OVirt || d.Name != "mixed-disks" {
		t.Errorf("read as %v, oVirt %v", d, d.OVirt)
	}
	bound, skipped, err := bindings.Resolve(d, mustParse(t, "local=lvm", bindings.Property))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range bound {
		got = append(got, b.Disk.Target+" "+b.Disk.Image+" "+b.Disk.Volume+" "+b.Disk.Format)
	}
	want := []string{
		"sda c9865ca8-f6d2-4363-bec2-af870a87a819 1dfad482-c65c-436c-aa59-87e020b63302 qcow2",
		"sdb b07a37de-95d6-4682-84cd-c8c9201327e3 b3335e60-6d27-46e0-bed8-50e75cca6786 raw",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]bindings.Skipped{
		{Target: "sdc", Why: "it is a CD-ROM"},
		{Target: "sdd", Why: "it is a managed volume"},
		{Target: "sde", Why: "it is a managed volume"},
		{Target: "sdf", Why: "it is a LUN"},
	}, skipped); diff != "" {
		t.Error(diff)
	}
	for _, target := range []string{"sdc", "sdd", "sde", "sdf"} {
		_, _, err := bindings.Resolve(d, mustParse(t, target+":local=lvm", bindings.Property))
		refused(t, err, failure.Usage, "mixed-disks", target, "property")
	}
	_, _, err = bindings.Resolve(d, mustParse(t, "sdz:local=lvm", bindings.Property))
	refused(t, err, failure.NotFound, "sdz")
}

func TestUnfit(t *testing.T) {
	disk := func(attrs, inside string) string {
		return `<domain><name>x</name><uuid>69b6b942-b5bf-4740-bb95-6752ffbd3bcf</uuid><devices><disk ` + attrs + `><target dev='vda'/>` + inside + `</disk></devices></domain>`
	}
	for _, c := range []struct{ xml, why string }{
		{disk(`type='file' device='disk'`, `<source file='/a'/>`), ""},
		{disk(`type='block' device='disk'`, `<source dev='/a'/>`), ""},
		{disk(`type='file' device='floppy'`, `<source file='/a'/>`), "it is a floppy"},
		{disk(`type='file'`, `<source file='/a'/><readonly/>`), "it is read-only"},
		{disk(`type='file'`, `<source file='/a'/><shareable/>`), "it is shared"},
		{disk(`type='file'`, `<source file='/a'/><transient/>`), "it is transient"},
		{disk(`type='file'`, `<source file='/a'><encryption format='luks'/></source>`), "it is encrypted"},
		{disk(`type='file'`, `<source file='/a'/><mirror type='file'/>`), "a block copy of it is under way"},
		{disk(`type='volume'`, `<source pool='p' volume='v'/>`), "its source is of type volume"},
		{disk(`type='nvme'`, `<source type='pci' namespace='1'/>`), "its source is of type nvme"},
		{disk(`type='file'`, ``), "it has no medium"},
	} {
		d, err := bindings.ReadDomain(parseDoc(t, []byte(c.xml)))
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Disks[0].Unfit; got != c.why {
			t.Errorf("%s: %q, want %q", c.xml, got, c.why)
		}
	}
}

// domainWith has disks vda (serial a) and vdb (serial b), of which the first
// is bound in the metadata as told, unless that is nil.
func domainWith(local *xmlrewrite.Local) bindings.Domain {
	d := bindings.Domain{UUID: "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", Name: "vm", Disks: []bindings.Disk{
		{Target: "vda", Serial: "a", Path: "/srv/a", Format: "raw"}, {Target: "vdb", Serial: "b", Path: "/srv/b", Format: "raw"},
	}}
	if local != nil {
		d.Metadata = &xmlrewrite.Metadata{Domain: d.UUID, Disks: []xmlrewrite.BoundDisk{{Target: "vda", Source: "/srv/a", Local: local}}}
	}
	return d
}

func TestPrecedence(t *testing.T) {
	inMetadata := &xmlrewrite.Local{Backend: "dir", Fill: "now", OnStop: "keep", Copy: "uuid"}
	type spelled struct {
		text string
		from bindings.Spelling
	}
	for name, c := range map[string]struct {
		local   *xmlrewrite.Local
		written []spelled
		want    []string
	}{
		"nothing":               {nil, nil, nil},
		"metadata":              {inMetadata, nil, []string{"vda dir metadata map[copy:uuid fill:now on-stop:keep]"}},
		"for all":               {nil, []spelled{{"local=lvm", bindings.Property}}, []string{"vda lvm property map[]", "vdb lvm property map[]"}},
		"by serial":             {nil, []spelled{{"b:local=lvm", bindings.Property}}, []string{"vdb lvm property map[]"}},
		"a name beats all":      {nil, []spelled{{"local=lvm;vdb:local=dir", bindings.Property}}, []string{"vda lvm property map[]", "vdb dir property map[]"}},
		"flag beats property":   {nil, []spelled{{"vda:local=lvm", bindings.Property}, {"local=dir", bindings.Flag}}, []string{"vda dir flag map[]", "vdb dir flag map[]"}},
		"flag beats metadata":   {inMetadata, []spelled{{"vda:local=lvm", bindings.Flag}}, []string{"vda lvm flag map[]"}},
		"metadata beat rule":    {inMetadata, []spelled{{"vda:local=lvm", bindings.Rule}}, []string{"vda dir metadata map[copy:uuid fill:now on-stop:keep]"}},
		"they agree":            {inMetadata, []spelled{{"local=dir", bindings.Property}}, []string{"vda dir property map[copy:uuid fill:now on-stop:keep]", "vdb dir property map[]"}},
		"two names agree":       {nil, []spelled{{"vda:local=lvm,fill=now;a:local=lvm,on-stop=keep", bindings.Property}}, []string{"vda lvm property map[fill:now on-stop:keep]"}},
		"the kind alone agrees": {inMetadata, []spelled{{"vda:local", bindings.Property}}, []string{"vda dir property map[copy:uuid fill:now on-stop:keep]"}},
	} {
		t.Run(name, func(t *testing.T) {
			var written []bindings.Binding
			for _, s := range c.written {
				written = append(written, mustParse(t, s.text, s.from)...)
			}
			bound, _, err := bindings.Resolve(domainWith(c.local), written)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, b := range bound {
				got = append(got, fmt.Sprintf("%s %s %v %v", b.Disk.Target, b.Binding.Value, b.Binding.From, b.Binding.Options))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, text := range map[string]string{
		"backend":           "local=lvm",
		"option":            "vda:local=dir,on-stop=discard",
		"serial and target": "vda:local=dir;a:local=lvm",
		"twice for all":     "local=dir;*:local=lvm",
	} {
		_, _, err := bindings.Resolve(domainWith(inMetadata), mustParse(t, text, bindings.Property))
		t.Run(name, func(t *testing.T) { refused(t, err, failure.Conflict, "domain vm", "vda", "disagree") })
	}
}

func TestMetadataOfANewerDiskhook(t *testing.T) {
	for name, change := range map[string]func(*xmlrewrite.BoundDisk){
		"unknown element": func(b *xmlrewrite.BoundDisk) { b.Unknown = []string{"local/@cow"} },
		"another kind":    func(b *xmlrewrite.BoundDisk) { b.Local = nil },
		"image below": func(b *xmlrewrite.BoundDisk) {
			b.Local, b.Volume, b.OriginImage = nil, &xmlrewrite.Volume{ID: "v"}, &xmlrewrite.Image{Repo: "r", ID: stranger}
		},
		"thin volume below": func(b *xmlrewrite.BoundDisk) { b.OriginThin = &xmlrewrite.Thin{Volume: "v"} },
	} {
		d := domainWith(&xmlrewrite.Local{Backend: "dir"})
		change(&d.Metadata.Disks[0])
		_, _, err := bindings.Resolve(d, nil)
		t.Run(name, func(t *testing.T) { refused(t, err, failure.Precondition, "vda", "domain unbind vm") })
	}
}

func TestRules(t *testing.T) {
	d := domainWith(nil)
	rules := []host.Rule{
		{Name: "other*", Binding: "local=lvm"},
		{Name: "v*", Target: "vdb", Binding: "local=lvmthin,on-stop=keep"},
		{Path: "/srv/*", Binding: "local=dir"},
	}
	got, err := bindings.FromRules(rules, d)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].String() != "vda:local=dir" || got[1].String() != "vdb:local=lvmthin,on-stop=keep" {
		t.Errorf("%v", got)
	}
	for _, binding := range []string{"vda:local=dir", "local=dir;local=lvm", "nonsense"} {
		_, err := bindings.FromRules([]host.Rule{{Binding: binding}}, d)
		refused(t, err, failure.Usage, "rule 1")
	}
}
