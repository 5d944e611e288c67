// SPDX-License-Identifier: Apache-2.0

// Package format says what a storage repository needs of the storage below it:
// small documents that are replaced as a whole, volumes of data, and locks.
//
// A format is one implementation, localfs-1.0 for instance. The repository's
// meaning (images, plans, fixes) is in package repository and the same for all;
// a format knows of none of it. Tests: formattest has what each has to do.
//
// Every method that takes a context may hang as long as the storage does; package
// repository abandons it then (command.Abandon). Methods are safe for concurrent use.
package format

import (
	"context"
	"errors"
	"os"
	"time"

	"diskhook/storage/failure"
)

// ErrElsewhere says that another host has the volume open: as long as it has, no other one may
// write it, whether the process that opened it lives or not.
var ErrElsewhere = failure.Wrap(failure.Conflict, errors.New("another host has it open"))

// ErrNoFile says that in a document's place is something that no format put there, a
// directory, a link or a pipe: for who reads the document it is damaged.
var ErrNoFile = failure.Wrap(failure.Problems, errors.New("it is no regular file"))

// Format is a way to keep a repository on storage.
type Format interface {
	// Name is what connectStorageRepository calls it, with its version.
	Name() string
	// Create makes an empty repository's place; one that is there already, or
	// begun, is fine, and anything else at its place a failure.Conflict.
	Create(ctx context.Context, parameters map[string]string) error
	// CanCreate refuses what Create would refuse now, and makes nothing.
	CanCreate(ctx context.Context, parameters map[string]string) error
	// Open finds the place. Wrong parameters are a failure.Usage, a place that
	// is not there a failure.NotFound, one that may not be used from here (no lock
	// that works) a failure.Precondition.
	Open(ctx context.Context, parameters map[string]string) (Place, error)
}

// Kind is a kind of documents.
type Kind string

// The kinds of documents.
const (
	Repository Kind = "repository" // one, with the id Descriptor
	Image      Kind = "image"
	Volume     Kind = "volume"
	Operation  Kind = "operation" // of the image of the same id
	Pin        Kind = "pin"       // of the image of the same id
	Stop       Kind = "stop"      // asks who works on the image of that id to stop
	Aside      Kind = "aside"     // what was found in the place of the image of that id; nobody reads it
)

// Kinds are all of them but Repository.
var Kinds = [...]Kind{Image, Volume, Operation, Pin, Stop, Aside}

// Descriptor is the id of the one document that says what repository this is.
const Descriptor = "repo"

// MaxDocument bounds a document in bytes: it and its header fit a block of 4096,
// which formats on shared block devices write at once.
const MaxDocument = 4000

// Place is an open repository's storage.
type Place interface {
	Documents
	Locks
	Volumes
	// Capacity is of the whole storage.
	Capacity(ctx context.Context) (Capacity, error)
	// Capabilities do not change while the place is open.
	Capabilities() Capabilities
	// Close lets go of the place. Locks are released before.
	Close() error
	// Leave is Close by a host that does not use the place any more: nothing stays active
	// on it that only documents and locks need. What another process has open does.
	Leave(ctx context.Context) error
}

// Documents are read, and replaced as a whole. IDs are UUIDs.
type Documents interface {
	// Read fails with fs.ErrNotExist when there is none, and with ErrNoFile, at once, when
	// something else is there. It sees the newest version that any host wrote.
	Read(ctx context.Context, kind Kind, id string) ([]byte, error)
	// Write replaces it or makes it. When it returns nil the document is durable;
	// when it fails the old one or the new one is there, whole. Right before the new
	// one can be seen it asks the fence, and changes nothing if that refuses.
	Write(ctx context.Context, kind Kind, id string, data []byte, fence Fence) error
	// WriteReserved is Write that may also take what is kept for when there is no room
	// left: for who is about to free some.
	WriteReserved(ctx context.Context, kind Kind, id string, data []byte, fence Fence) error
	// Remove is durable. That there is none is fine. It asks the fence as Write does.
	Remove(ctx context.Context, kind Kind, id string, fence Fence) error
	// List names those there are, in order, but for what may be in wrecks.
	List(ctx context.Context, kind Kind) ([]string, error)
	// Wrecks are where a document was that cannot be read, and nobody can tell which. As
	// long as there are some nothing that may be there is said not to exist: Read, Write and
	// Remove of that are a failure.Problems. Where a document's place has its name there are
	// none, and Read returns what is there.
	Wrecks(ctx context.Context) ([]Wreck, error)
	// ClearWreck has it be nothing any more, durably; one that is not as it was is an
	// fs.ErrNotExist. It asks the fence as Write does.
	ClearWreck(ctx context.Context, id string, fence Fence) error
}

// Wreck is what is left of a document.
type Wreck struct {
	ID   string // a UUID, the same as long as what is there does not change
	Data []byte // as much of it as a document has room for
	Err  error  // what is wrong, a failure.Problems
}

// Fence says whether a change still may be made: whoever asked for it has the
// locks that it takes and waits for it. A host that was asleep in the middle of a
// change, or whose storage was, finds out by it, and overwrites nothing. It does
// not wait.
type Fence func() error

