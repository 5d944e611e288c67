// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
	"diskhook/xmlrewrite"
)

const (
	owner    = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	stranger = "7a0b1c2d-3e4f-4a5b-8c6d-7e8f90a1b2c3"
)

// volumeHost is a host with storage, and three volumes that are defined: ns and
// other, namespaces of one subsystem, and the file nfs.
func volumeHost(t *testing.T) (*bindings.Host, *connectortest.World) {
	t.Helper()
	w, err := connectortest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Change(func(s *connectortest.Storage) {
		s.NVMe = map[string]*connectortest.Subsystem{"nqn.s": {Portals: []string{"tcp 1.1.1.1 4420"}, Namespaces: map[int]connectortest.Namespace{1: {UUID: "u-1", Sectors: 2048}, 2: {UUID: "u-2", Sectors: 2048}}}}
		s.NFS = map[string]map[string]int{"nas:/x": {"v": 4096}}
	}); err != nil {
		t.Fatal(err)
	}
	l, log := host.Layout{Root: w.Dir}, slog.New(slog.DiscardHandler)
	h := &bindings.Host{Layout: l, Config: host.Defaults(l), Log: log, Volumes: &managed.Service{
		Layout: l, Database: filepath.Join(w.Dir, "managed.db"), Host: w.Host(log), Log: log, Boot: w.Boot,
	}}
	namespace := `{"driver_volume_type":"nvmeof","data":{"target_portal":"1.1.1.1","target_port":4420,"nqn":"nqn.s","ns_id":%d,"discard":true}}`
	for id, connection := range map[string]string{
		"ns": fmt.Sprintf(namespace, 1), "other": fmt.Sprintf(namespace, 2), "lost": fmt.Sprintf(namespace, 3),
		"nfs": `{"driver_volume_type":"nfs","data":{"export":"nas:/x","name":"v"}}`,
	} {
		if err := defined(h).Define(t.Context(), id, []byte(connection)); err != nil {
			t.Fatal(err)
		}
	}
	return h, w
}

func defined(h *bindings.Host) *managed.Service { return h.Volumes.(*managed.Service) }

// volumeDomain is a domain whose disks vda, vdb… have these sources: "block
// PATH" or "file PATH".
func volumeDomain(t *testing.T, uuid string, sources ...string) *xmlrewrite.Document {
	t.Helper()
	var disks strings.Builder
	for i, source := range sources {
		kind, path, _ := strings.Cut(source, " ")
		key := map[string]string{"block": "dev", "file": "file"}[kind]
		fmt.Fprintf(&disks, "<disk type='%s' device='disk'><driver name='qemu' type='raw'/><source %s='%s'/><target dev='vd%c'/></disk>", kind, key, path, 'a'+i)
	}
	doc, err := xmlrewrite.Parse([]byte("<domain type='qemu'><name>vm</name><uuid>" + uuid + "</uuid><devices>" + disks.String() + "</devices></domain>"))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func startVolumes(t *testing.T, h *bindings.Host, doc *xmlrewrite.Document) (bindings.Domain, []bindings.Bound, error) {
	t.Helper()
	d, bound, err := h.Start(t.Context(), doc, nil)
	if err == nil {
		_, err = h.Fulfil(t.Context(), d, bound, 0)
	}
	return d, bound, err
}

// Rewrite writes what Engine leaves out, and nothing of what the definition
// says already; the disk's path is not there before a start.
func TestVolumeRewrite(t *testing.T) {
	h, _ := volumeHost(t)
	doc := volumeDomain(t, owner, "file /srv/a.raw", "file /srv/b.raw")
	r, err := h.Rewrite(doc, []bindings.Binding{
		{Select: "vda", Kind: "volume", Value: "ns", From: bindings.Flag}, {Select: "vdb", Kind: "volume", Value: "nfs", From: bindings.Flag},
	})
	if err != nil {
		t.Fatal(err)
	}
	text := string(r.After.Bytes())
	for _, want := range []string{
		`<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native' error_policy='stop' rerror_policy='stop' discard='unmap'/><source dev='` + h.Volumes.Link("ns") + `'/>`,
		`<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='threads' error_policy='stop' rerror_policy='stop'/><source file='` + h.Volumes.Link("nfs") + `'/>`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nis not in\n%s", want, text)
		}
	}
	again, err := h.Rewrite(r.After, nil)
	if err != nil || again.Diff() != "" {
		t.Errorf("again: %v %s", err, again.Diff())
	}
	d, bound, err := startVolumes(t, h, r.After)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"ns", "nfs"} {
		if _, err := os.Stat(h.Volumes.Link(id)); err != nil {
			t.Error(err)
		}
	}
	if err := bindings.Migratable(d, bound); !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "diskhook volume define --connection-info FILE ns") {
		t.Errorf("migration: %v (%s)", err, failure.HintOf(err))
	}
}

