// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"diskhook/storage/host"
)

// ReleaseRest releases what a domain that has gone has left behind: the copies
// of disks that it had no longer when it ended, as they were unplugged while it
// ran. They are known by their receipts. Their links go, and volumes that are
// not open are deactivated. It gives no copy up, whatever on-stop says: a disk
// that was taken out was not stopped.
func (s *Service) ReleaseRest(ctx context.Context, domain string) error {
	receipts, err := Receipts(s.Layout, domain)
	errs := []error{err}
	disks := make([]Disk, len(receipts))
	for i, r := range receipts {
		disks[i] = r.Disk()
	}
	copies, err := s.find(ctx, disks)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for i, d := range disks {
		links := linksTo(s.Layout, d)
		if c := copies[i]; len(links) > 0 || c.State == Ready && c.Active && !c.file() {
			errs = append(errs, s.letGo(ctx, d, links))
		}
	}
	_ = os.Remove(StablePath(s.Layout, domain, "")) // the directory, if it is empty
	return errors.Join(errs...)
}

// Abandon undoes the first fulfil of copies of oVirt's disks, when the start
// that it was for is refused: no guest has used them, so they go, even if
// memory was saved, which was with other disks. Every other copy of the domain
// is left alone.
func (s *Service) Abandon(ctx context.Context, domain string) error {
	receipts, err := Receipts(s.Layout, domain)
	errs := []error{err}
	for _, r := range receipts {
		if r.Untried {
			errs = append(errs, s.abandon(ctx, domain, r.Key()))
		}
	}
	_ = os.Remove(StablePath(s.Layout, domain, "")) // the directory, if it is empty
	return errors.Join(errs...)
}

func (s *Service) abandon(ctx context.Context, domain, key string) error {
	l, err := s.lockOne(ctx, domain, key)
	if err != nil {
		return err
	}
	defer l.Release()
	r, err := ReadReceipt(s.Layout, domain, key)
	if err != nil || r == nil || !r.Untried {
		return err
	}
	if err := s.giveUp(ctx, *r); err != nil {
		return err
	}
	s.removeStatus(domain, key)
	return nil
}

// letGo looks at one copy again, under its lock.
func (s *Service) letGo(ctx context.Context, d Disk, links []string) error {
	l, err := s.lockOne(ctx, d.Domain, d.Key())
	if err != nil {
		return err
	}
	defer l.Release()
	found, err := s.find(ctx, []Disk{d})
	if err != nil {
		return err
	}
	if c := found[0]; c.State == Ready && c.Active && c.closed() {
		if err := s.backend(d).deactivate(ctx, found); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	for _, path := range links {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// linksTo are the links of the domain that lead to the copy of d: Engine may
// have given the disk more than one target since the host was booted.
func linksTo(l host.Layout, d Disk) []string {
	var links []string
	dir := StablePath(l, d.Domain, "")
	entries, _ := os.ReadDir(dir) // none, where nothing was fulfilled
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); leadsTo(path, d) {
			links = append(links, path)
		}
	}
	return links
}

// leadsTo says whether a link is to the copy of d, which need not be there. No
// name of a copy has a dot in it; a file's ending has.
func leadsTo(link string, d Disk) bool {
	to, err := os.Readlink(link)
	name, _, _ := strings.Cut(filepath.Base(to), ".")
	return err == nil && name == d.CopyName()
}

// Linked says whether d was fulfilled in this boot and not released since, by
// the receipt of its copy.
func (s *Service) Linked(d Disk) (bool, error) {
	r, err := ReadReceipt(s.Layout, d.Domain, d.Key())
	return r != nil && leadsTo(link(s.Layout, d), r.Disk()), err
}

// linked is Linked for who has the receipt.
func (s *Service) linked(r Receipt) bool { return leadsTo(link(s.Layout, r.Disk()), r.Disk()) }
