// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// Export writes what a guest would read from a set that is not served to a new
// image file, whose format is raw or qcow2. Replicas vote as they do for a
// guest; what no majority agrees on ends it. The file appears when it is
// complete and flushed.
func (s *Service) Export(ctx context.Context, name, to, format string, notify progress.Func) error {
	held, set, err := s.hold(name)
	if err != nil {
		return err
	}
	defer held.Release()
	s.Activate(ctx, set)
	d, _, err := s.Decide(ctx, set)
	if err == nil {
		err = d.Veto
	}
	if err != nil {
		return err
	}
	source, err := set.readOnly(d.Open)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(failure.New(failure.Conflict, "%s: exists", to), err)
		return failure.Hint(err, "name a file that does not exist")
	}
	if notify != nil {
		notify(0, set.Size)
	}
	partial := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".partial")
	_ = os.Remove(partial) // of an export that was killed; nobody else takes such a name
	err = s.convert(ctx, source, partial, format, held.File())
	if err == nil {
		err = failpoint.Hit("quorum.converted")
	}
	if err == nil {
		err = atomicfile.Name(partial, to)
	}
	if err != nil {
		_ = os.Remove(partial)
		return fmt.Errorf("%s: export to %s: %w", &set, to, failure.Full(err))
	}
	if notify != nil {
		notify(set.Size, set.Size)
	}
	return atomicfile.Sync(filepath.Dir(to))
}

// readOnly is the vote over the replicas as one source for qemu-img.
func (s *Set) readOnly(ids []string) (string, error) {
	var nodes []*Node
	for _, id := range ids {
		r, _ := s.Replica(id)
		n, err := s.ReplicaNode(r, Opening{ReadOnly: true})
		if err != nil {
			return "", err
		}
		nodes = append(nodes, n)
	}
	return s.Tree(nodes).Pseudo()
}

// convert ends when we are killed, and until then keeps the set's lock.
func (s *Service) convert(ctx context.Context, source, to, format string, held *os.File) error {
	_, err := s.Run.Run(ctx, command.Cmd{
		Name: "qemu-img", Args: []string{"convert", "-O", format, source, to},
		Files: []*os.File{held}, Death: syscall.SIGKILL,
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