// Locks exclude everybody who has the repository connected, on any host. Names
// are of [a-z0-9-].
type Locks interface {
	// Lock waits until ctx ends; it fails with lock.ErrHeld then.
	Lock(ctx context.Context, name string) (Lock, error)
	// TryLock does not wait.
	TryLock(ctx context.Context, name string) (Lock, error)
	// Held says whether somebody has the lock right now.
	Held(ctx context.Context, name string) (bool, error)
}

// Lock is a held lock.
type Lock interface {
	// Check fails once the lock may be somebody else's. It does not wait.
	Check() error
	// TakenOver says that the last holder was not seen to end: it may wake up
	// and go on writing to what it had open.
	TakenOver() bool
	// File is inherited by children that write, so that the lock lives as long
	// as they do; nil where that does not work.
	File() *os.File
	// Release gives it up.
	Release()
	// Discard is Release of a lock that is not needed soon again, and that no
	// child has: nothing of it needs to stay.
	Discard()
}

// Volumes hold data. An id is a UUID and a kind one of imagecheck's formats; what
// is in a volume is the caller's business.
type Volumes interface {
	// Make makes room for a volume of so many bytes and names it; one that is there
	// is left alone if it is large enough. fresh says that the whole of it reads
	// zero. ErrElsewhere.
	Make(ctx context.Context, id, kind string, bytes int64) (fresh bool, err error)
	// Fits fails with a failure.Precondition where no raw volume can have so many bytes,
	// whatever room there is. It leaves nothing behind.
	Fits(ctx context.Context, bytes int64) error
	// Path is where the volume is while it is open.
	Path(id, kind string) string
	// Backing is what an overlay's header has to say of a volume of the same
	// repository, so that every host finds it.
	Backing(id, kind string) string
	// OpenVolume makes Path usable on this host, CloseVolume ends that. They do
	// not count: the caller closes what nobody uses any more. What another process of
	// this host has opened, and not closed, stays; one that ended has not. ErrElsewhere.
	OpenVolume(ctx context.Context, id, kind string, write bool) error
	CloseVolume(ctx context.Context, id, kind string) error
	// Opened lists what is usable on this host only because somebody opened it.
	Opened(ctx context.Context) ([]Data, error)
	// Grow makes a raw volume read zero from its end up to bytes, and one
	// of another kind able to hold so many. Where new room is Stale it writes zeros,
	// for as long as that takes.
	Grow(ctx context.Context, id, kind string, bytes int64) error
	// Flush makes the volume's content and name durable.
	Flush(ctx context.Context, id, kind string) error
	// Allocated is how many bytes of storage it takes.
	Allocated(ctx context.Context, id, kind string) (int64, error)
	// Erase overwrites a volume that nobody needs any more, gives its blocks back, or
	// both, durably and for as long as that takes; Delete follows. That there is none is
	// fine; one that somebody has open is a failure.Conflict, and is not touched. progress
	// hears of the bytes that are overwritten.
	Erase(ctx context.Context, id, kind string, how Erasure, progress func(done, total int64)) error
	// Delete frees it, durably. That there is none is fine; one that somebody
	// has open is a failure.Conflict.
	Delete(ctx context.Context, id, kind string) error
	// Data lists the volumes that take up storage.
	Data(ctx context.Context) ([]Data, error)
	// Cursor is the file that keeps how far a copy to the volume is.
	Cursor(id string) string
}

// Erasure is what becomes of a volume's content before the volume is deleted.
type Erasure struct {
	// Zero overwrites all of it, so that it cannot be read from the storage.
	Zero bool `json:"zero,omitempty"`
	// Discard tells the storage below that its blocks are not needed, if that listens.
	Discard bool `json:"discard,omitempty"`
}

// Data is what is known of a volume without looking at it.
type Data struct{ ID, Kind string }

// Capacity is in bytes.
type Capacity struct {
	Total     int64 `json:"total"`
	Available int64 `json:"available"` // for us
}

// Capabilities are what a format can do on this host with this storage.
type Capabilities struct {
	Format string `json:"format"`
	// Clones: a copy of a raw volume within the repository shares its blocks.
	Clones bool `json:"clones"`
	// Sparse: a raw volume takes only the storage that is written.
	Sparse bool `json:"sparse"`
	// Shared: other hosts may have the repository connected as well.
	Shared bool `json:"shared"`
	// Stale: a new volume holds what an earlier owner left on the disk, and takes
	// all its room at once. Who fills one writes zeros, too.
	Stale bool `json:"stale"`
	// Granule is what volumes are multiples of, in bytes, if they cannot have the size
	// of any image; else 0. A guest sees all of its volume, so that a
	// virtual disk has such a size, too.
	Granule int64 `json:"granule,omitempty"`
	// Takeover is how long it takes at most to see that a lock's holder on another host
	// has died. Nobody who waits for less ever gets such a lock.
	Takeover time.Duration `json:"-"`
	// ReadOnly: this host may make and change nothing.
	ReadOnly bool `json:"read_only"`
}
