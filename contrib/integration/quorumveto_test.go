// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestQuorumVeto: a start that must not be is refused in one line which says
// why and what to do, it touches nothing, and the domain starts once that is done.
func TestQuorumVeto(t *testing.T) {
	away := func(t *testing.T, d *domain, replicas ...int) func() {
		var back []func()
		for _, i := range replicas {
			back = append(back, moved(t, d.replicas()[i]))
		}
		return func() {
			for _, put := range back {
				put()
			}
		}
	}
	for _, c := range []struct {
		name, options string
		spoil         func(t *testing.T, d *domain) (mend func())
		says          []string
	}{
		{"two are away", "", func(t *testing.T, d *domain) func() { return away(t, d, 1, 2) },
			[]string{"1 of its replicas have the newest generation 1, 2 are needed", "r2: ", "r3: ", "no such file", "bring r2 back", "diskhook quorum resync --from r1 "}},
		{"two are away, vhost-user", ",transport=vhost-user", func(t *testing.T, d *domain) func() { return away(t, d, 0, 2) },
			[]string{"1 of its replicas have the newest generation 1, 2 are needed", "diskhook quorum resync --from r2 "}},
		{"one is away, inline", ",lower=inline", func(t *testing.T, d *domain) func() { return away(t, d, 2) },
			[]string{"lower=inline needs all of its replicas", "r3 is left out", "bring it back", "lower=export"}},
		{"two have lost their marks", "", func(t *testing.T, d *domain) func() {
			first, second := moved(t, d.replicas()[1]+".quorum"), moved(t, d.replicas()[2]+".quorum")
			return func() { first(); second() }
		}, []string{"1 of its replicas have the newest generation 1, 2 are needed", "r2: it has no mark, so nobody knows what it holds"}},
		{"no override, inline", ",lower=inline", func(t *testing.T, d *domain) func() {
			before, rest, _ := strings.Cut(d.dumped(), "<qemu:override>")
			_, after, found := strings.Cut(rest, "</qemu:override>")
			if !found {
				t.Fatalf("no override in\n%s", before)
			}
			d.defineAs(before + after)
			return func() { diskhook(t, 0, "domain", "apply", d.name) }
		}, []string{"no <qemu:override> points it at a quorum", "would use ", "diskhook domain apply "}},
		{"a replica was replaced, inline", ",lower=inline", func(t *testing.T, d *domain) func() {
			diskhook(t, 0, "quorum", "replace", d.name, "r3", filepath.Join(d.dir, "r4.raw"))
			return func() { diskhook(t, 0, "domain", "apply", d.name) }
		}, []string{"its QEMU would open vda-r2, vda-r3 beside the first replica", "has vda-r2, vda-r4", "diskhook domain apply "}},
		{"a verb works on it", "", func(t *testing.T, d *domain) func() {
			lock := "/run/diskhook/lock/quorum-" + d.name
			verb := exec.Command("flock", "--no-fork", lock, "sleep", "600")
			if err := verb.Start(); err != nil {
				t.Fatal(err)
			}
			end := sync.OnceFunc(func() { _ = verb.Process.Kill(); _ = verb.Wait() })
			t.Cleanup(end)
			eventually(t, func() bool { return try(t, "flock", "--nonblock", lock, "true").code != 0 }, "nobody has the lock")
			return end
		}, []string{"`sleep 600` works on it (process ", "wait for its end, or end it with `kill "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := "veto-" + strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(c.name)
			image := diskImage(false)
			d := replicated(t, name, image, c.options)
			mend := c.spoil(t, d)
			definition, state := d.dumped(), digest(t, d.dir, "/var/lib/diskhook", "/etc/diskhook")
			said := d.startVetoed(append(c.says, "domain "+name+": disk vda: ")...)
			t.Log(said)
			if digest(t, d.dir, "/var/lib/diskhook", "/etc/diskhook") != state || d.dumped() != definition {
				t.Error("the refused start changed something")
			}
			if d.state() != "shut off" || exists("/run/diskhook/quorum/"+name+"/claim.json") || exists("/run/diskhook/quorum/"+name+"/nbd.sock") {
				t.Errorf("it is %s, or its set is still claimed or served", d.state())
			}
			mend()
			d.start()
			d.boots(1)
			d.destroy()
			says(t, diskhook(t, 0, "quorum", "verify", name), "all replicas are equal")
			holds(t, d.replicas()[0], after(image, 1))
		})
	}
}

