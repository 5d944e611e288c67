// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"os"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// CommitOptions say what to write down into the layer below it.
type CommitOptions struct {
	Image    string // qcow2; what its header names is opened, so look at that before
	Size     int64  // virtual size of the image, in bytes
	Progress progress.Func
	Locks    []*os.File // inherited
}

// Commit writes all that an image has into the layer right below it. The image keeps
// it as well, so what the two read as together never changes, and one that was interrupted
// is run again; but until it ends, the lower layer alone is of no use. It does not
// flush.
//
//	commit -p -d -f qcow2 -- IMAGE
func (q *QemuImg) Commit(ctx context.Context, o CommitOptions) error {
	if err := plain(o.Image); err != nil {
		return err
	}
	cmd := command.Cmd{
		Name: program, User: q.User, Limits: copyLimits, Death: q.Death, Files: o.Locks,
		Args: []string{"commit", "-p", "-d", "-f", imagecheck.QCOW2, "--", o.Image},
	}
	if o.Progress != nil {
		cmd.Stdout = &meter{total: o.Size, report: o.Progress}
	}
	_, err := q.Run.Run(ctx, cmd)
	return classify(o.Image, "write it into what it lies on", err)
}
