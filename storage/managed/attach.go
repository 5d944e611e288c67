// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Request asks for a volume.
type Request struct {
	ID string
	// Connection is the connection_info; nil is that of the definition. Only
	// a definition may name files with secrets.
	Connection json.RawMessage
	// Domain is the UUID of the domain that is to have the volume to itself.
	// Without one nobody claims it, and a volume that is attached already is
	// an error of code AlreadyAttached, as in VDSM.
	Domain string
	// running says that the domain runs and has the volume: it may be open, and
	// what there is of it stays whatever happens.
	running bool
}

// Attached is the answer to a request, with VDSM's names.
type Attached struct {
	ID         string          `json:"vol_id"`
	Path       string          `json:"path"`
	Attachment json.RawMessage `json:"attachment"`
	// ManagedPath is the link that stays the same.
	ManagedPath string `json:"managed_path"`
	// Block says that it is a block device; else it is a file.
	Block bool `json:"-"`
}

// Masked is the answer without what a program may have put into it that is a
// secret.
func (a Attached) Masked() Attached {
	a.Attachment = connector.Redact(a.Attachment)
	return a
}

// Attach connects a volume and returns where it is. After an error nothing of
// it is connected, unless the error says so.
func (s *Service) Attach(ctx context.Context, r Request) (Attached, error) {
	if err := CheckID(r.ID); err != nil {
		return Attached{}, err
	}
	a, err := s.attach(ctx, r)
	if err != nil {
		return Attached{}, fmt.Errorf("volume %s: %w", r.ID, err)
	}
	return a, nil
}

// attaching is one call of Attach.
type attaching struct {
	*Service
	Request
	info      connector.Info
	connector connector.Connector
	boot      string
	others    []connector.Connector
	// dead says that it is attached, and that none of its paths works.
	dead bool
}

// attaching checks a request and touches nothing.
func (s *Service) attaching(r Request) (*attaching, error) {
	if r.Domain != "" && !host.IsUUID(r.Domain) {
		return nil, failure.New(failure.Usage, "domain %q: not a uuid", r.Domain)
	}
	a := &attaching{Service: s, Request: r}
	var err error
	if a.info, err = s.connection(r); err != nil {
		return nil, err
	}
	if a.connector, err = s.Host.Open(r.ID, a.info); err != nil {
		return nil, err
	}
	a.boot, err = s.Boot()
	return a, err
}

func (s *Service) attach(ctx context.Context, r Request) (Attached, error) {
	a, err := s.attaching(r)
	if err != nil {
		return Attached{}, err
	}
	unlock, err := s.lockVolume(ctx, r.ID)
	if err != nil {
		return Attached{}, err
	}
	defer unlock()
	row, err := s.row(ctx, r.ID)
	if err != nil {
		return Attached{}, err
	}
	if row != nil {
		if there, err := a.resume(ctx, *row); err != nil || there {
			return a.answer(row.Path, row.Attachment), err
		}
	}
	unshare, err := s.lockShared(ctx, a.connector)
	if err != nil {
		return Attached{}, err
	}
	defer unshare()
	if err := a.ready(ctx); err != nil {
		return Attached{}, err
	}
	if !a.dead { // its row is there, and stays
		if err := a.record(ctx); err != nil {
			return Attached{}, err
		}
	}
	return a.connect(ctx)
}

// connection is what the request says, or the definition.
func (s *Service) connection(r Request) (connector.Info, error) {
	if r.Connection == nil {
		return s.definition(r.ID)
	}
	info, err := connector.ParseInfo(r.Connection)
	if err != nil {
		return info, err
	}
	if keys := info.SecretFiles(); len(keys) > 0 {
		err := failure.New(failure.Usage, "%w: %s names a file of this host, which only a definition may", connector.ErrInvalid, keys[0])
		return info, failure.Hint(err, "run `diskhook volume define --connection-info FILE %s`", r.ID)
	}
	return info, nil
}

func (a *attaching) answer(path string, attachment []byte) Attached {
	return Attached{ID: a.ID, Path: path, Attachment: attachment, ManagedPath: a.Link(a.ID), Block: a.Host.IsBlock(path)}
}

// resume looks at a row that is there. It returns true when the volume is
// attached and the domain has it; otherwise the caller connects, which
// finishes what an earlier call began, or brings back paths of which none works.
func (a *attaching) resume(ctx context.Context, row database.Volume) (bool, error) {
	if stale(row, a.boot) {
		a.Log.WarnContext(ctx, "the volume was attached in an earlier boot", "volume", a.ID)
		if !a.same(row) {
			a.sweep(ctx, row)
		}
		return false, nil
	}
	if there, err := a.there(ctx, row); err != nil || !there {
		return false, err
	}
	if err := a.unopened(ctx, outcome(row)); err != nil {
		return false, err
	}
	if err := a.update(ctx, func(tx *database.Tx) error { return a.claim(tx, false) }); err != nil {
		return false, err
	}
	a.dead = !a.Host.Works(row.Path)
	return !a.dead, a.link(a.ID, row.Path)
}

// ready refuses what could not be connected, or must not, before anything is.
func (a *attaching) ready(ctx context.Context) error {
	if err := a.Host.Ready(a.info); err != nil {
		return err
	}
	return a.unopened(ctx, connector.Attachment{})
}

// same says that the row is of the connection that is asked for.
func (a *attaching) same(row database.Volume) bool {
	known, err := connector.ParseInfo(row.Connection)
	return err == nil && known.Same(a.info)
}

