// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	. "diskhook/xmlrewrite"
)

// BenchmarkRewrite8K is what a hook does with a domain of ordinary size: read,
// rewrite a disk, record it, write. The aim is 1 ms.
func BenchmarkRewrite8K(b *testing.B) {
	text := fixture(b, "vdsm-mixed.in.xml")
	if len(text) < 7000 || len(text) > 9000 {
		b.Fatalf("the fixture has %d bytes", len(text))
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		doc, err := Parse(text)
		if err != nil {
			b.Fatal(err)
		}
		out, err := Apply(doc, bound(LocalDisk{Target: "sda", Path: "/copy", Block: true})(b, doc)...)
		if err != nil {
			b.Fatal(err)
		}
		out.Bytes()
	}
}

// BenchmarkSize shows that time grows with size and not faster: MB/s stays.
func BenchmarkSize(b *testing.B) {
	const disk = "    <disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2'/>\n" +
		"      <source file='/srv/images/%d.qcow2'/>\n      <target dev='vd%d' bus='virtio'/>\n    </disk>\n"
	for size := 16 << 10; size <= MaxSize; size *= 4 {
		var text bytes.Buffer
		text.WriteString(strings.Replace(domain("  <devices>\n"), "  <memory>1</memory>\n</domain>\n", "", 1))
		for i := 0; text.Len() < size-500; i++ {
			fmt.Fprintf(&text, disk, i, i)
		}
		text.WriteString("  </devices>\n</domain>\n")
		b.Run(fmt.Sprintf("%dK", size>>10), func(b *testing.B) {
			b.SetBytes(int64(text.Len()))
			for b.Loop() {
				doc, err := Parse(text.Bytes())
				if err != nil {
					b.Fatal(err)
				}
				out, err := Apply(doc, LocalDisk{Target: "vd7", Path: "/copy"})
				if err != nil {
					b.Fatal(err)
				}
				out.Bytes()
			}
		})
	}
}
