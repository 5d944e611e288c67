// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
)

// Create makes a file or block device that is there a qcow2 image of size bytes
// that reads zero. It does not flush. locks are inherited, so that they live as
// long as the writing.
//
//	create -f qcow2 -o cluster_size=N -- PATH SIZE
func (q *QemuImg) Create(ctx context.Context, path string, size int64, locks ...*os.File) error {
	if err := plain(path); err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", imagecheck.QCOW2, "-o", fmt.Sprintf("cluster_size=%d", clusterBytes), "--", path, strconv.FormatInt(size, 10)}
	_, err := q.Run.Run(ctx, command.Cmd{Name: program, Args: args, User: q.User, Limits: copyLimits, Timeout: lookTimeout, Files: locks})
	return classify(path, "make an image", err)
}
