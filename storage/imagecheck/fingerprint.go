// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// rawSample is how much of a raw layer's beginning goes into a fingerprint: a
// partition table, or the label of what is on it.
const rawSample = 4096

// fingerprint identifies what was read. It has to be the same after a reboot
// while nothing was written, so it holds no device numbers: those of NFS
// mounts and device-mapper change.
//
// A file counts with inode, size and modification time. A block device has
// none of that but the size, so for qcow2 on one the L1 table counts too,
// which changes with nearly every new cluster group; a write into space that
// was allocated long ago goes unnoticed there, as in a raw device.
func fingerprint(images []*image, headers []*Header) (string, error) {
	sum := sha256.New()
	for i, img := range images {
		fmt.Fprintf(sum, "%s block=%t size=%d\n", img.Format, img.block, img.size)
		if !img.block {
			fmt.Fprintf(sum, "inode=%d mtime=%d.%09d\n", img.stat.Ino, img.stat.Mtim.Sec, img.stat.Mtim.Nsec)
		}
		h := headers[i]
		parts := []io.Reader{io.NewSectionReader(img.file, 0, rawSample)}
		if h != nil {
			_, _ = sum.Write(h.area)
			parts = nil
			if img.block {
				parts = append(parts, io.NewSectionReader(img.file, h.l1Offset, h.l1Bytes))
			}
		}
		for _, part := range parts {
			if _, err := io.Copy(sum, part); err != nil && !errors.Is(err, io.EOF) {
				return "", fmt.Errorf("%s: %w", img.Path, err)
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
