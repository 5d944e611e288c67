// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// Adopt binds a disk, on the operator's word, to the complete copy that bears
// its name: after receipts were lost, or another volume was restored in its
// place, or the sidecar of a file got lost. The copy counts as used by the guest. An open or unfinished copy, or
// one tagged for another domain, is refused.
func (s *Service) Adopt(ctx context.Context, d Disk) error {
	if err := d.Validate(); err != nil {
		return err
	}
	l, err := s.lockOne(ctx, d.Domain, d.Key())
	if err != nil {
		return err
	}
	defer l.Release()
	observed, err := s.observe(ctx, []Disk{d}, func(Disk) (bool, error) { return false, nil })
	if err != nil {
		return err
	}
	o := observed[0]
	o.Copy = s.asFileOpen(o.Copy)
	nameless := o.Copy.file() && o.Copy.UUID == "" // its sidecar is lost
	switch {
	case o.Copy.State == Absent:
		return failure.New(failure.NotFound, "%s: %s: no such copy", d, o.Copy)
	case o.Copy.State != Ready:
		err := failure.New(failure.Conflict, "%s: %s is unfinished", d, o.Copy)
		return failure.Hint(err, "remove it with `diskhook local remove %s`", d.args())
	case !nameless && o.Copy.Sick != "":
		err := failure.New(failure.Conflict, "%s: %s: %s", d, o.Copy, o.Copy.Sick)
		return failure.Hint(err, "repair it, then try again")
	case !nameless && !o.Copy.has(tagVM+d.Domain):
		return failure.New(failure.Conflict, "%s: %s is tagged %v, not %s%s", d, o.Copy, o.Copy.Tags, tagVM, d.Domain)
	case !o.Copy.closed():
		return fmt.Errorf("%s: %w", d, inUse(o.Copy))
	case o.Receipt != nil && o.Receipt.Copy == o.Copy.UUID && !o.Receipt.Discarding:
		return nil // it is adopted
	}
	if nameless {
		o.Copy.UUID = uuid.NewString()
		if o.Receipt != nil {
			o.Copy.UUID = o.Receipt.Copy
		}
	}
	return s.claim(ctx, o, imagecheck.Info{VirtualSize: o.Copy.Size})
}
