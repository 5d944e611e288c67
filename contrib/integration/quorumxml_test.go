// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/xmlrewrite"
)

// numbered are domains whose disk vdx is an inline quorum, among disks that
// libvirt counts before it: from its last disk to its first.
var numbered = []struct{ name, before, after string }{
	{"alone", "", ""},
	{"chains of different length",
		chained("vda", 3) + chained("vdb", 1), chained("vdy", 2) + chained("vdz", 4)},
	{"another order in the document than in libvirt's list",
		chained("vdz", 2) + chained("vdy", 1) + bus("sdb", "scsi", chained("sdb", 3)), bus("sda", "scsi", chained("sda", 2)) + chained("vda", 1)},
	{"buses that alternate",
		bus("sda", "sata", chained("sda", 1)) + chained("vdz", 2), bus("sdb", "sata", chained("sdb", 3)) + chained("vdaa", 2) + bus("hda", "ide", chained("hda", 2))},
	{"CD-ROMs, full and empty, and a floppy",
		"<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/a.iso'/><target dev='sda' bus='sata'/><readonly/></disk>",
		"<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>" +
			"<disk type='block' device='cdrom'><target dev='sdc' bus='sata'/><readonly/></disk>" +
			"<disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>"},
	{"raw images", raw("vda"), raw("vdy") + "<disk type='file'><source file='/srv/z'/><target dev='vdz' bus='virtio'/></disk>"},
	{"network disks",
		"<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='e'><host name='localhost' port='10809'/></source><target dev='vda' bus='virtio'/></disk>",
		"<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'><host name='mon'/></source><target dev='vdy' bus='virtio'/></disk>" +
			"<disk type='network' device='disk'><driver name='qemu' type='qcow2'/><source protocol='nbd' name='e'><host transport='unix' socket='/run/e.sock'/></source><backingStore/><target dev='vdz' bus='virtio'/></disk>"},
	{"vhost-user", "", "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/><source type='unix' path='/run/v.sock'/><target dev='vdz' bus='virtio'/></disk>" + chained("vdzz", 2)},
	{"folders and NVMe", "",
		"<disk type='dir' device='floppy'><driver name='qemu' type='fat'/><source dir='/srv/d'/><target dev='fda' bus='fdc'/><readonly/></disk>" +
			"<disk type='nvme' device='disk'><driver name='qemu' type='raw'/><source type='pci' managed='no' namespace='1'><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source><target dev='vdz' bus='virtio'/></disk>"},
	{"copy on read, transient and shared", "",
		strings.Replace(chained("vdy", 2), "type='qcow2'/>", "type='qcow2' copy_on_read='on'/>", 1) +
			strings.Replace(chained("vdz", 2), "<target", "<transient/><target", 1) +
			strings.Replace(raw("vdzz"), "<target", "<shareable/><target", 1)},
}

// chained is a disk of so many images.
func chained(target string, images int) string {
	below := "<backingStore/>"
	for i := images; i > 1; i-- {
		below = fmt.Sprintf("<backingStore type='file'><format type='qcow2'/><source file='/srv/%s.%d'/>%s</backingStore>", target, i, below)
	}
	return fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/%s.1'/>%s<target dev='%s' bus='virtio'/></disk>",
		target, below, target)
}

func bus(target, name, disk string) string {
	return strings.Replace(disk, "dev='"+target+"' bus='virtio'", "dev='"+target+"' bus='"+name+"'", 1)
}

func raw(target string) string {
	return fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/%s'/><target dev='%s' bus='virtio'/></disk>", target, target)
}

