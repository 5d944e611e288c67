// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// sector is the size of a disk's sectors in bytes.
const sector = 512

// imageSize is that of every guest's disk, in bytes.
const imageSize = 2 << 20

// What guests are made of, in 16-bit code.
var (
	readSector  = []byte{0xb4, 0x42, 0xcd, 0x13}       // mov ah, 0x42 (extended read); int 0x13
	writeSector = []byte{0xb8, 0x00, 0x43, 0xcd, 0x13} // mov ax, 0x4300 (extended write); int 0x13
	countWord   = []byte{0xff, 0x06, 0x00, 0x7e}       // inc word [0x7e00]
	say         = []byte{0xba, 0xf8, 0x03, 0xee}       // mov dx, 0x3f8; out dx, al
	idle        = []byte{0xf4, 0xeb, 0xfd}             // idle: hlt; jmp idle
)

// guest is a boot sector, which the BIOS loads at 0x7c00 with the drive in DL. SI
// is at a disk address packet: one sector at 0000:7e00, the disk's second one.
func guest(code ...[]byte) []byte {
	const packet = 0x60 // where it lies
	begin := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0xbe, packet, 0x7c, // mov si, packet
	}
	image := make([]byte, sector)
	copy(image[:packet], slices.Concat(begin, slices.Concat(code...)))
	copy(image[packet:], []byte{0x10, 0, 1, 0, 0x00, 0x7e, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	image[510], image[511] = 0x55, 0xaa
	return image
}

// counter is the guest of most tests: at each boot it adds one to the first byte
// of its disk's second sector, writes that sector back and says the new number,
// as a digit, on the first serial line. So the number is how often a guest has
// run on this disk, and a guest that is shown older data says a number again.
func counter(powerOff bool) []byte {
	off := []byte{
		0xba, 0x04, 0x06, // mov dx, 0x604 (ACPI, PM1a control)
		0xb8, 0x00, 0x20, // mov ax, 0x2000 (sleep: off)
		0xef, // out dx, ax
	}
	if !powerOff {
		off = nil
	}
	return guest(readSector, []byte{
		0x72, 0x12, // jc failed
		0xfe, 0x06, 0x00, 0x7e, // inc byte [0x7e00]
	}, writeSector, []byte{
		0x72, 0x07, // jc failed
		0xa0, 0x00, 0x7e, // mov al, [0x7e00]
		0x04, '0', // add al, '0'
		0xeb, 0x02, // jmp say
		0xb0, 'E', // failed: mov al, 'E'
	}, say, off, idle)
}

// tireless is a disk whose guest does its work again and again until a request
// fails; then it says E.
func tireless(work ...[]byte) []byte {
	again := slices.Concat(work...)
	image := diskImage(false)
	copy(image, guest(again, []byte{
		0x73, byte(-2 - len(again)), // jnc again
		0xb0, 'E', // mov al, 'E'
	}, say, idle))
	return image
}

// diskImage is a disk with the guest in its first sector and a pattern in all
// others but the second, which says that no guest has run yet.
func diskImage(powerOff bool) []byte {
	image := make([]byte, imageSize)
	for i := range image {
		image[i] = byte(i>>9) ^ byte(i) | 1
	}
	copy(image, counter(powerOff))
	clear(image[sector : 2*sector])
	return image
}

// after is the image after guests have run on it n times.
func after(image []byte, n byte) []byte {
	later := append([]byte{}, image...)
	later[sector] = n
	return later
}

// writeImage writes a raw image.
func writeImage(t *testing.T, path string, image []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, image, 0o644); err != nil {
		t.Fatal(err)
	}
}

// chain makes a qcow2 chain of three layers in dir whose content is image: the
// base has its first half and other data behind it, the layer above has the
// third quarter, the top the last. It returns the path of the top.
func chain(t *testing.T, dir string, image []byte) string {
	t.Helper()
	const half, quarter = imageSize / 2, imageSize / 4
	base := make([]byte, imageSize)
	for i := range base {
		base[i] = 0xba
	}
	copy(base, image[:half])
	path := func(name string) string { return filepath.Join(dir, name) }
	writeImage(t, path("base.raw"), base)
	lower, format := "base.raw", "raw"
	for i, name := range []string{"middle.qcow2", "top.qcow2"} {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", path(lower), "-F", format, path(name))
		part := path("part")
		from := half + i*quarter
		writeImage(t, part, image[from:from+quarter])
		run(t, "qemu-io", "-f", "qcow2", "-c", "write -s "+part+" "+strconv.Itoa(from)+" "+strconv.Itoa(quarter), path(name))
		if err := os.Remove(part); err != nil {
			t.Fatal(err)
		}
		lower, format = name, "qcow2"
	}
	return path(lower)
}

// digest is the content of all files below the paths, and their names.
func digest(t *testing.T, paths ...string) string {
	t.Helper()
	sum := sha256.New()
	for _, top := range paths {
		err := filepath.WalkDir(top, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			sum.Write([]byte(path + "\x00"))
			if e.Type()&os.ModeSymlink != 0 {
				to, err := os.Readlink(path)
				sum.Write([]byte(to))
				return err
			}
			content, err := os.ReadFile(path)
			sum.Write(content)
			return err
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}
