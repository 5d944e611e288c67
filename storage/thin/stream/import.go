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
)

// Host is what an import needs of the host that it runs on, a member of the cluster
// that gets the volume.
type Host interface {
	Create(ctx context.Context, id uuid.UUID, name string, bytes uint64) error
	// Attach returns the device's path.
	Attach(ctx context.Context, name string) (string, error)
	Detach(ctx context.Context, name string) error
	Delete(ctx context.Context, name string) error
	// Reserve has the pool have so many bytes free, or is failure.NoSpace: nobody
	// waits with a volume that is half full.
	Reserve(ctx context.Context, bytes uint64) error
	// Find tells the UUID of a volume; ok is false if there is none of this name.
	Find(ctx context.Context, name string) (id uuid.UUID, ok bool, err error)
}

// Importer makes volumes of what comes from elsewhere: a new volume is attached to
// this host, filled, and detached. Notes is a directory of this host's state, in
// which a volume is noted before it is made until it is complete: one that a crash
// left half full is deleted by the next import of its name.
type Importer struct {
	Host  Host
	Notes string
}

// note is what is noted of a volume that is being filled.
type note struct {
	Volume uuid.UUID `json:"volume"`
}

// Import makes a volume of a size in bytes. fill writes its contents, of which need
// bytes are not zeros, to the device, and says whether they may be relied on. When
// it fails, nothing is left of the volume.
func (i Importer) Import(ctx context.Context, name string, size, need uint64, fill func(io.WriterAt) error) error {
	if err := i.clear(ctx, name); err != nil {
		return err
	}
	if _, there, err := i.Host.Find(ctx, name); err != nil || there {
		if err == nil {
			err = failure.New(failure.Conflict, "there is a volume of this name already")
			err = failure.Hint(err, "import it by another: `diskhook thin import --name NAME`")
		}
		return fmt.Errorf("volume %s: %w", name, err)
	}
	if err := i.Host.Reserve(ctx, need); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	id := uuid.New()
	if err := i.note(name, id); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	if err := i.fill(ctx, id, name, size, fill); err != nil {
		// Also after ctx has ended: nobody wants what is there.
		return errors.Join(fmt.Errorf("volume %s: %w", name, err), i.clear(context.WithoutCancel(ctx), name))
	}
	// Before it is detached: from then on somebody may write to it, and no later
	// import may take it for half full.
	if err := atomicfile.Remove(i.notePath(name)); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	if err := failpoint.Hit("thin.import.complete"); err != nil {
		return err
	}
	if err := i.Host.Detach(ctx, name); err != nil {
		err = fmt.Errorf("volume %s: it is complete, and still attached to this host: %w", name, err)
		return failure.Hint(err, "run `diskhook thin detach %s`", name)
	}
	return nil
}

func (i Importer) fill(ctx context.Context, id uuid.UUID, name string, size uint64, fill func(io.WriterAt) error) error {
	if err := i.Host.Create(ctx, id, name, size); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.import.created"); err != nil {
		return err
	}
	path, err := i.Host.Attach(ctx, name)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("thin.import.attached"); err != nil {
		return err
	}
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return failure.Denied(err)
	}
	err = fill(device)
	if err == nil {
		err = failure.Full(device.Sync())
	}
	if err = errors.Join(err, device.Close()); err != nil {
		return err
	}
	return failpoint.Hit("thin.import.filled")
}

func (i Importer) notePath(name string) string { return filepath.Join(i.Notes, name+".json") }

func (i Importer) note(name string, id uuid.UUID) error {
	if err := atomicfile.MkdirAll(i.Notes, 0o700); err != nil {
		return failure.Denied(err)
	}
	return failure.Denied(atomicfile.WriteJSON(i.notePath(name), note{id}, 0o600))
}

// clear deletes a volume that an import left half full. Only one that has the UUID
// of the note is: of another somebody made that name his since.
func (i Importer) clear(ctx context.Context, name string) error {
	b, err := os.ReadFile(i.notePath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var n note
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil {
		err = failure.New(failure.Problems, "volume %s: note of an unfinished import: %w", name, failure.Denied(err))
		return failure.Hint(err, "if the volume is there and not whole, run `diskhook thin detach %s` and `diskhook thin delete %s`; then remove %s", name, name, i.notePath(name))
	}
	id, there, err := i.Host.Find(ctx, name)
	if err == nil && there && id == n.Volume {
		err = i.Host.Detach(ctx, name)
		if err == nil {
			err = i.Host.Delete(ctx, name)
		}
	}
	if err != nil {
		err = fmt.Errorf("volume %s: take away what an unfinished import left: %w", name, err)
		return failure.Hint(err, "run the import again, which begins with that")
	}
	return atomicfile.Remove(i.notePath(name))
}
