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

// Identity is what a fingerprint is made of, for one layer: who has noted it can
// say later in what an image differs from what it was.
type Identity struct {
	Format string `json:"format"`
	Block  bool   `json:"block,omitempty"`
	Size   int64  `json:"size"` // of the file or device, in bytes
	// Inode and Written, when its data was written last, in nanoseconds since
	// 1970, are those of a file.
	Inode   uint64 `json:"inode,omitempty"`
	Written int64  `json:"written,omitempty"`
	// Head is the digest (hex) of a qcow2 image's header, on a block device with
	// its L1 table, or of the first 4096 bytes of a raw image.
	Head string `json:"head"`
}

// fingerprint identifies what was read. It has to be the same after a reboot
// while nothing was written, so it holds no device numbers: those of NFS
// mounts and device-mapper change.
//
// A file counts with inode, size and modification time. A block device has
// none of that but the size, so for qcow2 on one the L1 table counts too,
// which changes with nearly every new cluster group; a write into space that
// was allocated long ago goes unnoticed there, as in a raw device.
func fingerprint(images []*image, headers []*Header) (string, []Identity, error) {
	sum := sha256.New()
	var all []Identity
	for i, img := range images {
		id := Identity{Format: img.Format, Block: img.block, Size: img.size}
		fmt.Fprintf(sum, "%s block=%t size=%d\n", id.Format, id.Block, id.Size)
		if !img.block {
			id.Inode, id.Written = img.stat.Ino, img.stat.Mtim.Nano()
			fmt.Fprintf(sum, "inode=%d mtime=%d.%09d\n", img.stat.Ino, img.stat.Mtim.Sec, img.stat.Mtim.Nsec)
		}
		h := headers[i]
		parts := []io.Reader{io.NewSectionReader(img.file, 0, rawSample)}
		head := sha256.New()
		both := io.MultiWriter(sum, head)
		if h != nil {
			_, _ = both.Write(h.area)
			parts = nil
			if img.block {
				parts = append(parts, io.NewSectionReader(img.file, h.l1Offset, h.l1Bytes))
			}
		}
		for _, part := range parts {
			if _, err := io.Copy(both, part); err != nil && !errors.Is(err, io.EOF) {
				return "", nil, fmt.Errorf("%s: %w", img.Path, err)
			}
		}
		id.Head = hex.EncodeToString(head.Sum(nil))
		all = append(all, id)
	}
	return hex.EncodeToString(sum.Sum(nil)), all, nil
}
