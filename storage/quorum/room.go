// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// room refuses replicas in files whose file systems have less free than content
// bytes for each of them, before anything is written (failure.NoSpace). What an
// image that is to be overwritten takes already counts as free. Devices and
// exports have their size. Images are sparse: what the guest writes later is not
// asked for.
func (s *Service) room(ctx context.Context, set Set, replicas []Replica, content int64) error {
	type volume struct {
		dir        string // of its first replica
		ids        []string
		need, free int64
	}
	var volumes []*volume
	found := map[uint64]*volume{}
	for _, r := range replicas {
		if r.Top().Type != File {
			continue
		}
		at, err := s.space(ctx, set, r.Top().Path)
		if err != nil {
			return fmt.Errorf("%s: free space: %w", r, err)
		}
		v := found[at.device]
		if v == nil {
			v = &volume{dir: filepath.Dir(r.Top().Path), free: at.free}
			found[at.device], volumes = v, append(volumes, v)
		}
		v.ids = append(v.ids, r.ID)
		v.need += max(0, content-at.taken)
	}
	for _, v := range volumes {
		if v.need > v.free {
			err := failure.New(failure.NoSpace, "%s: %s: %d bytes are needed in %s, %d are free", &set, strings.Join(v.ids, ", "), v.need, v.dir, v.free)
			return failure.Hint(err, "make room there, or name replicas on other file systems")
		}
	}
	return nil
}

// space is what is known of the file system that a file is, or will be, in.
type space struct {
	device      uint64
	free, taken int64 // bytes; taken: by the file
}

func (s *Service) space(ctx context.Context, set Set, path string) (space, error) {
	ctx, cancel := context.WithTimeout(ctx, s.hangTimeout(set))
	defer cancel()
	return command.Abandon(ctx, func() (space, error) {
		var st unix.Stat_t
		var fs unix.Statfs_t
		at := path
		err := unix.Stat(path, &st)
		taken := st.Blocks * 512 // stat(2): whatever the block size is
		if errors.Is(err, unix.ENOENT) {
			at, taken = filepath.Dir(path), 0
			err = unix.Stat(at, &st)
		}
		if err := errors.Join(err, unix.Statfs(at, &fs)); err != nil {
			return space{}, err
		}
		return space{device: st.Dev, free: int64(fs.Bavail) * fs.Bsize, taken: taken}, nil
	})
}

// contentOf is how many bytes a copy of a chain takes at most: holes are not
// copied. Of a device nobody knows what is in it.
func (s *Service) contentOf(ctx context.Context, set Set, chain []Layer) (int64, error) {
	var sum int64
	for _, l := range chain {
		if l.Type != File {
			return set.Size, nil
		}
		at, err := s.space(ctx, set, l.Path)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", l, err)
		}
		sum += at.taken
	}
	return min(sum, set.Size), nil
}

// roomToBuild is room for the replicas that a build fills.
func (s *Service) roomToBuild(ctx context.Context, set Set) error {
	if set.Intent.Adopt {
		return nil
	}
	content, err := s.contentOf(ctx, set, set.Intent.Source) // none: zeros, which are holes
	if err != nil {
		return err
	}
	return s.room(ctx, set, set.Replicas, content)
}

// roomToReplace is room for a replica that gets what those called voters have:
// the one of them that takes the least tells how much that is at most.
func (s *Service) roomToReplace(ctx context.Context, set Set, voters []string) error {
	content := set.Size
	for _, id := range voters {
		r, _ := set.Replica(id)
		if one, err := s.contentOf(ctx, set, r.Chain); err == nil { // one that is gone by now tells nothing
			content = min(content, one)
		}
	}
	return s.room(ctx, set, []Replica{*set.Intent.With}, content)
}
