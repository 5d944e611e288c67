// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// Every trap is refused with one line that names the layer, and with a way
// out; none of what it points at is opened.
func TestTraps(t *testing.T) {
	dir := room(t)
	outside := write(t, filepath.Join(room(t), "secret"), []byte("secret"))
	at := func(name string) string { return filepath.Join(dir, name) }
	image := func(name string, f fields) string { return write(t, at(name), f.bytes()) }
	layers := chain(t, dir)
	top, mid, base := layers[0], layers[1], layers[2]
	backed := func(name, backing, format string) []Layer {
		return []Layer{{image(name, withBacking(backing, format)), QCOW2}}
	}
	data := sound()
	data.incompatible = featureDataFile
	data.extensions = []extension{{extDataFile, 11, "/etc/shadow"}}
	huge := sound()
	huge.size = 1 << 63
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data.raw")+",data_file_raw=on", at("external.qcow2"), "1M")
	crypt := sound()
	crypt.crypt = 2
	for _, format := range []string{"vmdk", "vhdx", "vpc", "vdi", "qed"} {
		qemuImg(t, "create", "-q", "-f", format, at("other."+format), "1M")
	}
	write(t, at("other.luks"), []byte("LUKS\xba\xbe\x00\x01"+strings.Repeat("\x00", 4096)))
	if err := os.Symlink(outside, at("link.raw")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	self := withBacking(at("self.qcow2"), "qcow2")
	write(t, at("empty.raw"), nil)

	for name, c := range map[string]struct {
		layers []Layer
		kind   error
		text   string
		hint   string
	}{
		"backing /etc/shadow":   {backed("a", "/etc/shadow", "raw"), ErrTrap, `names a backing file "/etc/shadow", but none is declared`, "qemu-img info -U -f qcow2 " + at("a")},
		"another than declared": {append(backed("b", "/etc/shadow", "raw"), base), ErrTrap, `names the backing file "/etc/shadow", declared is ` + base.Path, "declare the whole chain"},
		"a way out of the root": {append(backed("c", "../../../../../../etc/shadow", "raw"), base), ErrTrap, "declared is", "declare the whole chain"},
		"json":                  {append(backed("d", `json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}`, ""), base), ErrTrap, "not a plain path", "qemu-img rebase -u"},
		"nbd":                   {append(backed("e", "nbd:unix:/run/x.sock", "raw"), base), ErrTrap, "not a plain path", "qemu-img rebase -u"},
		"nbd url":               {append(backed("f", "nbd://evil.example/x", "raw"), base), ErrTrap, "not a plain path", "qemu-img rebase -u"},
		"file url":              {append(backed("g", "file:"+base.Path, "raw"), base), ErrTrap, "not a plain path", "qemu-img rebase -u"},
		"NUL":                   {append(backed("h", base.Path+"\x00x", "raw"), base), ErrTrap, "not a plain path", "qemu-img rebase -u"},
		"other backing format":  {append(backed("i", base.Path, "qcow2"), base), ErrTrap, "names qcow2 as the format of its backing file, declared is raw", "declare the whole chain"},
		"none, declared one":    {[]Layer{{image("j", sound()), QCOW2}, base}, ErrTrap, "it has no backing file", "qemu-img rebase -u -f qcow2 -b " + base.Path + " -F raw " + at("j")},
		"layer left out":        {[]Layer{top, base}, ErrTrap, "declared is " + base.Path, "declare the whole chain"},
		"raw above":             {[]Layer{base, mid, base}, ErrTrap, "comes back", ""},
		"raw with backing":      {[]Layer{base, mid}, ErrTrap, "has no backing file", ""},
		"loop":                  {[]Layer{{image("self.qcow2", self), QCOW2}, {at("self.qcow2"), QCOW2}}, ErrTrap, "comes back to it", "qemu-img rebase"},
		"data file by hand":     {[]Layer{{image("k", data), QCOW2}}, ErrTrap, "data in another file", "qemu-img convert"},
		"data file":             {[]Layer{{at("external.qcow2"), QCOW2}}, ErrTrap, "data in another file", "qemu-img convert"},
		"2^63":                  {[]Layer{{image("l", huge), QCOW2}}, ErrTrap, "virtual size of 9223372036854775808", ""},
		"luks in qcow2":         {[]Layer{{image("m", crypt), QCOW2}}, ErrFormat, "encrypted", "decrypt"},
		"luks":                  {[]Layer{{at("other.luks"), QCOW2}}, ErrFormat, "it is luks", "qemu-img convert -f luks"},
		"vmdk":                  {[]Layer{{at("other.vmdk"), QCOW2}}, ErrFormat, "it is vmdk", "qemu-img convert -f vmdk -O qcow2 " + at("other.vmdk")},
		"vhdx":                  {[]Layer{{at("other.vhdx"), QCOW2}}, ErrFormat, "it is vhdx", "qemu-img convert"},
		"vpc":                   {[]Layer{{at("other.vpc"), QCOW2}}, ErrFormat, "it is vpc", "qemu-img convert"},
		"vdi":                   {[]Layer{{at("other.vdi"), QCOW2}}, ErrFormat, "it is vdi", "qemu-img convert"},
		"qed":                   {[]Layer{{at("other.qed"), QCOW2}}, ErrFormat, "it is qed", "qemu-img convert"},
		"declared vmdk":         {[]Layer{{at("other.vmdk"), "vmdk"}}, ErrFormat, `format "vmdk" is not supported`, "qemu-img convert -f vmdk"},
		"no format":             {[]Layer{{base.Path, ""}}, ErrFormat, "format is not declared", "declare it"},
		"raw declared qcow2":    {[]Layer{{base.Path, QCOW2}}, ErrFormat, "not a qcow2 image", "`qemu-img info " + base.Path + "`; if it is raw, declare it so"},
		"empty raw":             {[]Layer{{at("empty.raw"), Raw}}, ErrFormat, "it is empty", ""},
		"fifo":                  {[]Layer{{at("fifo"), Raw}}, ErrTrap, "neither a regular file nor a block device", "declare the image"},
		"directory":             {[]Layer{{at("sub"), Raw}}, ErrTrap, "neither a regular file nor a block device", "declare the image"},
		"not absolute":          {[]Layer{{"json:{}", Raw}}, ErrTrap, "not an absolute path", ""},
		"link out of the root":  {[]Layer{{at("link.raw"), Raw}}, failure.Precondition, "not below any", ""},
		"outside":               {[]Layer{{outside, Raw}}, failure.Precondition, "not below any", ""},
		"missing":               {[]Layer{{at("missing"), Raw}}, failure.NotFound, "missing", ""},
		"nothing":               {nil, failure.Usage, "no image", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Chain(t.Context(), c.layers, within(dir))
			line := ""
			if err != nil {
				line = failure.Line(err)
			}
			if !errors.Is(err, c.kind) || !strings.Contains(line, c.text) {
				t.Fatalf("got %q, want %q", line, c.text)
			}
			if errors.Is(err, ErrTrap) || errors.Is(err, ErrFormat) {
				if hint := failure.HintOf(err); hint == "" || !strings.Contains(hint, c.hint) {
					t.Errorf("way out %q, want %q", hint, c.hint)
				}
				if !strings.HasPrefix(line, c.layers[0].Path) {
					t.Errorf("the line does not begin with the layer: %s", line)
				}
				if failure.KindOf(err) != failure.Precondition {
					t.Errorf("kind %v", failure.KindOf(err))
				}
			}
		})
	}
}

