// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// A defined volume is what it was when it was attached first: storage that
// gave its LUN to something else must not get that under the guest. A volume
// may grow. Without a definition there is nothing to compare with: each
// request of Engine's has a connection of its own.

func (a *attaching) identity(now connector.Identity) database.Identity {
	return database.Identity{Volume: a.ID, Connection: a.info.Digest(), WWN: now.WWN, Size: now.Size}
}

// verify compares what was connected with what the volume was.
func (a *attaching) verify(ctx context.Context, now connector.Identity) error {
	if a.Connection != nil {
		return nil
	}
	var was *database.Identity
	if err := a.reading(ctx, func(db *database.DB) (err error) {
		was, err = db.Identity(ctx, a.ID)
		return err
	}); err != nil {
		return err
	}
	if was == nil || was.Connection != a.info.Digest() {
		return nil
	}
	var err error
	switch {
	case was.WWN != "" && now.WWN != was.WWN:
		err = failure.New(failure.Conflict, "%w: it was %s, and is %q", connector.ErrMismatch, was.WWN, now.WWN)
	case now.Size < was.Size:
		err = failure.New(failure.Conflict, "%w: it had %d bytes, and has %d", connector.ErrMismatch, was.Size, now.Size)
	}
	return failure.Hint(err, "if the storage was changed on purpose, run `diskhook volume undefine %[1]s` and define it again", a.ID)
}

// stillItself is verify for a volume that has been attached.
func (a *attaching) stillItself(ctx context.Context, path string) error {
	if a.Connection != nil {
		return nil
	}
	now, err := command.Abandon(ctx, func() (connector.Identity, error) { return a.Host.Look(path) })
	if err != nil {
		return err
	}
	return a.verify(ctx, now)
}