// there says whether the volume is attached by its row, which is of this boot,
// and refuses to attach it where that is what was asked for.
func (a *attaching) there(ctx context.Context, row database.Volume) (bool, error) {
	if !a.same(row) {
		err := failure.New(failure.Conflict, "%w: vol_id=%s", ConnectionMismatch, a.ID)
		return false, failure.Hint(err, "run `diskhook volume detach %s` first", a.ID)
	}
	attached, err := here(ctx, row.Path)
	if err != nil || !attached {
		return false, err
	}
	if err := a.stillItself(ctx, row.Path); errors.Is(err, connector.ErrMismatch) {
		return false, failure.Hint(err, "run `diskhook volume detach %s`, then this again", a.ID)
	} else if err != nil {
		return false, err
	}
	if a.Domain == "" {
		err := failure.New(failure.Conflict, "%w: vol_id=%s path=%s attachment=%s", AlreadyAttached, a.ID, row.Path, row.Attachment)
		return false, failure.Hint(err, "use it, or run `diskhook volume detach %s`", a.ID)
	}
	return true, nil
}

// stale says that the row is of an earlier boot: what it tells of the kernel
// is no more. Of a row of VDSM's nobody knows.
func stale(row database.Volume, boot string) bool { return !foreign(row) && row.Boot != boot }

// foreign says that VDSM wrote the row, which has no boot then.
func foreign(row database.Volume) bool { return row.Boot == "" }

// sweep takes away what an earlier boot left of another connection: a record
// of a node, or a session that came up by itself. The host may have lost the
// storage since, so that this is tried, and not needed.
func (a *attaching) sweep(ctx context.Context, row database.Volume) {
	if err := a.disconnect(ctx, row); err != nil {
		a.Log.WarnContext(ctx, "what an earlier boot left of the volume stays", "volume", a.ID, "err", err)
	}
}

// record writes the intent, and the claim. Another volume with the same
// device, or another domain with this volume, is refused here, while nobody
// else can write.
func (a *attaching) record(ctx context.Context) error {
	err := a.update(ctx, func(tx *database.Tx) error {
		rows, err := tx.Volumes()
		if err != nil {
			return err
		}
		if err := a.free(rows); err != nil {
			return err
		}
		return errors.Join(a.claim(tx, true), tx.Record(a.ID, a.info.Raw(), a.boot))
	})
	if err != nil {
		return err
	}
	return failpoint.Hit("attach.recorded")
}

// connect does the work, and undoes it if any step fails.
func (a *attaching) connect(ctx context.Context) (Attached, error) {
	attachment, err := a.connector.Attach(ctx)
	if err == nil {
		err = failpoint.Hit("attach.connected")
	}
	if err == nil {
		err = a.verify(ctx, attachment.Identity)
	}
	if err == nil {
		a.Host.Settle(ctx)
	}
	if err == nil {
		err = a.finish(ctx, attachment)
	}
	if err != nil {
		return Attached{}, a.undo(ctx, attachment, err)
	}
	return a.answer(attachment.Path, attachment.JSON), nil
}

// finish writes the outcome and makes the link.
func (a *attaching) finish(ctx context.Context, attachment connector.Attachment) error {
	if err := a.update(ctx, func(tx *database.Tx) error {
		if a.Connection == nil {
			if err := tx.SetIdentity(a.identity(attachment.Identity)); err != nil {
				return err
			}
		}
		if err := errors.Join(a.alone(ctx, tx, attachment), tx.GiveUpMultipathID(attachment.MultipathID, a.boot)); err != nil {
			return err
		}
		return tx.Attached(database.Volume{ID: a.ID, Path: attachment.Path, Attachment: attachment.JSON, MultipathID: attachment.MultipathID})
	}); err != nil {
		return err
	}
	if err := failpoint.Hit("attach.noted"); err != nil {
		return err
	}
	if err := a.link(a.ID, attachment.Path); err != nil {
		return err
	}
	return failpoint.Hit("attach.linked")
}

// lookTimes is how often what was just connected is found open, a second apart,
// before somebody is taken to use it.
const lookTimes = 20

// takeAway detaches what was just connected. Whoever has it open most likely
// only looks at it, as udev does with every new device.
func (a *attaching) takeAway(ctx context.Context, was connector.Attachment) error {
	for range lookTimes {
		if err := a.connector.Detach(ctx, was, a.others); !errors.Is(err, connector.ErrInUse) {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return a.connector.Detach(ctx, was, a.others)
}

// undo takes away what was connected and forgets the volume, unless it was
// attached before. Where that fails the row stays, so that a later detach knows
// what to look for. A device that is another volume's is left to that, and a
// domain that runs keeps its claim.
func (a *attaching) undo(ctx context.Context, was connector.Attachment, cause error) error {
	if a.dead {
		return cause
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if !errors.Is(cause, errTaken) && !errors.Is(cause, database.ErrMultipathTaken) {
		if err := a.takeAway(ctx, was); err != nil {
			a.Log.ErrorContext(ctx, "what was connected could not be taken away", "volume", a.ID, "err", err)
			return failure.Hint(fmt.Errorf("%w; and what was connected stays: %w", cause, err), "run `diskhook volume detach %s`", a.ID)
		}
	}
	if a.running {
		return cause
	}
	if err := errors.Join(a.unlink(ctx, a.ID), a.update(ctx, func(tx *database.Tx) error { return tx.Forget(a.ID) })); err != nil {
		a.Log.ErrorContext(ctx, "the volume stays in the database", "volume", a.ID, "err", err)
	}
	return cause
}
