// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"os"

	"diskhook/storage/command"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// RebaseOptions say what to lay an image over.
type RebaseOptions struct {
	Image    string // qcow2; what its header names is opened, so look at that before
	Below    imagecheck.Layer
	Size     int64 // virtual size of the image, in bytes
	Progress progress.Func
	Locks    []*os.File // inherited
}

// Rebase lays an image over another one and keeps what it reads as: it reads both
// what the image lies on and what it shall lie on, and takes in what differs. The
// header changes last, so that one that was interrupted may go on. It does not
// flush.
//
//	rebase -p -f qcow2 -b BELOW -F FORMAT -- IMAGE
func (q *QemuImg) Rebase(ctx context.Context, o RebaseOptions) error {
	if err := plain(o.Image); err != nil {
		return err
	}
	if err := named(o.Below.Path); err != nil {
		return err
	}
	cmd := command.Cmd{
		Name: program, User: q.User, Limits: copyLimits, Death: q.Death, Files: o.Locks,
		Args: []string{"rebase", "-p", "-f", imagecheck.QCOW2, "-b", o.Below.Path, "-F", o.Below.Format, "--", o.Image},
	}
	if o.Progress != nil {
		cmd.Stdout = &meter{total: o.Size, report: o.Progress}
	}
	_, err := q.Run.Run(ctx, cmd)
	return classify(o.Image, "lay it over "+o.Below.Path, err)
}