// One that cannot be attached leaves none attached that was not before.
func TestVolumesAllOrNone(t *testing.T) {
	h, w := volumeHost(t)
	if _, err := h.Volumes.Attach(t.Context(), managed.Request{ID: "nfs"}); err != nil {
		t.Fatal(err)
	}
	link := h.Volumes.Link
	_, _, err := startVolumes(t, h, volumeDomain(t, owner, "block "+link("ns"), "file "+link("nfs"), "block "+link("lost")))
	if err == nil || !strings.Contains(err.Error(), "disk vdc: volume lost: ") {
		t.Fatalf("got %v", err)
	}
	all, err := defined(h).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var attached []string
	for _, v := range all {
		if v.Attached || v.Problem != "" || v.Domain != "" {
			attached = append(attached, v.ID+v.Domain)
		}
	}
	if diff := cmp.Diff([]string{"nfs"}, attached); diff != "" {
		t.Errorf("attached (-want +got):\n%s\n%v", diff, w.Left())
	}
}

// A disk that names the link is bound by that, and held to what it says.
func TestVolumeByPath(t *testing.T) {
	h, w := volumeHost(t)
	link := h.Volumes.Link
	for what, test := range map[string]struct {
		sources []string
		want    string
	}{
		"as a file":          {[]string{"file " + link("ns")}, "volume ns is of type block, and the disk says type='file'"},
		"a file as a device": {[]string{"block " + link("nfs")}, "volume nfs is of type file, and the disk says type='block'"},
		"twice":              {[]string{"block " + link("ns"), "block " + link("ns")}, "disks vda and vdb are both volume ns"},
		"not defined":        {[]string{"block " + link("nosuch")}, "volume nosuch: not defined on this host"},
		"elsewhere":          {[]string{"block /tmp/run/diskhook/volumes/ns"}, "is not where this host has its volumes"},
	} {
		_, _, err := startVolumes(t, h, volumeDomain(t, owner, test.sources...))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", what, err)
		}
		if left := w.Left(); left != nil {
			t.Errorf("%s: left: %v", what, left)
		}
	}
	for _, path := range []string{link("../disks/x"), link("ns") + "/x", "/run/diskhook/volumes", link(".new-ns"), "/dev/mapper/ns"} {
		if _, bound, err := h.Start(t.Context(), volumeDomain(t, owner, "block "+path), nil); err != nil || len(bound) > 0 {
			t.Errorf("%s: %v, %v", path, bound, err)
		}
	}

	d, bound, err := startVolumes(t, h, volumeDomain(t, owner, "block "+link("ns"), "block "+link("other")))
	if err != nil {
		t.Fatal(err)
	}
	other, theirs, err := startVolumes(t, h, volumeDomain(t, stranger, "block "+link("ns")))
	if !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "domain "+owner+" has it") {
		t.Errorf("another domain: %v", err)
	}
	if err := h.Release(t.Context(), other, theirs, ""); err != nil {
		t.Error(err)
	}
	// vdb was unplugged before the domain ended.
	if err := h.Release(t.Context(), d, bound[:1], "shutdown"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(link("other")); err != nil {
		t.Errorf("the other one's link went, too: %v", err)
	}
	if err := h.ReleaseVolumes(t.Context(), d); err != nil {
		t.Error(err)
	}
	if left := w.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}

func TestVolumeBindings(t *testing.T) {
	h, _ := volumeHost(t)
	for text, want := range map[string]string{
		"vda:volume":                 "volume: which one is missing",
		"volume=ns":                  "one volume cannot be every disk",
		"vda:volume=ns,discard=none": "volume has no options",
		"vda:volume=.ns":             "not an id",
	} {
		if _, err := bindings.Parse("--bind", text, bindings.Flag); !errors.Is(err, failure.Usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	property := func(text string) ([]bindings.Binding, error) {
		return bindings.Properties(func(name string) (string, bool) { return text, name == "volume" })
	}
	got, err := property("sda=ns, 6e1c=other")
	want := []bindings.Binding{
		{Select: "sda", Kind: "volume", Value: "ns", From: bindings.Property}, {Select: "6e1c", Kind: "volume", Value: "other", From: bindings.Property},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("property: %v %s", err, diff)
	}
	for text, want := range map[string]string{
		"":                        `property volume: "" is not DISK=ID`,
		"ns":                      `property volume: "ns" is not DISK=ID`,
		"sda=ns,":                 `property volume: "" is not DISK=ID`,
		"sda=../ns":               "is not DISK=ID",
		"sda=.ns":                 "not an id",
		strings.Repeat("x", 5000): "5000 bytes are more than it has",
	} {
		if _, err := property(text); !errors.Is(err, failure.Usage) || !strings.Contains(err.Error(), want) || !strings.Contains(failure.HintOf(err)+err.Error(), "volume") {
			t.Errorf("property %q: %v", text, err)
		}
	}
	// No copy is made of what may not be attached.
	doc := volumeDomain(t, owner, "block "+h.Volumes.Link("ns"))
	d, err := bindings.ReadDomain(doc)
	if err != nil {
		t.Fatal(err)
	}
	local, err := bindings.Parse("--local", "vda:local=dir", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := bindings.Resolve(d, local); !errors.Is(err, failure.Usage) || !strings.Contains(err.Error(), "it is a managed volume") {
		t.Errorf("local copy of a volume: %v", err)
	}
	h.Volumes = nil // not root
	if _, _, err := startVolumes(t, h, doc); !errors.Is(err, failure.Precondition) {
		t.Errorf("without root: %v", err)
	}
}
