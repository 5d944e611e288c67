// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"sync"
	"time"

	"diskhook/storage/localdisk"
)

// VerbStart starts a defined domain; one that is active already is no error.
const VerbStart = "start" // DomainRequest → Facts

// startTimeout bounds the call: libvirt answers when QEMU runs, after the hooks.
const startTimeout = 10 * time.Minute

// Start starts the domain of that name or UUID, with its hooks.
func (c *Client) Start(ctx context.Context, domain string) (Facts, error) {
	return callFor[Facts](ctx, c, startTimeout, VerbStart, DomainRequest{domain})
}

// Prestaging is a domain whose copies are to be made.
type Prestaging struct {
	Name  string
	Disks []localdisk.Disk
	Start bool // the domain, once all its disks are ready
}

// PrestageAll is Prestage of several domains. At most jobs copies are made at
// the same time; whatever happens to one, the others go on. done is called
// once for each domain, by one goroutine at a time, as soon as it is through:
// err is why it is not ready, or was not started.
func (s *Service) PrestageAll(ctx context.Context, all []Prestaging, jobs int, w localdisk.Waiting, done func(i int, err error)) {
	var told sync.Mutex
	var workers sync.WaitGroup
	next, slots := make(chan int), make(chan struct{}, jobs)
	for range min(jobs, len(all)) {
		workers.Go(func() {
			for i := range next {
				err := context.Cause(ctx)
				if err == nil {
					err = s.prestageOne(ctx, all[i], slots, w)
				}
				told.Lock()
				done(i, err)
				told.Unlock()
			}
		})
	}
	for i := range all {
		next <- i
	}
	close(next)
	workers.Wait()
}

func (s *Service) prestageOne(ctx context.Context, p Prestaging, slots chan struct{}, w localdisk.Waiting) error {
	err := s.prestage(ctx, p.Disks, func(disks []localdisk.Disk) error { return s.fillEach(ctx, disks, slots, w) })
	if err != nil || !p.Start || len(p.Disks) == 0 {
		return err
	}
	_, err = s.Libvirt.Start(ctx, p.Disks[0].Domain)
	return err
}

// fillEach fills the copies of one domain side by side, as slots get free. That
// they fit together is asked first: hours of copying would be for nothing.
func (s *Service) fillEach(ctx context.Context, disks []localdisk.Disk, slots chan struct{}, w localdisk.Waiting) error {
	if err := s.Local.Room(ctx, disks); err != nil {
		return err
	}
	errs := make([]error, len(disks))
	var all sync.WaitGroup
	for i, d := range disks {
		all.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				errs[i] = s.Local.Prestage(ctx, []localdisk.Disk{d}, w)
			case <-ctx.Done():
				errs[i] = context.Cause(ctx)
			}
		})
	}
	all.Wait()
	var failed error
	for _, err := range errs {
		switch {
		case err == nil:
		case failed == nil:
			failed = err
		default:
			failed = fmt.Errorf("%w; and %w", failed, err)
		}
	}
	return failed
}
