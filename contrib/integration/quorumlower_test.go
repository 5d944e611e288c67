// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"diskhook/xmlrewrite"
)

// votes is a quorum of three replicas for vda, below dir, of one chain each:
// none of them exists.
func votes(dir string) xmlrewrite.QuorumDisk {
	q := xmlrewrite.QuorumDisk{Target: "vda", Threshold: 2}
	for i := 1; i <= 3; i++ {
		at := func(name string) string { return filepath.Join(dir, strconv.Itoa(i), name) }
		q.Replicas = append(q.Replicas, xmlrewrite.QuorumReplica{Chain: []xmlrewrite.Layer{
			fileLayer("qcow2", at("top.qcow2")), fileLayer("qcow2", at("middle.qcow2")), fileLayer("raw", at("base.raw")),
		}})
	}
	return q
}

// TestQuorumDefines: libvirt takes every lowering, validates it, and gives back
// what the rewrite reads again. The element itself it refuses.
func TestQuorumDefines(t *testing.T) {
	for _, c := range []struct {
		name    string
		lower   func(q xmlrewrite.QuorumDisk) xmlrewrite.Rewriter
		path    string
		refused string
	}{
		{"none", func(q xmlrewrite.QuorumDisk) xmlrewrite.Rewriter { return xmlrewrite.ProduceQuorum{QuorumDisk: q} }, "", "Invalid value for attribute 'type' in element 'disk': 'quorum'"},
		{"nbd", func(q xmlrewrite.QuorumDisk) xmlrewrite.Rewriter {
			return xmlrewrite.ExportQuorum{Target: "vda", Socket: "/run/diskhook/quorum/db/nbd.sock", Name: "db"}
		}, "/run/diskhook/quorum/db/nbd.sock", ""},
		{"vhost-user", func(q xmlrewrite.QuorumDisk) xmlrewrite.Rewriter {
			return xmlrewrite.ExportQuorum{Target: "vda", Socket: "/run/diskhook/quorum/db/vhost.sock", VhostUser: true, Reconnect: 1}
		}, "/run/diskhook/quorum/db/vhost.sock", ""},
		{"inline", func(q xmlrewrite.QuorumDisk) xmlrewrite.Rewriter {
			return xmlrewrite.InlineQuorum{Disks: []xmlrewrite.InlineDisk{{QuorumDisk: q, Name: "db"}}}
		}, "/srv/1/top.qcow2", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDomain(t, "defines")
			d.disks = raw("vda")
			q := votes("/srv")
			text := shared(d.xml())
			was, err := xmlrewrite.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			origin, err := was.Origin("vda")
			if err != nil {
				t.Fatal(err)
			}
			bound := xmlrewrite.SetMetadata{Disks: []xmlrewrite.BoundDisk{{
				Target: "vda", Source: c.path, Origin: origin, Quorum: &xmlrewrite.Quorum{Set: "db", Lower: c.name},
			}}}
			doc := rewritten(t, text, xmlrewrite.ProduceQuorum{QuorumDisk: q}, c.lower(q), bound)
			path := filepath.Join(d.dir, "domain.xml")
			if err := os.WriteFile(path, doc.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			if c.refused != "" {
				if r := try(t, "virsh", "-q", "define", path); r.code == 0 || !strings.Contains(r.stderr, c.refused) {
					t.Errorf("exit %d: %s", r.code, r.stderr)
				}
				return
			}
			run(t, "virsh", "-q", "define", "--validate", path)
			kept := rewritten(t, d.dumped())
			disk, _ := kept.Disk("vda")
			if got := disk.QuorumPath(); got != c.path {
				t.Errorf("libvirt has the disk at %q, not %q", got, c.path)
			}
			unchanged(t, d.dumped(), c.lower(q))
			if c.name == "inline" {
				if err := xmlrewrite.CheckInline(kept, "vda"); err != nil {
					t.Error(err)
				}
			}
			back := rewritten(t, d.dumped(), xmlrewrite.RemoveInline{Target: "vda"}, xmlrewrite.RestoreOrigin{Target: "vda"}, xmlrewrite.RemoveMetadata{})
			d.defineAs(string(back.Bytes()))
			reverted := d.dumped()
			run(t, "virsh", "-q", "undefine", d.uuid)
			d.defineAs(string(was.Bytes()))
			if never := d.dumped(); never != reverted {
				t.Errorf("bound and unbound is not what it was:\n%s", xmlrewrite.Diff([]byte(never), []byte(reverted), "never", "reverted"))
			}
		})
	}
}

