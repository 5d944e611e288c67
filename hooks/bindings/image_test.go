// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/repository"
	"diskhook/xmlrewrite"
)

// imageHost is a host with a repository, and an image there that its disk may be.
func imageHost(t *testing.T) (*hooktest.Repository, string) {
	t.Helper()
	w := hooktest.New(t, &hooktest.Local{})
	r := w.WithRepository()
	return r, r.Disk(w.Write("a.raw", strings.Repeat("what the image has. ", 32<<10)))
}

func asImage(target, id string) bindings.Binding {
	return bindings.Binding{Select: target, Kind: "image", Value: id, Options: map[string]string{"repo": "r"}, From: bindings.Flag}
}

// boundTo is a domain whose disks vda, vdb… are these images.
func boundTo(t *testing.T, h *bindings.Host, uuid string, ids ...string) *xmlrewrite.Document {
	t.Helper()
	var sources []string
	var written []bindings.Binding
	for i, id := range ids {
		target := "vd" + string(rune('a'+i))
		sources = append(sources, "file /srv/none-"+target)
		written = append(written, asImage(target, id))
	}
	r, err := h.Rewrite(volumeDomain(t, uuid, sources...), written)
	if err != nil {
		t.Fatal(err)
	}
	return r.After
}

func link(h *bindings.Host, uuid, target string) string {
	return filepath.Join(h.Layout.Images(), uuid, target, "disk")
}

