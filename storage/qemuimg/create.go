// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"fmt"
	"strconv"

	"diskhook/storage/imagecheck"
)

// Create makes a file or block device that is there a qcow2 image of size bytes
// that reads zero. It does not flush.
//
//	create -f qcow2 -o cluster_size=N -- PATH SIZE
func (q *QemuImg) Create(ctx context.Context, path string, size int64) error {
	return q.change(ctx, path, "make an image", "create", "-q", "-f", imagecheck.QCOW2,
		"-o", fmt.Sprintf("cluster_size=%d", clusterBytes), "--", path, strconv.FormatInt(size, 10))
}