// TestInlineQuorumRuns starts a guest whose disk is a quorum in its own QEMU,
// beside a disk whose chain only the images' headers tell.
func TestInlineQuorumRuns(t *testing.T) {
	d := newDomain(t, "votes")
	image := diskImage(false)
	q := votes(d.dir)
	for i := 1; i <= 3; i++ {
		chain(t, filepath.Join(d.dir, strconv.Itoa(i)), image)
		given(t, filepath.Join(d.dir, strconv.Itoa(i)))
	}
	other := chain(t, filepath.Join(d.dir, "other"), image)
	d.disks = diskXML("file", "/nowhere", "raw", "vda") + diskXML("file", other, "qcow2", "vdb") +
		"<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"
	inline := xmlrewrite.InlineQuorum{
		Disks: []xmlrewrite.InlineDisk{{QuorumDisk: q, Name: "votes"}},
	}
	d.defineAs(string(rewritten(t, d.xml(), inline).Bytes()))

	d.start()
	live := rewritten(t, run(t, "virsh", "-q", "dumpxml", d.uuid))
	if err := xmlrewrite.CheckInline(live, "vda"); err != nil {
		t.Error(err)
	}
	disk, _ := live.Disk("vda")
	nodes, _ := live.InlineNodes("vda")
	if disk.Source.Index != "3" || nodes.Children[0] != "libvirt-3-format" {
		t.Errorf("libvirt numbers the disk %s, the quorum has %q", disk.Source.Index, nodes.Children)
	}
	driver, node, file := driveOf(t, d, disk.Alias)
	if driver != "quorum" || node != "votes" {
		t.Errorf("the guest's disk is the %s node %s", driver, node)
	}
	for _, r := range q.Replicas {
		for _, l := range r.Chain[:1] {
			if !strings.Contains(file, l.Source.File) {
				t.Errorf("%s is not in the quorum: %s", l.Source.File, file)
			}
		}
	}
	d.boots(1)
	d.destroy()
	d.replicasHold(q, after(image, 1))

	// What one replica says alone the guest does not see.
	given(t, filepath.Join(d.dir, "2"))
	run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P 7 %d %d", sector, sector), filepath.Join(d.dir, "2", "top.qcow2"))
	d.start()
	d.boots(2)
	d.destroy()
	d.replicasHold(q, after(image, 2))

	// libvirt takes a number that is not the disk's, and QEMU then does not start,
	// be it one of another disk, of a lower layer, or of none.
	given(t, filepath.Join(d.dir, "2"))
	for _, number := range []string{"1", "2", "4", "5", "6", "7", "8"} {
		d.defineAs(strings.Replace(string(rewritten(t, d.xml(), inline).Bytes()), "libvirt-3-format", "libvirt-"+number+"-format", 1))
		if err := xmlrewrite.CheckInline(rewritten(t, d.dumped()), "vda"); err == nil {
			t.Errorf("CheckInline takes number %s", number)
		}
		if r := try(t, "virsh", "-q", "start", d.uuid); r.code == 0 {
			t.Errorf("the quorum started with number %s", number)
		}
	}
	d.replicasHold(q, after(image, 2))
}

// unchanged checks that what libvirt made of a rewrite still is that rewrite:
// to run it again is how a drift is found.
func unchanged(t *testing.T, text string, r xmlrewrite.Rewriter) {
	t.Helper()
	if again := rewritten(t, text, r).Bytes(); string(again) != text {
		t.Errorf("the rewrite changes what libvirt kept of it:\n%s", xmlrewrite.Diff([]byte(text), again, "kept", "again"))
	}
}

// replicasHold checks the content of all replicas.
func (d *domain) replicasHold(q xmlrewrite.QuorumDisk, want []byte) {
	d.t.Helper()
	for _, r := range q.Replicas {
		plain := filepath.Join(d.dir, "plain")
		run(d.t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", r.Chain[0].Source.File, plain)
		holds(d.t, plain, want)
	}
}

// given lets QEMU's user write to all files of a folder, as nothing else does
// for what libvirt only passes on.
func given(t *testing.T, dir string) {
	t.Helper()
	u, err := user.Lookup("libvirt-qemu")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	for _, file := range files {
		if err := os.Chown(file, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
}

// driveOf asks QEMU what a device reads and writes.
func driveOf(t *testing.T, d *domain, alias string) (driver, node, file string) {
	t.Helper()
	var answer struct {
		Return []struct {
			QDev     string `json:"qdev"`
			Inserted struct {
				Driver   string `json:"drv"`
				NodeName string `json:"node-name"`
				File     string `json:"file"`
			} `json:"inserted"`
		} `json:"return"`
	}
	said := run(t, "virsh", "-q", "qemu-monitor-command", d.uuid, `{"execute":"query-block"}`)
	if err := json.Unmarshal([]byte(said), &answer); err != nil {
		t.Fatal(err, said)
	}
	for _, device := range answer.Return {
		if strings.Contains(device.QDev, alias) {
			return device.Inserted.Driver, device.Inserted.NodeName, device.Inserted.File
		}
	}
	t.Fatalf("QEMU has no device %s: %s", alias, said)
	return "", "", ""
}
