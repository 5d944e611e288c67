// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// Ways out that a header alone can tell; the word IMAGE becomes the path.
const (
	hintEncrypted = "decrypt it into a new image (qemu-img convert with --object secret), or do not bind this disk"
	hintRepair    = "stop what uses it, then run `qemu-img check -r all -f qcow2 IMAGE`"
	hintOther     = "replace it by a sound image, or do not bind this disk"
)

// refusal makes the one line: path, cause, and a hint for every refusal.
func refusal(kind error, path, cause string, args ...any) error {
	return named(path, fmt.Errorf("%w: %w", kind, fmt.Errorf(cause, args...)))
}

// named puts the path in front of an error that does not name one, and into
// its hint.
func named(path string, err error) error {
	hint := failure.HintOf(err)
	if hint == "" && (errors.Is(err, ErrTrap) || errors.Is(err, ErrFormat)) {
		hint = hintOther
	}
	err = fmt.Errorf("%s: %w", path, err)
	if hint == "" {
		return err
	}
	return failure.Hint(err, "%s", strings.ReplaceAll(hint, "IMAGE", shell(path)))
}

// shell quotes words for a hint that will be pasted into one.
func shell(words ...string) string { return command.Quote(words) }

// The first bytes of formats that are not supported, so that a refusal can
// name them. Offsets are within the first kilobyte.
var foreign = []struct {
	at          int
	magic, name string
}{
	{0, "KDMV", "vmdk"},
	{0, "COWD", "vmdk"},
	{0, "# Disk DescriptorFile", "vmdk"},
	{0, "vhdxfile", "vhdx"},
	{0, "conectix", "vpc"},
	{0, "LUKS\xba\xbe", "luks"},
	{0, "QED\x00", "qed"},
	{0x40, "\x7f\x10\xda\xbe", "vdi"},
}

// looksLike names the format whose magic the image begins with, or "".
func looksLike(r io.ReaderAt) string {
	head := make([]byte, 1024)
	n, _ := r.ReadAt(head, 0)
	for _, f := range foreign {
		if f.at < n && bytes.HasPrefix(head[f.at:n], []byte(f.magic)) {
			return f.name
		}
	}
	return ""
}

// convert is the command that makes a supported image of another.
func convert(format, path string) string {
	return shell("qemu-img", "convert", "-f", clip(format), "-O", QCOW2, path, path+".qcow2")
}

// supported refuses a declared format that is not on the list.
func supported(l Layer) error {
	switch l.Format {
	case Raw, QCOW2:
		return nil
	case "":
		return failure.Hint(unusable(l.Path, "its format is not declared"), "declare it raw or qcow2")
	}
	err := unusable(l.Path, "format %q is not supported, only raw and qcow2 are", clip(l.Format))
	return failure.Hint(err, "convert it with `%s`", convert(l.Format, l.Path))
}
