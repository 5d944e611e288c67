// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/host"
)

// A copy process has only its job file until it holds the disk's lock. Who
// takes a disk's binding away must not miss it meanwhile.

// jobs are the files of the copy processes of a disk that have not begun.
func (s *Service) jobs(domain, key string) ([]string, error) {
	if err := validKey(domain, key); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.Layout.Status(), domain)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("jobs: %w", err)
	}
	var paths []string
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".job")
		if id, ofDisk := strings.CutPrefix(id, key+"."); ok && ofDisk && host.IsUUID(id) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// Starting says that a copy process of the disk was started and has not begun.
// One that says nothing for 15 seconds is taken for dead, as by its waiters.
func (s *Service) Starting(domain, key string) (bool, error) {
	paths, err := s.jobs(domain, key)
	for _, path := range paths {
		if st, gone := os.Stat(path); gone == nil && time.Since(st.ModTime()) < startTimeout {
			return true, nil
		}
	}
	return false, err
}

// Withdraw takes the jobs of a disk away. A copy process that has not begun
// finds its job gone when it holds the disk's lock, and ends; one that has
// begun is not touched.
func (s *Service) Withdraw(domain, key string) error {
	paths, err := s.jobs(domain, key)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("job %w", err)
		}
	}
	return nil
}