// TestQuorumInlineBeside: two disks of replicas in one QEMU, beside others whose
// images are named in full, only by their headers, or not at all; before and
// after one of them changes.
func TestQuorumInlineBeside(t *testing.T) {
	image := diskImage(false)
	d := newDomain(t, "beside")
	paths := map[string][]string{}
	for _, target := range []string{"vda", "vdc"} {
		removed(t, "beside-"+target)
		source := filepath.Join(d.dir, target+".raw")
		writeImage(t, source, image)
		for i, name := range []string{"1.raw", "2.qcow2", "3.raw"} {
			if target == "vdc" && i == 0 { // libvirt's own disk is a qcow2 image, too
				name = "1.qcow2"
			}
			paths[target] = append(paths[target], filepath.Join(d.dir, target+"-"+name))
		}
		diskhook(t, 0, "quorum", "build", "--replicas", strings.Join(paths[target], ","), "--threshold", "2", "--from", source, "beside-"+target)
	}
	open := chain(t, filepath.Join(d.dir, "open"), image)
	named := chain(t, filepath.Join(d.dir, "named"), image)
	named = strings.Replace(diskXML("file", named, "qcow2", "vdd"), "<target", fmt.Sprintf(
		"<backingStore type='file'><format type='qcow2'/><source file='%s'/><backingStore type='file'><format type='raw'/><source file='%s'/><backingStore/></backingStore></backingStore><target",
		filepath.Join(d.dir, "named/middle.qcow2"), filepath.Join(d.dir, "named/base.raw")), 1)
	for _, dir := range []string{"open", "named"} {
		given(t, filepath.Join(d.dir, dir))
	}
	d.disks = diskXML("file", filepath.Join(d.dir, "vda.raw"), "raw", "vda") + diskXML("file", open, "qcow2", "vdb") +
		diskXML("file", filepath.Join(d.dir, "vdc.raw"), "raw", "vdc") + named +
		"<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"
	d.define()
	before := d.dumped()
	diskhook(t, 0, "domain", "apply", "--quorum", "vda=beside-vda,lower=inline", "--quorum", "vdc=beside-vdc,lower=inline", "beside")
	runs := func(boots int) {
		t.Helper()
		d.start()
		d.boots(boots)
		run(t, "libvirtd-ctl", "restart")
		for _, target := range []string{"vda", "vdc"} {
			eventually(t, func() bool { s := statusOf(t, "beside-"+target); return s.Live != nil && s.Live.Heard }, "nobody listens for "+target)
		}
		if d.state() != "running" {
			t.Errorf("it is %s", d.state())
		}
		d.destroy()
		holds(t, paths["vda"][2], after(image, byte(boots)))
		holds(t, paths["vdc"][2], image)
	}
	runs(1)

	// libvirt counts the disk that goes, so all nodes get other names.
	run(t, "virsh", "-q", "detach-disk", "--config", d.uuid, "vdd")
	d.startVetoed("domain beside: disk vd", "but libvirt gives this disk the number", "diskhook domain apply beside")
	diskhook(t, 0, "domain", "apply", "beside")
	runs(2)

	diskhook(t, 0, "domain", "revert", "--discard-guest-data", "beside")
	run(t, "virsh", "-q", "attach-device", "--config", d.uuid, deviceFile(t, d, named))
	same(t, before, d.dumped())
}

// deviceFile is a file with the XML of a device.
func deviceFile(t *testing.T, d *domain, text string) string {
	t.Helper()
	path := filepath.Join(d.dir, "device.xml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
