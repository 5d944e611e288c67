// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/xmlrewrite"
)

const instantUUID = "0d0c7a3e-5a55-4b6f-8e0e-4f6a1a0f9d11"

func instantHost(t *testing.T) *Host {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc", "images"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/machine-id"), []byte("0123456789abcdef0123456789abcdef\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := host.Layout{Root: root}
	config := host.Defaults(l)
	config.Paths.Roots = []string{filepath.Join(root, "images")}
	return &Host{Layout: l, Config: config, Log: slog.New(slog.DiscardHandler)}
}

func instantDomain(t *testing.T, disk string) *xmlrewrite.Document {
	t.Helper()
	doc, err := xmlrewrite.Parse([]byte(fmt.Sprintf("<domain type='kvm'><name>vm</name><uuid>%s</uuid><devices>%s</devices></domain>", instantUUID, disk)))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func parsed(t *testing.T, text string) []Binding {
	t.Helper()
	b, err := Parse("flag", text, Flag)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The disk is opened as what its copy is, which the header of the image tells
// the rest of; what becomes of I/O errors stays as the definition says.
func TestRewriteForAnOverlay(t *testing.T) {
	for name, c := range map[string]struct{ bind, driver, want string }{
		"files":   {"vda:local=dir,fill=instant", "type='raw' cache='writeback'", `<driver name='qemu' type='qcow2' cache='none' io='threads' error_policy='stop' rerror_policy='stop'/><source file=`},
		"volumes": {"vda:local=lvm,fill=instant", "type='qcow2'", `type='qcow2' cache='none' io='native' error_policy='stop' rerror_policy='stop'/><source dev=`},
		"told":    {"vda:local=dir,fill=instant", "type='raw' error_policy='report'", `<driver name='qemu' type='qcow2' error_policy='report' cache='none' io='threads'/><source file=`},
		"shared":  {"vda:local=dir,template=overlay,fill=start", "type='raw'", `<driver name='qemu' type='qcow2' cache='none' io='threads'/><source file=`},
		"linear":  {"vda:local=lvm,template=overlay,fill=now", "type='raw'", `<driver name='qemu' type='qcow2' cache='none' io='native'/><source dev=`},
		"no":      {"vda:local=dir,fill=start", "type='raw'", `<driver name='qemu' type='raw' cache='none' io='threads'/><source file=`},
	} {
		t.Run(name, func(t *testing.T) {
			h := instantHost(t)
			disk := fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' %s/><source file='%s/images/a'/><backingStore/><target dev='vda'/></disk>", c.driver, h.Layout.Root)
			r, err := h.Rewrite(instantDomain(t, disk), parsed(t, c.bind))
			if err != nil {
				t.Fatal(err)
			}
			text := string(r.After.Bytes())
			_, after, _ := strings.Cut(text, "<devices>") // the metadata have the disk as it was
			if !strings.Contains(after[:strings.Index(after, "</devices>")], c.want) {
				t.Errorf("%s is not in\n%s", c.want, after)
			}
			after = after[:strings.Index(after, "</devices>")]
			if strings.Contains(after, "backingStore") {
				t.Errorf("the chain is cut off:\n%s", after)
			}
			_, fill, _ := strings.Cut(c.bind, "fill=")
			if !strings.Contains(text, "fill='"+fill+"'") && !strings.Contains(text, `fill="`+fill+`"`) {
				t.Errorf("the metadata do not say fill=%s:\n%s", fill, text)
			}
			if on := strings.Contains(text, "template='overlay'"); on != strings.Contains(c.bind, "template=overlay") {
				t.Errorf("the metadata say template=overlay: %v\n%s", on, text)
			}
		})
	}
}

func TestInstantIsNotForVDSM(t *testing.T) {
	for _, option := range []string{"fill=instant", "template=overlay"} {
		_, err := Properties(func(name string) (string, bool) { return "local=dir," + option, name == "diskhook" })
		name, _, _ := strings.Cut(option, "=")
		if failure.KindOf(err) != failure.Usage || !strings.Contains(failure.Line(err), "property diskhook: "+option+" is not for VMs of oVirt") || !strings.Contains(failure.HintOf(err), "leave "+name+" out of the property") || !strings.Contains(failure.HintOf(err), "diskhook local prestage") {
			t.Errorf("%v", err)
		}
	}
}

// A disk that is bound stays as it is: how its copy shares its base is part of
// that, whether or not anything was said of it.
func TestBoundDiskKeepsItsTemplate(t *testing.T) {
	h := instantHost(t)
	disk := fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s/images/a'/><target dev='vda'/></disk>", h.Layout.Root)
	for _, c := range []struct {
		bound, again string
		differs      bool
	}{
		{"vda:local=dir", "vda:local=dir", false},
		{"vda:local=dir", "vda:local=dir,template=none", false},
		{"vda:local=dir", "vda:local=dir,template=overlay", true},
		{"vda:local=dir,template=overlay", "vda:local=dir", false},
		{"vda:local=dir,template=overlay", "vda:local=dir,template=overlay", false},
		{"vda:local=dir,template=overlay", "vda:local=dir,template=none", true},
	} {
		r, err := h.Rewrite(instantDomain(t, disk), parsed(t, c.bound))
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Rewrite(r.After, parsed(t, c.again))
		if (failure.KindOf(err) == failure.Conflict) != c.differs || !c.differs && err != nil || c.differs && !strings.Contains(failure.Line(err), "template differs") {
			t.Errorf("%s, then %s: %v", c.bound, c.again, err)
		}
	}
}

// A definition that ends the chain above the source would have the guest read
// zeros; one that spells it out right is fine.
func TestOverlayThatIsCutOff(t *testing.T) {
	h := instantHost(t)
	origin := fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s/images/a'/><target dev='vda'/></disk>", h.Layout.Root)
	r, err := h.Rewrite(instantDomain(t, origin), parsed(t, "vda:local=dir,fill=instant"))
	if err != nil {
		t.Fatal(err)
	}
	receipt := func(overlay string) {
		dir := filepath.Join(h.Layout.Receipts(), instantUUID)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(`{"schema":"diskhook.receipt/v1","domain":"%s","target":"vda","copy":"c","used":true,"source":[{"path":"%s/images/a","format":"raw"}]%s}`, instantUUID, h.Layout.Root, overlay)
		if err := os.WriteFile(filepath.Join(dir, "vda.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	source := fmt.Sprintf("<backingStore type='file'><format type='raw'/><source file='%s/images/a'/><backingStore/></backingStore>", h.Layout.Root)
	for name, c := range map[string]struct {
		overlay, chain string
		refused        bool
	}{
		"from the header":         {`,"overlay":{}`, "", false},
		"cut off":                 {`,"overlay":{}`, "<backingStore/>", true},
		"spelled out":             {`,"overlay":{}`, source, false},
		"another":                 {`,"overlay":{}`, strings.ReplaceAll(source, "images/a", "images/b"), true},
		"cut off, but settled":    {`,"overlay":{"settled":"2026-01-02T03:04:05Z"}`, "<backingStore/>", false},
		"cut off, but no overlay": {"", "<backingStore/>", false},
		"cut off a template":      {`,"overlay":{"settled":"2026-01-02T03:04:05Z","template":{"name":"t","copy":"c","path":"/t.raw"}}`, "<backingStore/>", true},
		"on another template":     {`,"overlay":{"settled":"2026-01-02T03:04:05Z","template":{"name":"t","copy":"c","path":"/t.raw"}}`, source, true},
		"on its template":         {`,"overlay":{"settled":"2026-01-02T03:04:05Z","template":{"name":"t","copy":"c","path":"/t.raw"}}`, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			receipt(c.overlay)
			text := strings.Replace(string(r.After.Bytes()), "<target dev='vda'/></disk></devices>", c.chain+"<target dev='vda'/></disk></devices>", 1)
			doc, err := xmlrewrite.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			d, err := ReadDomain(doc)
			if err != nil {
				t.Fatal(err)
			}
			bound, _, err := Resolve(d, nil)
			if err != nil {
				t.Fatal(err)
			}
			disks, err := local{}.disks(context.Background(), h, d, bound, false)
			if (failure.KindOf(err) == failure.Conflict) != c.refused || !c.refused && (err != nil || !disks[0].Instant || disks[0].Opened != "qcow2") {
				t.Errorf("%+v, %v", disks, err)
			}
			if c.refused && !strings.Contains(failure.Line(err), "take the element <backingStore> out of the disk with `virsh edit vm`") {
				t.Errorf("%v", err)
			}
		})
	}
}
