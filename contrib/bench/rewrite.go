// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"diskhook/xmlrewrite"
)

// rewrites measures parse, one disk pointed at its copy, metadata and text, at
// sizes up to what diskhook takes.
func rewrites(ctx context.Context, out io.Writer) error {
	var first float64
	for _, size := range []int{8 << 10, 64 << 10, 512 << 10, 4 << 20, 15 << 20} {
		if err := ctx.Err(); err != nil {
			return err
		}
		xml := domainOf(size)
		if err := rewrite(xml); err != nil {
			return err
		}
		result := testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				if err := rewrite(xml); err != nil {
					b.Fatal(err)
				}
			}
		})
		took := time.Duration(result.NsPerOp())
		perByte := float64(took) / float64(len(xml))
		if first == 0 {
			first = perByte
		}
		fmt.Fprintf(out, "  %7d KiB, %5d disks %10.2f ms  %5.1f ns a byte, %.2f × that of the first line\n",
			len(xml)>>10, bytes.Count(xml, []byte("<disk ")), milliseconds(took), perByte, perByte/first)
	}
	return nil
}

func rewrite(xml []byte) error {
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		return err
	}
	bound := xmlrewrite.BoundDisk{
		Target: "vda", Source: "/run/diskhook/disks/x/vda", Origin: []byte("<disk type='file'><source file='/srv/0.qcow2'/></disk>"),
		Local: &xmlrewrite.Local{Backend: "dir", Fill: "now", OnStop: "keep"},
	}
	doc, err = xmlrewrite.Apply(doc,
		xmlrewrite.LocalDisk{Target: "vda", Path: bound.Source},
		xmlrewrite.SetMetadata{Disks: []xmlrewrite.BoundDisk{bound}})
	if err != nil {
		return err
	}
	if !bytes.Contains(doc.Bytes(), []byte(bound.Source)) {
		return fmt.Errorf("the rewritten text lacks %s", bound.Source)
	}
	return nil
}

// domainOf makes a domain of about size bytes: a disk to be rewritten, and as
// many others as it takes.
func domainOf(size int) []byte {
	var b strings.Builder
	b.WriteString("<domain type='kvm'>\n  <name>bench</name>\n  <uuid>6a7e5d52-5d3e-4a5f-9c55-0a0c6e4a6d5f</uuid>\n  <memory unit='KiB'>1048576</memory>\n  <devices>\n")
	const tail = "  </devices>\n</domain>\n"
	for i := 0; b.Len() < size-len(tail)-400; i++ {
		fmt.Fprintf(&b, `    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
      <source file='/srv/%d.qcow2'/>
      <target dev='vd%s' bus='virtio'/>
      <serial>%032d</serial>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
`, i, letters(i), i)
	}
	b.WriteString(tail)
	return []byte(b.String())
}

// letters counts as device names do: a, b, …, z, aa.
func letters(i int) string {
	name := string(rune('a' + i%26))
	for i = i/26 - 1; i >= 0; i = i/26 - 1 {
		name = string(rune('a'+i%26)) + name
	}
	return name
}