// What the definition says, what a start makes, and that its end leaves nothing.
func TestImageLife(t *testing.T) {
	r, id := imageHost(t)
	doc := boundTo(t, r.Host, owner, id)
	for _, want := range []string{
		`<driver name='qemu' type='raw' cache='none' io='threads' error_policy='stop' rerror_policy='stop' discard='unmap'/><source file='` + link(r.Host, owner, "vda") + `'/>`,
		`<dh:image repo='r' id='` + id + `' format='raw'/>`, `<dh:origin><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/none-vda'/></disk></dh:origin>`,
	} {
		if !strings.Contains(string(doc.Bytes()), want) {
			t.Errorf("%s\nis not in\n%s", want, doc.Bytes())
		}
	}
	again, err := r.Rewrite(doc, nil)
	if err != nil || again.Diff() != "" {
		t.Errorf("again: %v %s", err, again.Diff())
	}
	if got := r.Holders(id); len(got) != 0 {
		t.Errorf("held before the start: %v", got)
	}
	d, bound, err := startVolumes(t, r.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Holders(id); !slices.Equal(got, []string{owner + " on " + hooktest.Machine}) {
		t.Errorf("held by %v", got)
	}
	first, err := os.Readlink(link(r.Host, owner, "vda"))
	if err != nil || filepath.Ext(first) != ".raw" {
		t.Errorf("%s %v", first, err)
	}
	if _, _, err := startVolumes(t, r.Host, doc); err != nil {
		t.Errorf("again: %v", err)
	}
	refused(t, bindings.Migratable(d, bound), failure.Precondition, "bound to image and cannot be migrated", "diskhook repo connect")
	if err := r.Own(t.Context(), d, bound, bindings.Label{Owned: true, UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := r.Release(t.Context(), d, bound, "shutdown"); err != nil {
			t.Error(err)
		}
	}
	if got := r.Holders(id); len(got) != 0 {
		t.Errorf("held after the end: %v", got)
	}
	if files, _ := os.ReadDir(r.Layout.Images()); len(files) != 0 {
		t.Errorf("left: %v", files)
	}
}

// A snapshot between two starts lets the disk go on elsewhere. The link follows,
// with the chain beside it; the format is for the definition to say.
func TestImageFollowed(t *testing.T) {
	r, id := imageHost(t)
	doc := boundTo(t, r.Host, owner, id)
	r.Cut(id)
	_, _, err := startVolumes(t, r.Host, doc)
	refused(t, err, failure.Conflict, "is qcow2 on a file now", "the definition says raw", "diskhook domain apply --refresh vm")
	if got := r.Holders(id); len(got) != 0 {
		t.Errorf("still held: %v", got)
	}
	plan, err := bindings.Simulate(t.Context(), r.Host, "restore", doc.Bytes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, plan.Veto, failure.Conflict, "is qcow2 on a file now", "virsh managedsave-edit vm")
	if doc, err = r.Refresh(doc, nil); err != nil {
		t.Fatal(err)
	}
	if again, err := r.Refresh(doc, nil); err != nil || string(again.Bytes()) != string(doc.Bytes()) {
		t.Errorf("again: %v", err)
	}
	var layers []int
	for range 3 {
		d, bound, err := startVolumes(t, r.Host, doc)
		if err != nil {
			t.Fatal(err)
		}
		// QEMU itself finds all layers by the link.
		r.Tool("qemu-io", "-r", "-f", "qcow2", "-c", "read -q 0 64k", link(r.Host, owner, "vda"))
		files, err := os.ReadDir(filepath.Dir(link(r.Host, owner, "vda")))
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, len(files))
		if err := r.Release(t.Context(), d, bound, ""); err != nil {
			t.Fatal(err)
		}
		r.Cut(id)
	}
	if !slices.Equal(layers, []int{2, 3, 4}) {
		t.Errorf("links for %v layers", layers)
	}
}

func TestImageRefused(t *testing.T) {
	r, id := imageHost(t)
	template := r.Template(r.Path("a.raw"))
	try := func(written ...bindings.Binding) error {
		_, err := r.Rewrite(volumeDomain(t, owner, "file /srv/a", "file /srv/b"), written)
		return err
	}
	missing := asImage("vda", stranger)
	elsewhere := asImage("vda", id)
	elsewhere.Options = map[string]string{"repo": "q"}
	refused(t, try(missing), failure.NotFound, "domain vm: disk vda: image r/"+stranger, "no such image", "diskhook image list r")
	refused(t, try(elsewhere), failure.NotFound, "domain vm: disk vda: repository q", "diskhook repo connect")
	refused(t, try(asImage("vda", id), asImage("vdb", id)), failure.Conflict, "disks vda and vdb are both image r/"+id)
	refused(t, try(asImage("vda", template)), failure.Usage, "it is a snapshot, which nobody may write to", "diskhook image create --base "+template+" r")

	doc := boundTo(t, r.Host, owner, id)
	if _, _, err := startVolumes(t, r.Host, doc); err != nil {
		t.Fatal(err)
	}
	// Another domain's, by a definition that somebody wrote.
	other, err := xmlrewrite.Parse([]byte(strings.ReplaceAll(string(doc.Bytes()), owner, stranger)))
	if err != nil {
		t.Fatal(err)
	}
	d, bound, err := startVolumes(t, r.Host, other)
	refused(t, err, failure.Conflict, "disk vda: image r/"+id, "by "+owner, "diskhook image release --holder "+owner)
	if err := r.Release(t.Context(), d, bound, "failed"); err != nil {
		t.Error(err)
	}
	if got := r.Holders(id); len(got) != 1 {
		t.Errorf("held by %v", got)
	}
	clone, err := xmlrewrite.Parse([]byte(strings.Replace(string(doc.Bytes()), "<uuid>"+owner, "<uuid>"+stranger, 1)))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = startVolumes(t, r.Host, clone)
	refused(t, err, failure.Conflict, "seems to be a clone")
	_, err = r.Rebind(clone)
	refused(t, err, failure.Conflict, "is that of the domain which this is a clone of", "diskhook domain unbind vm")
}

// A host that went down under a domain holds nothing any more.
func TestImageAfterReboot(t *testing.T) {
	r, id := imageHost(t)
	doc := boundTo(t, r.Host, owner, id)
	if _, _, err := startVolumes(t, r.Host, doc); err != nil {
		t.Fatal(err)
	}
	r.Reboot()
	if got := r.Holders(id); len(got) != 0 {
		t.Errorf("held by %v", got)
	}
	r.Cut(id) // which an image in use does not allow
	doc, err := r.Refresh(doc, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, bound, err := startVolumes(t, r.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Release(t.Context(), d, bound, ""); err != nil {
		t.Error(err)
	}
}

// What a running domain lost is made again; an image that was taken from it is
// not prepared a second time, since that might move it from under the guest.
func TestImageRelink(t *testing.T) {
	r, id := imageHost(t)
	doc := boundTo(t, r.Host, owner, id)
	d, bound, err := startVolumes(t, r.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(r.Layout.Images()); err != nil {
		t.Fatal(err)
	}
	if err := r.Relink(t.Context(), d, bound, time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(link(r.Host, owner, "vda")); err != nil {
		t.Error(err)
	}
	if err := r.ReleaseImage(t.Context(), "r", id, owner); err != nil {
		t.Fatal(err)
	}
	refused(t, r.Relink(t.Context(), d, bound, time.Minute), failure.Conflict, "released while the domain runs on it", "shut the domain down and start it again")
	if got := r.Holders(id); len(got) != 0 {
		t.Errorf("held by %v", got)
	}
}

// A disk that was unplugged is given back with the domain, which names it still.
func TestImageUnplugged(t *testing.T) {
	r, first := imageHost(t)
	second := r.Disk(r.Path("a.raw"))
	doc := boundTo(t, r.Host, owner, first, second)
	d, _, err := startVolumes(t, r.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	d.Disks = d.Disks[:1]
	if err := r.ReleaseImages(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if len(r.Holders(first)) != 1 || len(r.Holders(second)) != 0 {
		t.Errorf("held by %v and %v", r.Holders(first), r.Holders(second))
	}
}

// hanging repositories do not answer.
type hanging struct{ bindings.Images }

func (hanging) PrepareImage(context.Context, string, string, repository.Preparing) (repository.Prepared, error) {
	select {}
}

func (hanging) ReleaseImage(context.Context, string, string, string) error { select {} }

func TestImageHangs(t *testing.T) {
	r, id := imageHost(t)
	d, bound, err := r.Host.Start(t.Context(), boundTo(t, r.Host, owner, id), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host.Images = func() (bindings.Images, error) { return hanging{r.Service}, nil }
	_, err = r.Fulfil(t.Context(), d, bound, 10*time.Millisecond)
	refused(t, err, failure.Temporary, "disk vda: image r/"+id, "no answer from its storage", "diskhook repo stat r")
	r.Host.Images = func() (bindings.Images, error) { return nil, errors.New("no machine id") }
	_, err = r.Fulfil(t.Context(), d, bound, 0)
	if err == nil || !strings.Contains(err.Error(), "no machine id") {
		t.Error(err)
	}
}

// A snapshot on top of the image, made by libvirt, starts as long as the image is
// what it takes it for.
func TestImageBelowSnapshot(t *testing.T) {
	r, id := imageHost(t)
	doc := boundTo(t, r.Host, owner, id)
	d, bound, err := startVolumes(t, r.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	at := link(r.Host, owner, "vda")
	r.Tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", at, r.Path("above.qcow2"))
	if err := r.Release(t.Context(), d, bound, ""); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(doc.Bytes()), "type='raw' cache", "type='qcow2' cache", 1)
	above, err := xmlrewrite.Parse([]byte(strings.Replace(text, "<source file='"+at+"'/>", "<source file='"+r.Path("above.qcow2")+"'/>", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if d, bound, err = startVolumes(t, r.Host, above); err != nil {
		t.Fatal(err)
	}
	if err := r.Release(t.Context(), d, bound, ""); err != nil {
		t.Fatal(err)
	}
	r.Cut(id)
	_, _, err = startVolumes(t, r.Host, above)
	refused(t, err, failure.Conflict, "above.qcow2 on top of it takes it for raw", "qemu-img rebase -u -f qcow2 -F qcow2 -b "+at)
}

func TestImagePlan(t *testing.T) {
	r, id := imageHost(t)
	doc := boundTo(t, r.Host, owner, id)
	plan, err := bindings.Simulate(t.Context(), r.Host, "prepare", doc.Bytes(), nil)
	if err != nil || plan.Veto != nil {
		t.Fatal(err, plan.Veto)
	}
	text := plan.String()
	for _, want := range []string{"disk vda: image r/" + id + ": prepare it", "prepare image r/" + id + " for " + owner, "link " + link(r.Host, owner, "vda") + " to " + r.Path("repo/data/")} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %s", want, text)
		}
	}
	if len(r.Holders(id)) != 0 || len(r.Files("run/diskhook/images")) != 0 {
		t.Error("a plan changed something")
	}
	if _, err := r.CreateSnapshot(t.Context(), "r", id, nil, repository.Options{NoAutoFix: true}); err != nil {
		t.Fatal(err)
	}
	plan, err = bindings.Simulate(t.Context(), r.Host, "restore", doc.Bytes(), nil)
	if err != nil || plan.Veto != nil {
		t.Errorf("a snapshot that is not made yet: %v %v", err, plan.Veto)
	}
	plan, err = bindings.Simulate(t.Context(), r.Host, "migrate", doc.Bytes(), nil)
	if err != nil || plan.Veto == nil {
		t.Errorf("%v %v", err, plan.Veto)
	}
}
