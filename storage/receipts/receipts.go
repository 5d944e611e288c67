// SPDX-License-Identifier: Apache-2.0

// Package receipts keeps the files by which a host remembers where the data of
// a domain's disks is, also of a domain that is not defined any more:
//
//	DOMAIN/KEY.json     the local copy of a disk (storage/localdisk)
//	DOMAIN/KEY.quorum   the replica set that a disk has used (hooks/bindings)
//	DOMAIN/saved        the domain has saved memory (storage/localdisk)
//
// DOMAIN is a UUID, KEY what a disk is found by again. What is in a file is up
// to who owns its kind; that it is durable, and what it means when it cannot be
// read, is the same for all. The user vdsm reads a file whose name it knows, and
// lists nothing.
package receipts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// Path is where a file of a domain is.
func Path(l host.Layout, domain, file string) string {
	return filepath.Join(l.Receipts(), domain, file)
}

// Read reads a file of a domain; nil without error when there is none. One that
// is there, but cannot be read, is a failure.Precondition: it may say that a
// guest's data is elsewhere. The error has no kind where the domain has no
// directory of receipts that anybody could see.
func Read(l host.Layout, domain, file string) ([]byte, error) {
	path := Path(l, domain, file)
	b, err := os.ReadFile(path)
	if err == nil {
		return b, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if st, gone := os.Lstat(path); gone != nil || st.Mode()&fs.ModeSymlink == 0 {
			return nil, nil
		} // else a link that leads nowhere: somebody moved the receipts
	}
	err = fmt.Errorf("receipt %w", err)
	if st, unknown := os.Stat(filepath.Dir(path)); unknown == nil && st.IsDir() {
		return nil, failure.Wrap(failure.Precondition, err)
	}
	return nil, err
}

// Write makes a file of a domain durable, and its directory.
func Write(l host.Layout, domain, file string, v any) error {
	path := Path(l, domain, file)
	for _, dir := range []string{l.State(), l.Receipts(), filepath.Dir(path)} {
		if err := atomicfile.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("receipt %s: %w", path, err)
		}
	}
	if err := atomicfile.WriteJSON(path, v, 0o644); err != nil {
		return fmt.Errorf("receipt %w", err)
	}
	return nil
}

// Remove takes a file of a domain away durably, and with the last one the
// directory. A file that is not there is no error.
func Remove(l host.Layout, domain, file string) error {
	path := Path(l, domain, file)
	if err := atomicfile.Remove(path); err != nil {
		return fmt.Errorf("receipt %w", err)
	}
	_ = os.Remove(filepath.Dir(path)) // only when it was the last
	return nil
}

// Domains lists what has a directory of receipts. Names are not checked.
func Domains(l host.Layout) ([]string, error) {
	entries, err := readDir(l.Receipts())
	var domains []string
	for _, e := range entries {
		if e.IsDir() {
			domains = append(domains, e.Name())
		}
	}
	return domains, err
}

// Keys lists the files of a domain that end in suffix, without it. Keys are not
// checked.
func Keys(l host.Layout, domain, suffix string) ([]string, error) {
	entries, err := readDir(Path(l, domain, ""))
	var keys []string
	for _, e := range entries {
		if key, is := strings.CutSuffix(e.Name(), suffix); is {
			keys = append(keys, key)
		}
	}
	return keys, err
}

// readDir is os.ReadDir for a directory that need not be there. One that cannot
// be read is an error: what is in it may be of a copy that a guest used.
func readDir(dir string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		err = failure.Wrap(failure.Precondition, fmt.Errorf("receipts: %w", err))
		return nil, failure.Hint(err, "run this as root")
	}
	return entries, nil
}
