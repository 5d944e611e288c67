// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/nbd"
	"diskhook/storage/progress"
	"diskhook/storage/qemuimg"
	"diskhook/storage/transfer"
)

// parallel is how many replicas are filled at a time: they share one source.
const parallel = 3

// fillAll brings the source of a build to all replicas.
func (s *Service) fillAll(ctx context.Context, set Set, report progress.Func, held *os.File) error {
	s.Activate(ctx, set)
	sum := newSum(report, len(set.Replicas))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	turns := make(chan struct{}, parallel)
	var pending sync.WaitGroup
	for i, r := range set.Replicas {
		pending.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if stopped(ctx) != nil {
				return
			}
			if err := s.fill(ctx, set, r, sum.part(i), held); err != nil {
				cancel(fmt.Errorf("%s: %w", r, err)) // the first one counts
			}
		})
	}
	pending.Wait()
	return stopped(ctx)
}

// fill makes one replica's image, and its content that of the intent's source.
func (s *Service) fill(ctx context.Context, set Set, r Replica, report progress.Func, held *os.File) error {
	if err := s.begin(ctx, set, r, held); err != nil {
		return err
	}
	source := set.Intent.Source
	if top := r.Top(); len(source) > 0 && top.Format == imagecheck.Raw && top.Type != NBD {
		return s.transfer(ctx, set, r, report, held)
	}
	target, err := s.openReplica(ctx, set, r, false, held)
	if err != nil {
		return err
	}
	defer target.close()
	w := newWalk(set.Size, 1)
	w.repair, w.progress = true, report
	if len(source) == 0 {
		w.add(sourceID, zeros{}, true)
	} else {
		from, err := s.openSource(ctx, source, set.Size, held)
		if err != nil {
			return err
		}
		defer from.close()
		w.add(sourceID, from, true)
	}
	w.add(r.ID, target, false)
	if err := w.over(ctx, nil); err != nil {
		return err
	}
	if err := failpoint.Hit("quorum.written"); err != nil {
		return err
	}
	return target.Flush()
}

// begin marks a replica as not filled and makes its image. Both are idempotent.
func (s *Service) begin(ctx context.Context, set Set, r Replica, held *os.File) error {
	if err := s.writeMark(ctx, set, r, Mark{Suspect: Unfilled}); err != nil {
		return err
	}
	if err := s.makeImage(ctx, set, r, held); err != nil {
		return err
	}
	return failpoint.Hit("quorum.made." + r.ID)
}

// makeImage makes an image of the set's size unless it is there. What is in it
// is of no concern: whoever fills it compares first.
func (s *Service) makeImage(ctx context.Context, set Set, r Replica, held *os.File) error {
	top := r.Top()
	if top.Type == NBD {
		return nil
	}
	if top.Type == File {
		if err := makeFile(top.Path); err != nil {
			return err
		}
	}
	if size, _, err := s.measure(ctx, r); err == nil && (size == set.Size || top.Format == imagecheck.Raw && top.Type == Block) {
		return nil
	}
	if top.Format == imagecheck.QCOW2 {
		q := qemuimg.QemuImg{Run: s.Run}
		if err := q.Create(ctx, top.Path, set.Size, held); err != nil {
			return err
		}
		return flushNode(top.Path)
	}
	if top.Type == Block {
		return nil // openReplica says what is wrong with its size
	}
	err := errors.Join(os.Truncate(top.Path, 0), os.Truncate(top.Path, set.Size))
	return failure.Full(errors.Join(err, flushNode(top.Path)))
}

// makeFile makes an empty file, unless there is one. Only its owner may read it:
// it is a disk.
func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return failure.Full(err)
	}
	return errors.Join(f.Close(), atomicfile.Sync(filepath.Dir(path)))
}

func flushNode(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return blockdev.Flush(f)
}

// transfer copies with the copy engine, which goes on where it was after a
// crash.
func (s *Service) transfer(ctx context.Context, set Set, r Replica, report progress.Func, held *os.File) error {
	if err := s.makeState(set); err != nil {
		return err
	}
	source, err := s.checker().Open(ctx, layers(set.Intent.Source))
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer source.Close()
	if source.VirtualSize != set.Size {
		err := failure.New(failure.Conflict, "the source has %d bytes now, and had %d when the build began", source.VirtualSize, set.Size)
		return failure.Hint(err, "take the set away with `diskhook quorum remove %s` and build it anew", set.Name)
	}
	engine := transfer.Engine{Run: s.Run, Log: s.Log}
	_, err = engine.Copy(ctx,
		transfer.Source{Layers: layers(set.Intent.Source), Files: source.Files, Size: set.Size, Fingerprint: source.Fingerprint},
		transfer.Target{Path: r.Top().Path, Block: r.Top().Type == Block, Zeroed: r.Top().Type == File, Size: set.Size, ID: set.UUID + "-" + r.ID},
		transfer.Options{Locks: []*os.File{held}, Cursor: s.cursor(set, r), Progress: report})
	return err
}

func (s *Service) cursor(set Set, r Replica) string {
	return filepath.Join(s.stateDir(set), r.ID+".cursor")
}

func (s *Service) removeCursor(set Set, r Replica) error {
	if err := s.makeState(set); err != nil {
		return err
	}
	return transfer.RemoveCursor(s.cursor(set, r))
}

// zeros is an image that reads zero.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func (zeros) Next(_, n int64) (nbd.Extent, error) { return nbd.Extent{Len: n, Zero: true}, nil }

func (zeros) WriteAt([]byte, int64) (int, error) { return 0, errZeros }

func (zeros) WriteZeroes(int64, int64) error { return errZeros }

var errZeros = errors.New("zeros are not written to")

// sum adds up the progress of several copies.
type sum struct {
	mu          sync.Mutex
	report      progress.Func
	done, total []int64
}

func newSum(report progress.Func, n int) *sum {
	return &sum{report: report, done: make([]int64, n), total: make([]int64, n)}
}

// part is what the copy i reports to.
func (s *sum) part(i int) progress.Func {
	return func(done, total int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.done[i], s.total[i] = done, total
		if s.report == nil {
			return
		}
		var all, of int64
		for j := range s.done {
			all, of = all+s.done[j], of+max(s.total[j], total)
		}
		s.report(all, of)
	}
}

// device is the number of a block device, else 0.
func device(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode()&os.ModeDevice != 0 {
		return st.Rdev
	}
	return 0
}
