// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"slices"
	"strings"

	"diskhook/hooks/domains"
	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// written are the formats in which a disk can be exported.
var written = []string{"raw", "qcow2"}

// foreign are extensions that promise a format which we do not write, with
// qemu-img's name of it. Other extensions promise nothing.
var foreign = map[string]string{
	"vmdk": "vmdk", "vhdx": "vhdx", "vhd": "vpc", "vpc": "vpc", "vdi": "vdi", "qed": "qed", "qcow": "qcow", "luks": "luks",
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
