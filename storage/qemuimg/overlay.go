// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// clusterBytes is the cluster size of the images that Format makes, QEMU's
// default.
const clusterBytes = 64 << 10

// FullSize is how many bytes a qcow2 image of a virtual size takes up at most
// once all of it is written, as `qemu-img measure` says it, in whole clusters:
// header, L1, an L2 entry (8 bytes) and a refcount (2 bytes) for each cluster.
func FullSize(virtual int64) int64 {
	whole := func(bytes int64) int64 { return (bytes + clusterBytes - 1) / clusterBytes }
	data := whole(virtual)
	l2 := whole(data * 8)
	clusters := data + l2 + whole(l2*8) + 1
	// Refcount blocks count themselves and their table, which is one round more.
	refcounts := whole((clusters + whole(clusters*2) + 1) * 2)
	clusters += refcounts + whole(refcounts*8)
	// Some to spare: tables move when they grow.
	return (clusters + 16) * clusterBytes
}

// Format makes a file or block device that is there a qcow2 image of size
// bytes with nothing in it, on top of a layer, which it does not open. It does
// not flush. A layer in the image's own directory may be named by its file name
// alone, so that the header is true wherever that directory is mounted. locks are inherited,
// here and by what follows: the program may outlive us.
func (q *QemuImg) Format(ctx context.Context, path string, size int64, below imagecheck.Layer, locks ...*os.File) error {
	if err := named(below.Path); err != nil {
		return err
	}
	return q.change(ctx, locks, path, "make an image", formatArgs(path, size, below)...)
}

// ExplainFormat is the command that Format runs, quoted for a shell.
func ExplainFormat(path string, size int64, below imagecheck.Layer) []string {
	return []string{command.Cmd{Name: program, Args: formatArgs(path, size, below)}.String()}
}

// formatArgs is the grammar:
//
//	create -f qcow2 -u -b BELOW -F FORMAT -o cluster_size=N -- PATH SIZE
func formatArgs(path string, size int64, below imagecheck.Layer) []string {
	return []string{"create", "-q", "-f", imagecheck.QCOW2, "-u", "-b", below.Path, "-F", below.Format,
		"-o", fmt.Sprintf("cluster_size=%d", clusterBytes), "--", path, strconv.FormatInt(size, 10)}
}

// SetBacking writes into the header of a qcow2 image on what layer it lies.
// Nothing else of the image changes, and it does not flush.
func (q *QemuImg) SetBacking(ctx context.Context, path string, below imagecheck.Layer, locks ...*os.File) error {
	if err := named(below.Path); err != nil {
		return err
	}
	return q.change(ctx, locks, path, "set its backing file", "rebase", "-q", "-u", "-f", imagecheck.QCOW2, "-b", below.Path, "-F", below.Format, "--", path)
}

// RemoveBacking is SetBacking for an image that lies on nothing any more.
func (q *QemuImg) RemoveBacking(ctx context.Context, path string, locks ...*os.File) error {
	return q.change(ctx, locks, path, "remove its backing file", "rebase", "-q", "-u", "-f", imagecheck.QCOW2, "-b", "", "--", path)
}

// named takes a path, or the name of a file beside the image that means nothing
// else to QEMU: no option, no protocol.
func named(path string) error {
	if path != "" && path[0] != '-' && path[0] != '.' && !strings.ContainsAny(path, "/:") {
		return nil
	}
	return plain(path)
}

func plain(path string) error {
	if len(path) == 0 || path[0] != '/' {
		return failure.New(failure.Usage, "%q: not an absolute path", path)
	}
	return nil
}

func (q *QemuImg) change(ctx context.Context, locks []*os.File, path, what string, args ...string) error {
	if err := plain(path); err != nil {
		return err
	}
	_, err := q.Run.Run(ctx, command.Cmd{Name: program, Args: args, User: q.User, Limits: copyLimits, Files: locks, Timeout: lookTimeout})
	return classify(path, what, err)
}

// Resize makes a qcow2 image larger; what is added reads zero. It does not flush.
func (q *QemuImg) Resize(ctx context.Context, path string, size int64, locks ...*os.File) error {
	return q.change(ctx, locks, path, "resize", "resize", "-q", "-f", imagecheck.QCOW2, "--", path, strconv.FormatInt(size, 10))
}
