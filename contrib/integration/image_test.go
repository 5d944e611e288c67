// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// repository makes and connects a storage repository on a real disk.
func repository(t *testing.T, name string) {
	t.Helper()
	diskhook(t, 0, "repo", "create", "--set", "path="+filepath.Join(work, "repos", name), name)
	t.Cleanup(func() { _ = try(t, "/usr/bin/diskhook", "repo", "disconnect", "--force", name) })
}

// imported is an image with the content of a raw file.
func imported(t *testing.T, repo, kind, file string) string {
	t.Helper()
	return repo + "/" + run(t, "/usr/bin/diskhook", "image", "import", "--wait", "--kind", kind, repo, file)
}

// imageLink is the path of vda, which only the hook makes.
func (d *domain) imageLink() string { return "/run/diskhook/images/" + d.uuid + "/vda/disk" }

// leads is where that path leads now.
func (d *domain) leads() string {
	d.t.Helper()
	to, err := os.Readlink(d.imageLink())
	if err != nil {
		d.t.Fatal(err)
	}
	return to
}

// uses says whether the domain has the image.
func (d *domain) uses(image string) bool {
	d.t.Helper()
	return strings.Contains(diskhook(d.t, 0, "image", "show", image), d.uuid)
}

// shown checks what a snapshot has.
func shown(t *testing.T, image string, want []byte) {
	t.Helper()
	diskhook(t, 0, "image", "prepare", "--holder", "test", image)
	path := run(t, "/usr/bin/diskhook", "image", "prepare", "-o", "name", "--holder", "test", image)
	format := strings.TrimPrefix(filepath.Ext(path), ".")
	flat := filepath.Join(t.TempDir(), "flat.raw")
	run(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, flat)
	holds(t, flat, want)
	diskhook(t, 0, "image", "release", "--holder", "test", image)
}

func imageDomain(t *testing.T, name string) (d *domain, disk string, image []byte) {
	t.Helper()
	repository(t, name)
	d = newDomain(t, name)
	image = diskImage(false)
	writeImage(t, d.image(), image)
	disk = imported(t, name, "disk", d.image())
	d.disks = diskXML("file", d.dir+"/none", "raw", "vda")
	d.define()
	diskhook(t, 0, "domain", "apply", "--image", "vda="+disk, name)
	if d.uses(disk) || exists(d.imageLink()) {
		t.Fatal("it is prepared before the first start")
	}
	return d, disk, image
}

// TestImage follows a disk that is an image through snapshots between its starts:
// it is in another file each time, and its guest finds what it wrote.
func TestImage(t *testing.T) {
	d, disk, image := imageDomain(t, "image")
	d.start()
	d.boots(1)
	first := d.leads()
	if !d.uses(disk) {
		t.Error("a running domain does not have its image")
	}
	says(t, diskhook(t, 4, "image", "snapshot", "--wait", disk), "it is in use: by "+d.uuid)
	d.destroy()
	if d.uses(disk) || exists(filepath.Dir(filepath.Dir(d.imageLink()))) {
		t.Error("its end left something")
	}
	holds(t, first, after(image, 1))

	repo, _, _ := strings.Cut(disk, "/")
	one := repo + "/" + run(t, "/usr/bin/diskhook", "image", "snapshot", "--wait", disk)
	d.startVetoed("domain image: disk vda: image "+disk+" is qcow2 on a file now", "the definition says raw", "run `diskhook domain apply --refresh image`")
	if d.uses(disk) {
		t.Error("a start that was refused has the image")
	}
	diskhook(t, 0, "domain", "apply", "--refresh", "image")
	d.start()
	d.boots(2)
	second := d.leads()
	// QEMU was killed: libvirt asks for the release.
	run(t, "kill", "-KILL", strings.TrimSpace(content(t, "/run/libvirt/qemu/image.pid")))
	eventually(t, func() bool { return d.state() == "shut off" && !d.uses(disk) }, "the image of a domain that was killed is not released")

	two := repo + "/" + run(t, "/usr/bin/diskhook", "image", "snapshot", "--wait", disk)
	d.start() // the same format: the next start just follows
	d.boots(3)
	third := d.leads()
	if first == second || second == third {
		t.Errorf("it stayed in one file: %s, %s, %s", first, second, third)
	}
	d.destroy()
	shown(t, one, after(image, 1))
	shown(t, two, after(image, 2))
	says(t, diskhook(t, 4, "domain", "revert", "image"), "what the guest wrote is on image "+disk)
	diskhook(t, 0, "domain", "revert", "--discard-guest-data", "image")
}

// TestImageAfterHostReboot: the host went down under the domain, so that nobody
// released its image.
func TestImageAfterHostReboot(t *testing.T) {
	d, disk, _ := imageDomain(t, "imagereboot")
	d.start()
	d.boots(1)
	mend := replaced(t, "/usr/bin/diskhook", "not a program\n")
	run(t, "kill", "-KILL", strings.TrimSpace(content(t, "/run/libvirt/qemu/imagereboot.pid")))
	eventually(t, func() bool { return d.state() == "shut off" }, "libvirt does not see the end of QEMU")
	mend()
	if !d.uses(disk) {
		t.Fatal("somebody released the image")
	}
	says(t, diskhook(t, 4, "image", "snapshot", "--wait", disk), "it is in use: by "+d.uuid)

	boot := filepath.Join(d.dir, "boot_id")
	write(t, boot, run(t, "cat", "/proc/sys/kernel/random/uuid")+"\n")
	run(t, "mount", "--bind", boot, "/proc/sys/kernel/random/boot_id")
	t.Cleanup(func() { run(t, "umount", "/proc/sys/kernel/random/boot_id") })
	if err := os.RemoveAll("/run/diskhook/images"); err != nil {
		t.Fatal(err)
	}
	diskhook(t, 0, "image", "snapshot", "--wait", disk)
	diskhook(t, 0, "domain", "apply", "--refresh", "imagereboot")
	d.start()
	d.boots(2)
	d.destroy()
	if d.uses(disk) {
		t.Error("its end left something")
	}
}

// TestCopyOfImage: a local copy of a template in a repository, which nobody holds
// while the guest runs on the copy.
func TestCopyOfImage(t *testing.T) {
	repository(t, "templates")
	d := newDomain(t, "imagecopy")
	image := diskImage(false)
	writeImage(t, d.image(), image)
	template := imported(t, "templates", "snapshot", d.image())
	d.disks = diskXML("file", d.dir+"/none", "raw", "vda")
	d.define()
	diskhook(t, 0, "domain", "apply", "--local", "vda=dir,fill=start", "--image", "vda="+template, "imagecopy")
	d.start()
	d.boots(1)
	d.linked(true)
	if d.uses(template) {
		t.Error("the template is held by a copy that is made")
	}
	d.destroy()
	holds(t, d.copy(), after(image, 1))
	shown(t, template, image)
}
