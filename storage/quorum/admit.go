// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lvm"
	"diskhook/storage/nbd"
)

// resolve finds out what a replica that somebody named is: a file that is there
// or is to be made, a device, a logical volume, an NBD export. chain says that
// the backing files belong to it.
func (s *Service) resolve(ctx context.Context, id string, l Layer, chain bool) (Replica, error) {
	r := Replica{ID: id, Chain: []Layer{l}}
	if l.Type == NBD {
		return r, nil
	}
	kind, err := s.kindOf(l.Path)
	if err != nil {
		return r, fmt.Errorf("replica %s: %w", l.Path, err)
	}
	r.Chain[0].Type = File
	if kind == blockdev.Block {
		r.Chain[0].Type = Block
		if r.Volume, err = s.volumeOf(ctx, l.Path); err != nil {
			return r, err
		}
	}
	if !chain {
		return r, nil
	}
	plain, err := s.checker().Discover(ctx, imagecheck.Layer{Path: l.Path, Format: l.Format})
	if err != nil {
		return r, err
	}
	r.Chain, err = typed(plain)
	return r, err
}

// kindOf is what lies at path, below one of [paths] roots; "" for nothing, where
// a file may be made.
func (s *Service) kindOf(path string) (blockdev.Kind, error) {
	_, err := s.Config.Paths.Allowed(path)
	if errors.Is(err, failure.NotFound) {
		if _, err := s.Config.Paths.Allowed(filepath.Dir(path)); err != nil {
			return "", err
		}
		if _, dangling := os.Lstat(path); dangling == nil || strings.HasPrefix(path, s.Layout.Dev()+"/") {
			return "", err
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	kind, err := blockdev.KindOf(path)
	if kind == blockdev.Other {
		err = failure.New(failure.Precondition, "%s: %s", path, kind)
	}
	return kind, err
}

// typed finds the types of a chain that imagecheck has accepted.
func typed(plain []imagecheck.Layer) ([]Layer, error) {
	var chain []Layer
	for _, l := range plain {
		kind, err := blockdev.KindOf(l.Path)
		if err != nil {
			return nil, err
		}
		layer := Layer{Type: File, Path: l.Path, Format: l.Format}
		if kind == blockdev.Block {
			layer.Type = Block
		}
		chain = append(chain, layer)
	}
	return chain, nil
}

// volumeOf is VG/LV where path is a logical volume's, by one of the two names
// that LVM gives it: /dev/VG/LV, and /dev/mapper/VG-LV with hyphens doubled.
// "" is a device that is none.
func (s *Service) volumeOf(ctx context.Context, path string) (string, error) {
	vg, lv, ok := volumeName(strings.TrimPrefix(path, s.Layout.Dev()+"/"))
	if !ok {
		return "", nil
	}
	report, err := s.lvm().Report(ctx, vg)
	if errors.Is(err, lvm.ErrNoVG) {
		return "", nil // another mapped device, or a folder of links
	}
	if err != nil {
		return "", err
	}
	if _, there := report.LV(lv); !there {
		return "", nil
	}
	return vg + "/" + lv, nil
}

// volumeName takes what follows /dev/ apart.
func volumeName(name string) (vg, lv string, ok bool) {
	dir, base, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(base, "/") {
		return "", "", false
	}
	if dir != "mapper" {
		return dir, base, true
	}
	const hyphen = "\x00"
	plain := strings.ReplaceAll(base, "--", hyphen)
	vg, lv, ok = strings.Cut(plain, "-")
	return strings.ReplaceAll(vg, hyphen, "-"), strings.ReplaceAll(lv, hyphen, "-"), ok && !strings.Contains(lv, "-")
}

// admit refuses replicas of a set that must not be written to: what is there
// twice, the source, in use, another set's, too small or not empty.
func (s *Service) admit(ctx context.Context, set Set, replicas []Replica, overwrite bool) error {
	taken, err := s.taken(ctx, set)
	if err != nil {
		return err
	}
	for _, r := range replicas {
		for _, l := range r.Chain {
			if who := taken.find(l, r.ID); who != "" {
				return failure.New(failure.Conflict, "%s: %s is %s", &set, l, who)
			}
		}
		if err := s.vacant(ctx, set, r, overwrite); err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
	}
	return nil
}

// places are images, with whose they are.
type places []struct {
	layer Layer
	whose string
	id    string // of the replica of this set
	node  os.FileInfo
}

func (p *places) add(l Layer, whose, id string) {
	node, err := os.Stat(l.Path)
	if l.Type == NBD || err != nil {
		node = nil
	}
	*p = append(*p, struct {
		layer Layer
		whose string
		id    string
		node  os.FileInfo
	}{l, whose, id, node})
}

// taken are all images of this set, its source and the other sets.
func (s *Service) taken(ctx context.Context, set Set) (places, error) {
	var p places
	if set.Intent != nil {
		for _, l := range set.Intent.Source {
			p.add(l, "the source", "")
		}
	}
	for _, r := range set.Replicas {
		for _, l := range r.Chain {
			p.add(l, "also replica "+r.ID, r.ID)
		}
	}
	sets, err := s.List(ctx)
	if err != nil {
		return nil, err // the one that cannot be read may have it
	}
	for _, other := range sets {
		for _, r := range other.Replicas {
			for _, l := range r.Chain {
				if other.Name != set.Name {
					p.add(l, "replica "+r.ID+" of replica set "+other.Name, "")
				}
			}
		}
	}
	return p, nil
}

// find says whose an image is, other than replica id's; "" if nobody's.
func (p places) find(l Layer, id string) string {
	node, err := os.Stat(l.Path)
	for _, other := range p {
		switch {
		case other.id == id && id != "":
		case other.layer.String() == l.String():
			return other.whose
		case err == nil && other.node != nil && l.Type != NBD && sameNode(node, other.node):
			return other.whose
		}
	}
	return ""
}

// sameNode is os.SameFile, and knows that two nodes may be one device.
func sameNode(a, b os.FileInfo) bool {
	deviceA, deviceB := device(a), device(b)
	return os.SameFile(a, b) || deviceA != 0 && deviceA == deviceB
}

// vacant refuses a replica that is in use, of another set, too small, or not
// empty and not to be overwritten.
func (s *Service) vacant(ctx context.Context, set Set, r Replica, overwrite bool) error {
	if m, err := s.readMark(ctx, set, r); err != nil && !errors.Is(err, failure.NotFound) {
		return err
	} else if m != nil && m.Set != set.UUID {
		err := failure.New(failure.Conflict, "it has the mark of another replica set, %s", m.Set)
		return failure.Hint(err, "remove that set where it is defined, or its mark if it is gone for good")
	}
	top := r.Top()
	if top.Type == NBD {
		return s.vacantExport(ctx, set, top, overwrite)
	}
	if _, err := os.Lstat(top.Path); errors.Is(err, os.ErrNotExist) && !set.Intent.Adopt {
		return nil
	}
	for _, l := range r.Chain {
		if who, used, err := blockdev.InUse(l.Path); err != nil {
			return err
		} else if used {
			err := failure.New(failure.Conflict, "%s is in use by %s", l.Path, who)
			return failure.Hint(err, "stop what uses it (`lsof %s`), then try again", l.Path)
		}
	}
	if set.Intent.Adopt {
		return s.inspect(ctx, set, r)
	}
	return vacantNode(set, top, overwrite)
}

// vacantNode looks into a file or device.
func vacantNode(set Set, top Layer, overwrite bool) error {
	f, err := os.OpenFile(top.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := blockdev.Size(f)
	if err != nil {
		return err
	}
	if top.Type == Block && size < set.Size {
		return failure.New(failure.Precondition, "it has %d bytes, the disk has %d", size, set.Size)
	}
	if overwrite || size == 0 {
		return nil
	}
	at, err := f.Seek(0, unix.SEEK_DATA)
	if top.Type == File && errors.Is(err, unix.ENXIO) {
		return nil // nothing but a hole
	}
	if top.Type == File {
		return occupied(at)
	}
	return blank(f.ReadAt, size)
}

// ends is how much of the beginning and the end of a device has to be zero for
// it to be taken as empty: file systems, partition tables, LVM, md and ZFS all
// write there.
const ends = 1 << 20

// blank reads both ends.
func blank(readAt func([]byte, int64) (int, error), size int64) error {
	b := make([]byte, min(ends, size))
	for _, off := range []int64{0, size - int64(len(b))} {
		if _, err := readAt(b, off); err != nil {
			return err
		}
		if !isZero(b) {
			return occupied(off)
		}
	}
	return nil
}

func occupied(off int64) error {
	err := failure.New(failure.Conflict, "it is not empty, there is something from byte %d on", max(0, off))
	return failure.Hint(err, "name a new file, or give up what is there with --overwrite")
}

func (s *Service) vacantExport(ctx context.Context, set Set, l Layer, overwrite bool) error {
	ctx, cancel := context.WithTimeout(ctx, s.hangTimeout(set))
	defer cancel()
	network, address := l.address()
	c, err := nbd.OpenImage(ctx, network, address, l.Export)
	if err != nil {
		return err
	}
	defer c.Close()
	switch {
	case c.ReadOnly:
		return failure.New(failure.Precondition, "its server takes no writes")
	case c.Size < set.Size:
		return failure.New(failure.Precondition, "it has %d bytes, the disk has %d", c.Size, set.Size)
	case overwrite || set.Intent.Adopt:
		return nil
	}
	return blank(c.ReadAt, c.Size)
}