// Discover follows headers, hence refuses what Chain refuses, loops, missing
// formats and endless chains.
func TestDiscoverRefuses(t *testing.T) {
	dir := room(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, backing, format string) Layer {
		return Layer{write(t, at(name), withBacking(backing, format).bytes()), QCOW2}
	}
	first := put("loop.0", "loop.1", "qcow2")
	put("loop.1", "loop.0", "qcow2")
	write(t, at("base.raw"), make([]byte, 512))
	var deep Layer
	for i := range MaxLayers + 1 {
		deep = put(fmt.Sprintf("deep.%d", i), fmt.Sprintf("deep.%d", i-1), "qcow2")
	}
	write(t, at("deep.-1"), sound().bytes())
	for name, c := range map[string]struct {
		top  Layer
		kind error
		text string
	}{
		"loop":       {first, ErrTrap, "comes back to it"},
		"no format":  {put("plain", "base.raw", ""), ErrFormat, "does not name the format"},
		"shadow":     {put("shadow", "/etc/shadow", "raw"), failure.Precondition, "not below any"},
		"json":       {put("json", "json:{}", "qcow2"), ErrTrap, "not a plain path"},
		"vmdk below": {put("vmdk", "base.raw", "vmdk"), ErrFormat, `format "vmdk" is not supported`},
		"wrong type": {put("wrong", "base.raw", "qcow2"), ErrFormat, "not a qcow2 image"},
		"too deep":   {deep, ErrTrap, "chain"},
	} {
		t.Run(name, func(t *testing.T) {
			layers, err := Discover(t.Context(), c.top, within(dir))
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, %v; want %q", layers, err, c.text)
			}
		})
	}
}

// Between resolving and opening, whoever owns the directory swaps the image,
// or a directory on the way to it, for a link.
func TestSymlinkSwap(t *testing.T) {
	for name, swap := range map[string]func(dir, outside string) error{
		"file": func(dir, outside string) error {
			path := filepath.Join(dir, "images", "disk.raw")
			return errors.Join(os.Remove(path), os.Symlink(filepath.Join(outside, "disk.raw"), path))
		},
		"directory": func(dir, outside string) error {
			path := filepath.Join(dir, "images")
			return errors.Join(os.Rename(path, path+".old"), os.Symlink(outside, path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := room(t), room(t)
			path := filepath.Join(dir, "images", "disk.raw")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, path, make([]byte, 512))
			write(t, filepath.Join(outside, "disk.raw"), []byte("secret"))
			allowed := func(p string) (string, error) {
				resolved, err := within(dir)(p)
				return resolved, errors.Join(err, swap(dir, outside))
			}
			_, err := Chain(t.Context(), []Layer{{path, Raw}}, allowed)
			if !errors.Is(err, ErrTrap) || !strings.Contains(err.Error(), "symbolic link") {
				t.Errorf("got %v", err)
			}
		})
	}
}
