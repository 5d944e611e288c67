// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"diskhook/storage/host"
)

// Release undoes a fulfil after a domain has stopped: the links go, volumes
// that are not open are deactivated. With on-stop=discard the copies go, too,
// but only after a stop that meant it: reason shutdown or destroyed, after our
// own fulfil in this boot, and without saved memory. Everything else keeps
// them. It may be called any number of times, also after a start that failed.
func (s *Service) Release(ctx context.Context, domain string, disks []Disk, reason string) error {
	var errs []error
	for _, d := range disks {
		if err := s.release(ctx, d, reason); err != nil {
			errs = append(errs, err)
		}
	}
	if host.IsUUID(domain) {
		_ = os.Remove(StablePath(s.Layout, domain, "")) // the directory, if it is empty
	}
	return errors.Join(errs...)
}

func (s *Service) release(ctx context.Context, d Disk, reason string) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if _, err := os.Lstat(link(s.Layout, d)); err != nil {
		return nil // not fulfilled in this boot
	}
	l, err := s.lockOne(ctx, d.Domain, d.Key())
	if err != nil {
		return err
	}
	defer l.Release()
	r, err := ReadReceipt(s.Layout, d.Domain, d.Key())
	if err != nil || r == nil {
		return err
	}
	if discards(d, reason) && r.OnStop == Discard && !Saved(s.Layout, d.Domain) {
		// Engine may have given the disk another target since it was copied.
		err := errors.Join(s.giveUp(ctx, *r), removeLink(s.Layout, d))
		if err == nil {
			s.removeStatus(r.Domain, r.Key())
		}
		return err
	}
	c, err := s.copyOf(ctx, *r)
	if err != nil {
		return err
	}
	if c.State == Ready && c.Active && c.closed() {
		if err := s.backend(r.Disk()).deactivate(ctx, []Copy{c}); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	return removeLink(s.Layout, d)
}

func removeLink(l host.Layout, d Disk) error {
	if err := os.Remove(link(l, d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// discards: the reasons are libvirt's virDomainShutoffReason, as the release
// hook gets them since 10.5.0. A save, a crash, a migration or a failed start
// is none of them, nor is an unknown one.
func discards(d Disk, reason string) bool {
	return d.OnStop == Discard && slices.Contains([]string{"shutdown", "destroyed"}, reason)
}
