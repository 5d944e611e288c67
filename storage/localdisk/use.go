// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// use publishes one active copy. The receipt says used, durably, before the
// path appears: from then on the guest's writes may live there. made says that
// the path was not there before.
func (s *Service) use(ctx context.Context, o Observed) (placement Placement, made bool, err error) {
	for _, c := range o.nodes() {
		if err := c.awaitNode(ctx); err != nil {
			return placement, false, err
		}
	}
	if placement, err = s.checkNode(o); err != nil {
		return placement, false, err
	}
	if err := s.fit(ctx, o); err != nil {
		return placement, false, err
	}
	if err := s.markUsed(o); err != nil {
		return placement, false, err
	}
	if err := s.own(o); err != nil {
		return placement, false, err
	}
	made, err = s.publish(o)
	return placement, made, err
}

// checkNode looks at what is really there: its kind and its size.
func (s *Service) checkNode(o Observed) (Placement, error) {
	kind, err := blockdev.KindOf(o.Copy.Path)
	if err != nil {
		return Placement{}, err
	}
	f, err := os.Open(o.Copy.Path)
	if err != nil {
		return Placement{}, err
	}
	defer f.Close()
	size, err := blockdev.Size(f)
	if err != nil {
		return Placement{}, err
	}
	want := blockdev.Block
	if o.Copy.file() {
		want = blockdev.Regular
	}
	grows := o.Copy.file() && o.Copy.Format == imagecheck.QCOW2 && size > o.Copy.Size // while a guest writes to it
	if kind != want || size != o.Copy.Size && !grows {
		return Placement{}, failure.New(failure.Precondition, "%s: the node %s is a %v of %d bytes, expected a %v of %d", o.Copy, o.Copy.Path, kind, size, want, o.Copy.Size)
	}
	path := link(s.Layout, o.Disk)
	if o.Disk.OVirt() {
		path = o.Copy.Path
	}
	return Placement{Target: o.Disk.Target, Path: path, Node: o.Copy.Path, Block: !o.Copy.file(), Size: size, Copy: o.Copy.UUID}, nil
}

func (s *Service) markUsed(o Observed) error {
	r, err := ReadReceipt(s.Layout, o.Disk.Domain, o.Disk.Key())
	if err != nil {
		return err
	}
	if r == nil {
		return failure.New(failure.Conflict, "its receipt vanished meanwhile")
	}
	if r.Suspended != "" && !s.linked(*r) {
		r.Suspended = "" // of an earlier run: whoever pauses this one means it
	} else if r.Used && !r.Untried && r.OnStop == o.Disk.OnStop {
		return nil
	}
	r.Untried = !r.Used && o.Disk.OVirt()
	r.Used, r.OnStop = true, o.Disk.OnStop
	if err := r.write(s.Layout, o.Disk.Key()); err != nil {
		return err
	}
	return failpoint.Hit("fulfil.used")
}

// publish makes the stable path. A link that is right is left alone; on oVirt
// it only records that this boot has fulfilled the disk.
func (s *Service) publish(o Observed) (made bool, err error) {
	path := link(s.Layout, o.Disk)
	if to, err := os.Readlink(path); err == nil && to == o.Copy.Path {
		return false, nil
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	tmp := path + ".new"
	_ = os.Remove(tmp)
	if err := os.Symlink(o.Copy.Path, tmp); err != nil {
		return false, fmt.Errorf("link: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return false, fmt.Errorf("link: %w", err)
	}
	return true, failpoint.Hit("fulfil.link")
}
