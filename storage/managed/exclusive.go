// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// One device is one volume, which one domain has, and nobody else has open: two
// that write to it would destroy what it holds.

// free refuses what another volume of this boot is, and notes the others.
func (a *attaching) free(rows []database.Volume) error {
	a.others = nil
	for id, other := range a.open(rows, a.ID, a.boot) {
		a.others = append(a.others, other)
		for _, taken := range other.Takes() {
			if slices.Contains(a.connector.Takes(), taken) {
				err := failure.New(failure.Conflict, "%s is volume %s on this host", taken, id)
				return failure.Hint(err, "run `diskhook volume detach %s` if it is not needed any more", id)
			}
		}
	}
	return nil
}

// open returns the connectors of the other volumes of this boot.
func (s *Service) open(rows []database.Volume, but, boot string) map[string]connector.Connector {
	all := map[string]connector.Connector{}
	for _, row := range rows {
		if row.ID == but || stale(row, boot) {
			continue
		}
		info, err := connector.ParseInfo(row.Connection)
		if err != nil {
			continue // of a type that only VDSM knows; it shares nothing with ours
		}
		if c, err := s.Host.Open(row.ID, info); err == nil {
			all[row.ID] = c
		}
	}
	return all
}

// claim gives the volume to the domain, unless another one of this boot has it.
func (a *attaching) claim(tx *database.Tx, attached bool) error {
	now, err := tx.Claim(a.ID)
	if err != nil {
		return err
	}
	if now != nil && now.Boot == a.boot {
		if now.Domain != a.Domain {
			return claimed(*now)
		}
		return nil // it keeps saying who attached it
	}
	if a.Domain == "" {
		return tx.DropClaim(a.ID)
	}
	return tx.SetClaim(database.Claim{Volume: a.ID, Domain: a.Domain, Boot: a.boot, Attached: attached})
}

func claimed(c database.Claim) error {
	err := failure.New(failure.Conflict, "domain %s has it", c.Domain)
	return failure.Hint(err, "stop that domain, or run `diskhook volume detach --domain %s %s` if it is gone", c.Domain, c.Volume)
}

// unopened refuses a volume that somebody on this host has open, whoever that
// is. Only a domain that has the volume already may be the one.
func (a *attaching) unopened(ctx context.Context, was connector.Attachment) error {
	claims, err := a.claims(ctx)
	if err != nil {
		return err
	}
	if now, ok := claims[a.ID]; a.running || ok && now.Boot == a.boot && now.Domain == a.Domain {
		return nil
	}
	// What else keeps it from being taken away is none of Attach's business.
	if _, err := a.connector.ExplainDetach(ctx, was, a.others); errors.Is(err, connector.ErrInUse) {
		return failure.Hint(err, "have that end, then run this again: a volume is for one user alone")
	}
	return nil
}

// errTaken says that the device is another volume's, which keeps it.
var errTaken = errors.New("another volume has this device")

// errSame says that another volume has the same identity, and a device of its own.
var errSame = errors.New("this is another volume, too")

// aloneTime bounds how long the paths of other volumes are looked at, while
// nobody else can write.
const aloneTime = 3 * time.Second

// alone refuses what another volume of this boot is: by whatever name, and over
// whatever connection it was found.
func (a *attaching) alone(ctx context.Context, tx *database.Tx, attachment connector.Attachment) error {
	rows, err := tx.Volumes()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, aloneTime)
	defer cancel()
	for _, row := range rows {
		if row.ID == a.ID || row.Path == "" || stale(row, a.boot) {
			continue
		}
		// Storage that does not answer now is not what answered just before.
		err, _ := command.Abandon(ctx, func() (error, error) { return a.distinct(row.Path, attachment), nil })
		if err != nil {
			err = failure.New(failure.Conflict, "%w: %s is volume %s on this host", err, attachment.Path, row.ID)
			return failure.Hint(err, "run `diskhook volume detach %s` if it is not needed any more", row.ID)
		}
	}
	return nil
}

// distinct compares an attachment with what another volume's path leads to.
// That may be another path to the same volume, where nothing makes one of both.
func (a *attaching) distinct(path string, attachment connector.Attachment) error {
	if sameNode(path, attachment.Path) {
		return errTaken
	}
	if other, err := a.Host.Look(path); err == nil && other.WWN != "" && other.WWN == attachment.Identity.WWN {
		return fmt.Errorf("%w: %s", errSame, other.WWN)
	}
	return nil
}

// sameNode says whether both paths lead to one file, or to one block device.
func sameNode(a, b string) bool {
	var x, y unix.Stat_t
	if unix.Stat(a, &x) != nil || unix.Stat(b, &y) != nil {
		return false
	}
	if x.Mode&unix.S_IFMT == unix.S_IFBLK && y.Mode&unix.S_IFMT == unix.S_IFBLK {
		return x.Rdev == y.Rdev // several nodes may be of one device
	}
	return x.Dev == y.Dev && x.Ino == y.Ino
}
