// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/hooks/domains"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// written are the formats in which a disk can be exported.
var written = []string{"raw", "qcow2"}

// foreign are extensions that promise a format which we do not write, with
// qemu-img's name of it. Other extensions promise nothing.
var foreign = map[string]string{
	"vmdk": "vmdk", "vhdx": "vhdx", "vhd": "vpc", "vpc": "vpc", "vdi": "vdi", "qed": "qed", "qcow": "qcow", "luks": "luks",
}

// declaredFormat is the format of an image that somebody names: the one that is
// said, or that the file's name says, else raw. It is never guessed from what is in
// the image; but one that nobody calls raw, and that looks like another, is
// refused: its guest would find the container in place of the disk.
func declaredFormat(said, file, flag string) (string, error) {
	if said != "" {
		return said, nil
	}
	kind := domains.ExportFormat(file)
	promised := strings.ToLower(strings.TrimPrefix(filepath.Ext(file), "."))
	looks, isForeign := foreign[promised]
	if !isForeign && kind == imagecheck.Raw {
		looks = headerOf(file)
	}
	if looks == "" {
		return kind, nil
	}
	err := failure.New(failure.Usage, "%s: it is a %s image by its name or header, and %s does not say what it is", file, looks, flag)
	if looks == imagecheck.QCOW2 {
		return "", failure.Hint(err, "say %s qcow2, or %s raw if a guest has that on its disk", flag, flag)
	}
	return "", failure.Hint(err, "name a raw or qcow2 image, as `qemu-img convert -O qcow2` makes one of it, or say %s", flag)
}

// headerOf is "qcow2" for a file that begins as such an image does (QEMU,
// docs/interop/qcow2), else "". What cannot be read is for others to refuse.
func headerOf(file string) string {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err == nil && string(magic[:]) == "QFI\xfb" {
		return imagecheck.QCOW2
	}
	return ""
}

// imageFormat is the format to export to file in: the one that is asked for,
// or that the file's name says. A name that promises another format than the
// file would have is refused; again are the words of the command with another
// format and file, which is the way out.
func imageFormat(asked, file string, again func(format, file string) []string) (string, error) {
	kind := asked
	if kind == "" {
		kind = domains.ExportFormat(file)
	}
	ext := filepath.Ext(file)
	promised, base := strings.ToLower(strings.TrimPrefix(ext, ".")), strings.TrimSuffix(file, ext)
	other, isForeign := foreign[promised]
	switch {
	case !slices.Contains(written, kind):
		err := failure.New(failure.Usage, "--format %q: no such format", asked)
		return "", failure.Hint(err, "use raw or qcow2")
	case isForeign:
		err := failure.New(failure.Usage, "%s: it would be a %s image by its name, and only raw and qcow2 are written", file, other)
		made := base + ".qcow2"
		return "", failure.Hint(err, "run `%s`, then `%s`", command.Quote(again("qcow2", made)),
			command.Quote([]string{"qemu-img", "convert", "-f", "qcow2", "-O", other, made, file}))
	case slices.Contains(written, promised) && promised != kind:
		err := failure.New(failure.Usage, "%s: its name says %s, the format is to be %s", file, promised, kind)
		return "", failure.Hint(err, "run `%s` or `%s`", command.Quote(again(promised, file)), command.Quote(again(kind, base+"."+kind)))
	}
	return kind, nil
}
