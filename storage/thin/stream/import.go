// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// Host is what an import needs of the host that it runs on, a member of the cluster
// that gets the volume.
type Host interface {
	// Settle ends what verbs before this one left undone: after it, Find knows what
	// has become of all that was asked for. A master that does not answer is a
	// failure.Temporary.
	Settle(ctx context.Context) error
	Create(ctx context.Context, id uuid.UUID, name string, bytes uint64) error
	// Attach returns the device's path.
	Attach(ctx context.Context, name string) (string, error)
	Detach(ctx context.Context, name string) error
	Delete(ctx context.Context, name string) error
	// Reserve has the pool have so many bytes free, or is failure.NoSpace: nobody
	// waits with a volume that is half full.
	Reserve(ctx context.Context, bytes uint64) error
	// Find looks for a volume; ok is false if there is none of this name.
	Find(ctx context.Context, name string) (v Found, ok bool, err error)
}

// Found is a volume as the map has it. Its generation rises when it is attached and
// when it is detached.
type Found struct {
	ID         uuid.UUID
	Generation uint64
}

// Intake is what is to be imported.
type Intake struct {
	Name string // the volume's
	// Source says of what and in which state, in words of its own: an import that
	// was killed when the volume was whole is ended by another one with the same.
	Source string
	Size   uint64 // bytes
	Need   uint64 // bytes that are not zeros
	// Fill writes the contents to the device, and says whether they may be relied on.
	Fill func(io.WriterAt) error
	// After is what is to be done once the volume is whole and detached; nil is
	// nothing. It is done again after a crash.
	After func(context.Context) error
}

// Importer makes volumes of what comes from elsewhere: a new volume is attached to
// this host, filled, and detached. Notes is a directory of this host's state, in
// which a volume is noted from before it is made until nothing more is to be done:
// one that a crash left half full is deleted by the next import of its name, one
// that was whole is detached by the next import of the same source, which then does
// what comes after.
type Importer struct {
	Host    Host
	Cluster string // the name of the one that gets the volume
	Notes   string
	Locks   string // the directory of locks
}

// note is what is noted of a volume.
type note struct {
	Volume uuid.UUID `json:"volume"`
	Source string    `json:"source,omitempty"`
	// Attached is the generation in which a volume that is whole was attached for
	// it; 0 is one that is not whole.
	Attached uint64 `json:"attached,omitempty"`
}

// whole says whether it is, and of this source.
func (n note) whole(source string) bool { return n.Attached != 0 && n.Source == source }

// Whole says whether an earlier import of this source was stopped when the volume
// was whole: then it does not matter any more what has become of the source.
func (i Importer) Whole(name, source string) (bool, error) {
	n, err := i.noted(name)
	return n.whole(source), err
}

// Available refuses a name that a volume has which no import began to make.
func (i Importer) Available(ctx context.Context, name string) error {
	n, err := i.noted(name)
	if err != nil {
		return err
	}
	found, there, err := i.Host.Find(ctx, name)
	if err == nil && there && found.ID != n.Volume {
		err = fmt.Errorf("volume %s: %w", name, errTaken())
	}
	return err
}

func errTaken() error {
	err := failure.New(failure.Conflict, "there is a volume of this name already")
	return failure.Hint(err, "import it by another: `diskhook thin import --name NAME`")
}

// Import makes a volume. When it fails before the volume is whole, nothing is left
// of it. One at a time makes a volume of a name: who comes meanwhile gets lock.ErrHeld.
func (i Importer) Import(ctx context.Context, in Intake) error {
	l, err := i.lock(in.Name)
	if err == nil {
		defer l.Release()
		err = i.bring(ctx, in)
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", in.Name, err)
	}
	return nil
}

func (i Importer) lock(name string) (*lock.Lock, error) {
	if err := atomicfile.MkdirAll(i.Locks, 0o755); err != nil {
		return nil, failure.Denied(err)
	}
	l, err := lock.Try(i.Locks, "thin-import-"+i.Cluster+"-"+name)
	if errors.Is(err, lock.ErrHeld) {
		err = failure.Hint(fmt.Errorf("it is being imported: %w", err), "wait until that is done")
	}
	return l, err
}

func (i Importer) bring(ctx context.Context, in Intake) error {
	n, err := i.clear(ctx, in.Name)
	if err != nil {
		return err
	}
	found, there, err := i.Host.Find(ctx, in.Name)
	// Somebody may have used it since, which is no reason to keep what it was moved from.
	mine := there && found.ID == n.Volume && (found.Generation <= n.Attached+1 || in.After != nil)
	switch {
	case err != nil:
		return err
	case mine && n.whole(in.Source):
		return i.deliver(ctx, in, n)
	case there:
		return errTaken()
	}
	if err := i.Host.Reserve(ctx, in.Need); err != nil {
		return err
	}
	n = note{Volume: uuid.New(), Source: in.Source}
	if err := i.note(in.Name, n); err != nil {
		return err
	}
	if n, err = i.fill(ctx, in, n); err != nil {
		// Also after ctx has ended: nobody wants what is there.
		_, failed := i.clear(context.WithoutCancel(ctx), in.Name)
		return errors.Join(err, failed)
	}
	return i.deliver(ctx, in, n)
}