// TestInlineQuorumNumbers compares the numbers that the rewrite derives with
// those that libvirt gives.
func TestInlineQuorumNumbers(t *testing.T) {
	for _, c := range numbered {
		for _, format := range []string{"qcow2", "raw"} {
			t.Run(c.name+", "+format, func(t *testing.T) {
				d := newDomain(t, "numbers")
				q := xmlrewrite.QuorumDisk{Target: "vdx", Threshold: 2}
				for i := 1; i <= 3; i++ {
					r := xmlrewrite.QuorumReplica{Chain: []xmlrewrite.Layer{fileLayer(format, fmt.Sprintf("/srv/replica%d", i))}}
					if format != "raw" {
						r.Chain = append(r.Chain, fileLayer("qcow2", fmt.Sprintf("/srv/base%d", i)))
					}
					q.Replicas = append(q.Replicas, r)
				}
				d.disks = c.before + raw("vdx") + c.after
				if strings.Contains(d.disks, "vhostuser") {
					d.extra = "</devices><memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><devices>"
				}
				if strings.Contains(d.disks, "bus='scsi'") {
					d.extra = "<controller type='scsi' model='virtio-scsi'/>"
				}
				doc := rewritten(t, d.xml(), xmlrewrite.InlineQuorum{
					Disks:   []xmlrewrite.InlineDisk{{QuorumDisk: q, Name: "votes"}},
					RawNode: rawNode(t),
				})
				nodes, _ := doc.InlineNodes("vdx")
				args := native(t, d, doc)
				top := ""
				for _, node := range blockdevs(t, args) {
					if node.Filename == "/srv/replica1" {
						top = node.NodeName
					}
				}
				number, _ := strings.CutSuffix(top, "-storage")
				if len(nodes.Children) != 3 || nodes.Children[0] != number+"-"+rawOr(format, rawNode(t)) || number == "" {
					t.Errorf("the nodes are %q, and libvirt calls the first replica %q", nodes.Children, top)
				}
				if !strings.Contains(args, `"drive":"votes"`) {
					t.Errorf("no device has the quorum as its drive:\n%s", args)
				}
			})
		}
	}
}

func rawOr(format, raw string) string {
	if format == "raw" {
		return raw
	}
	return "format"
}

// rawNode is what the libvirt and QEMU of this machine call a raw image's node.
func rawNode(t *testing.T) string {
	t.Helper()
	var libvirt, qemu [3]int
	for line := range strings.Lines(run(t, "virsh", "version")) {
		line = strings.TrimSpace(line)
		_, _ = fmt.Sscanf(line, "Using library: libvirt %d.%d.%d", &libvirt[0], &libvirt[1], &libvirt[2])
		_, _ = fmt.Sscanf(line, "Running hypervisor: QEMU %d.%d.%d", &qemu[0], &qemu[1], &qemu[2])
	}
	number := func(v [3]int) int { return v[0]*1_000_000 + v[1]*1000 + v[2] }
	if libvirt[0] == 0 || qemu[0] == 0 {
		t.Fatalf("no versions: %v %v", libvirt, qemu)
	}
	return xmlrewrite.RawNode(number(libvirt), number(qemu))
}

func fileLayer(format, path string) xmlrewrite.Layer {
	return xmlrewrite.Layer{Type: "file", Format: format, Source: xmlrewrite.Source{Type: "file", File: path}}
}

func rewritten(t *testing.T, text string, rewriters ...xmlrewrite.Rewriter) *xmlrewrite.Document {
	t.Helper()
	doc, err := xmlrewrite.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	out, err := xmlrewrite.Apply(doc, rewriters...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// native is the command line that libvirt would start the domain with.
func native(t *testing.T, d *domain, doc *xmlrewrite.Document) string {
	t.Helper()
	path := filepath.Join(d.dir, "native.xml")
	if err := os.WriteFile(path, doc.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return run(t, "virsh", "-q", "domxml-to-native", "qemu-argv", path)
}

type blockdev struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name"`
	Filename string `json:"filename"`
}

// blockdevs are the -blockdev of a command line that virsh printed for a shell.
func blockdevs(t *testing.T, args string) (nodes []blockdev) {
	t.Helper()
	for part := range strings.SplitSeq(args, "-blockdev '") {
		text, _, _ := strings.Cut(part, "'")
		var node blockdev
		if strings.HasPrefix(text, "{") {
			if err := json.Unmarshal([]byte(text), &node); err != nil {
				t.Fatal(err)
			}
			nodes = append(nodes, node)
		}
	}
	return nodes
}
