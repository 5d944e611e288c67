// SPDX-License-Identifier: Apache-2.0

package hooktest

import (
	"bytes"
	"path/filepath"

	"diskhook/storage/command"
)

// UUID is that of the domain in testdata/hooks/plain.xml.
const UUID = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"

// Chain makes three layers, dir/base.raw to dir/top.qcow2, and returns what a
// guest would read from the top.
func (w *World) Chain(dir string) []byte {
	w.Helper()
	content := bytes.Repeat([]byte("what the shared storage has. "), 64<<10)
	content = content[:len(content)/512*512]
	w.Write(filepath.Join(dir, "base.raw"), string(content))
	w.Tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", w.Path(dir+"/base.raw"), w.Path(dir+"/mid.qcow2"))
	w.Tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x22 64k 128k", w.Path(dir+"/mid.qcow2"))
	// A relative name, as oVirt has them.
	w.Tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "mid.qcow2", w.Path(dir+"/top.qcow2"))
	copy(content[64<<10:], bytes.Repeat([]byte{0x22}, 128<<10))
	return content
}

// Tool runs a program that must succeed.
func (w *World) Tool(name string, args ...string) {
	w.Helper()
	if _, err := (command.System{}).Run(w.Context(), command.Cmd{Name: name, Args: args}); err != nil {
		w.Fatal(err)
	}
}
