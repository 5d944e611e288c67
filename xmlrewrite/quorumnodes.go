// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// libvirt gives each image of a domain a number, and its block nodes the names
// libvirt-<number>-storage and libvirt-<number>-format. It counts from the last
// disk to the first, and within a disk from the top of its chain down
// (qemuProcessPrepareDomain). An empty drive counts as well. "First" is the
// order of libvirt's own list, not of the document. Images that only the header
// of another one names get their numbers later, behind all that the XML names
// (qemuProcessPrepareHostStorage): so the XML alone decides.

// nodeNumbers returns the number of each disk's top image. A disk behind which
// it cannot be told has none, and unknown says why.
func (d *Document) nodeNumbers() (numbers map[string]int, unknown error) {
	disks, err := libvirtOrder(d.Disks())
	if err != nil {
		return nil, err
	}
	numbers, next := map[string]int{}, 1
	for _, disk := range slices.Backward(disks) {
		numbers[disk.Target] = next
		n, err := disk.images()
		if err != nil {
			return numbers, err
		}
		next += n
	}
	return numbers, nil
}

// images is how many images libvirt counts for the disk.
func (d *Disk) images() (int, error) {
	switch {
	case d.Source.HasDataStore || slices.ContainsFunc(d.Chain, func(l Layer) bool { return l.Source.HasDataStore }):
		return 0, fmt.Errorf("disk %s: %w: it keeps data in a second file, and whether libvirt counts that depends on its version", clip(d.Target), ErrUnsupported)
	case d.Type == "vhostuser": // QEMU has no block node for it
		return 0, nil
	case d.Type == "quorum":
		return 0, fmt.Errorf("disk %s: %w: its quorum is not lowered yet", clip(d.Target), ErrUnsupported)
	}
	return 1 + len(d.Chain), nil
}

// maxDisks is more than any domain can have.
const maxDisks = 4096

// libvirtOrder sorts disks as libvirt does when it reads a domain: those of one
// bus are together, by the index in their names, at the place of the first of
// them (virDomainDiskInsert).
func libvirtOrder(disks []*Disk) ([]*Disk, error) {
	if len(disks) > maxDisks {
		return nil, fmt.Errorf("%w: %d disks", ErrUnsupported, len(disks))
	}
	var order []*Disk
	for _, d := range disks {
		index, ok := diskIndex(d.Target)
		switch {
		case !ok:
			return nil, fmt.Errorf("disk %s: %w: libvirt has no such target", clip(d.Target), ErrUnsupported)
		case d.Bus == "":
			return nil, fmt.Errorf("disk %s: %w: its <target> names no bus, by which libvirt sorts the disks", clip(d.Target), ErrUnsupported)
		case d.Bus == "sd":
			return nil, fmt.Errorf("disk %s: %w: whether libvirt counts a disk of the bus sd depends on its version", clip(d.Target), ErrUnsupported)
		}
		// Behind the last one of its bus, but before all with a higher index.
		at := -1
		for i, other := range slices.Backward(order) {
			if other.Bus != d.Bus {
				continue
			}
			if n, _ := diskIndex(other.Target); n > index || at < 0 {
				at = i
				if n <= index {
					at = i + 1
				}
			}
		}
		if at < 0 {
			at = len(order)
		}
		order = slices.Insert(order, at, d)
	}
	return order, nil
}

// diskIndex is the number that a target's letters stand for: vda is 0, vdz 25,
// vdaa 26. Digits at the end, a partition, do not count (virDiskNameParse).
func diskIndex(target string) (int, bool) {
	for _, prefix := range []string{"fd", "hd", "vd", "sd", "xvd", "ubd"} {
		letters, ok := strings.CutPrefix(target, prefix)
		if !ok {
			continue
		}
		letters = strings.TrimRight(letters, "0123456789")
		index := -1
		for _, c := range []byte(letters) {
			if c < 'a' || c > 'z' || len(letters) > 5 {
				return 0, false
			}
			index = (index+1)*26 + int(c-'a')
		}
		return index, letters != ""
	}
	return 0, false
}

// formatNode names the block node that stands for the image with that number:
// its format's, or where raw images have none, the one of their storage.
func formatNode(number int, format, rawNode string) (string, error) {
	if or(format, "raw") != "raw" {
		return "libvirt-" + strconv.Itoa(number) + "-format", nil
	}
	if rawNode != RawNodeFormat && rawNode != RawNodeStorage {
		return "", fmt.Errorf("%w: the first replica is raw, and libvirt and QEMU of this host decide what its block node is called", ErrUnsupported)
	}
	return "libvirt-" + strconv.Itoa(number) + "-" + rawNode, nil
}

// What the block node of a raw image is called, after its number.
const (
	RawNodeFormat  = "format"
	RawNodeStorage = "storage"
)

// RawNode tells which of the two it is for a libvirt and a QEMU, of versions as
// libvirt writes them (9002000 is 9.2.0). libvirt leaves the raw format out
// when QEMU's block jobs can name a protocol node in its place
// (backing-mask-protocol, QEMU 9.0): 9.0 never does, 11.3 does
// (qemuBlockStorageSourceNeedsFormatLayer), and 10.1 is taken to be the first.
// With a wrong name QEMU does not start, since there is no such node.
func RawNode(libvirt, qemu int) string {
	if libvirt >= 10_001_000 && qemu >= 9_000_000 {
		return RawNodeStorage
	}
	return RawNodeFormat
}