// fill makes the volume and notes that it is whole.
func (i Importer) fill(ctx context.Context, in Intake, n note) (note, error) {
	if err := i.Host.Create(ctx, n.Volume, in.Name, in.Size); err != nil {
		return n, err
	}
	if err := failpoint.Hit("thin.import.created"); err != nil {
		return n, err
	}
	path, err := i.Host.Attach(ctx, in.Name)
	if err != nil {
		return n, err
	}
	if err := failpoint.Hit("thin.import.attached"); err != nil {
		return n, err
	}
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return n, failure.Denied(err)
	}
	err = in.Fill(device)
	if err == nil {
		err = failure.Full(device.Sync())
	}
	if err = errors.Join(err, device.Close()); err != nil {
		return n, err
	}
	if err := failpoint.Hit("thin.import.filled"); err != nil {
		return n, err
	}
	found, there, err := i.Host.Find(ctx, in.Name)
	if err == nil && (!there || found.ID != n.Volume) {
		err = failure.New(failure.Conflict, "somebody took it away while it was filled")
	}
	if err != nil {
		return n, err
	}
	// Before it is detached: from then on somebody may write to it, and no later
	// import may take it for half full.
	whole := n
	whole.Attached = found.Generation
	if err := i.note(in.Name, whole); err != nil {
		return n, err
	}
	return whole, nil
}

// deliver does what is left to be done with a volume that is whole.
func (i Importer) deliver(ctx context.Context, in Intake, n note) error {
	if err := failpoint.Hit("thin.import.complete"); err != nil {
		return err
	}
	// Only what the import attached: in another generation somebody else has.
	found, there, err := i.Host.Find(ctx, in.Name)
	switch {
	case err != nil:
	case !there || found.ID != n.Volume:
		return failure.New(failure.Conflict, "it was complete, and somebody has deleted it")
	case found.Generation == n.Attached:
		err = i.Host.Detach(ctx, in.Name)
	}
	if err != nil {
		err = fmt.Errorf("it is complete, and still attached to this host: %w", err)
		return failure.Hint(err, "run the import again, which ends it, or `diskhook thin detach %s`", in.Name)
	}
	if err := failpoint.Hit("thin.import.detached"); err != nil {
		return err
	}
	if in.After != nil {
		if err := in.After(ctx); err != nil {
			return fmt.Errorf("it is complete: %w", err)
		}
	}
	if err := failpoint.Hit("thin.import.moved"); err != nil {
		return err
	}
	return atomicfile.Remove(i.notePath(in.Name))
}

func (i Importer) notePath(name string) string { return filepath.Join(i.Notes, name+".json") }

func (i Importer) note(name string, n note) error {
	if err := atomicfile.MkdirAll(i.Notes, 0o700); err != nil {
		return failure.Denied(err)
	}
	return failure.Denied(atomicfile.WriteJSON(i.notePath(name), n, 0o600))
}

// noted reads the note of a volume; the zero value is that there is none.
func (i Importer) noted(name string) (note, error) {
	var n note
	b, err := os.ReadFile(i.notePath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil {
		err = failure.New(failure.Problems, "note of an unfinished import: %w", failure.Denied(err))
		return note{}, failure.Hint(err, "if the volume is there and not whole, run `diskhook thin detach %s` and `diskhook thin delete %s`; then remove %s", name, name, i.notePath(name))
	}
	return n, nil
}

// clear deletes a volume that an import left half full, and returns the note of one
// that is whole. Only one that has the UUID of the note is deleted: of another
// somebody made that name his since.
func (i Importer) clear(ctx context.Context, name string) (note, error) {
	n, err := i.noted(name)
	if err != nil || n.Volume == uuid.Nil {
		return note{}, err
	}
	// What was asked for before the crash may only now be made.
	err = i.Host.Settle(ctx)
	var found Found
	there := false
	if err == nil {
		found, there, err = i.Host.Find(ctx, name)
	}
	there = there && found.ID == n.Volume
	if there && n.Attached != 0 {
		return n, nil
	}
	if err == nil && there {
		err = i.Host.Detach(ctx, name)
		if err == nil {
			err = i.Host.Delete(ctx, name)
		}
	}
	if err != nil {
		err = fmt.Errorf("take away what an unfinished import left: %w", err)
		return note{}, failure.Hint(err, "run the import again, which begins with that")
	}
	return note{}, atomicfile.Remove(i.notePath(name))
}
