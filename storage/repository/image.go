// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository/format"
)

// Kind is what an image is.
type Kind string

// The kinds of images.
const (
	Disk     Kind = "disk"     // mutable; the seed's VirtualDisk
	Snapshot Kind = "snapshot" // immutable
)

// Strategy is what is worth more where there are two ways.
type Strategy string

// The strategies. Space is the default: an image is laid over its base rather than
// copied.
const (
	Space       Strategy = "space"
	Performance Strategy = "performance"
)

// State is how an image is, derived from what is there.
type State string

// The states.
const (
	Optimized State = "optimized" // usable, and as it should be
	Degraded  State = "degraded"  // usable; there is a better way to keep it
	Broken    State = "broken"    // not usable now
)

// Options of the verbs; the zero value is what the seed calls the defaults.
type Options struct {
	// NoAutoFix (AutoFix=False) commits the plan and leaves the work to whoever
	// runs it: Run, Resume, or FixStorageRepository on any host.
	NoAutoFix bool
	Strategy  Strategy
	// ParticipatingRepositories narrow the search for existing images.
	ParticipatingRepositories []string
	// ImageHints say of images in which repository they have to be.
	ImageHints map[string]string
	// PostZero has RemoveImage overwrite with zeros what the image alone holds before it is
	// deleted. What others still read is overwritten once nobody does any more.
	PostZero bool
	// Discard has RemoveImage tell the storage that the blocks are not needed any more.
	Discard bool
	// Confirm is the id of the image that a fix gives up (Fix.ByName).
	Confirm string
	// RequestID makes a verb that creates idempotent: the same request with the same id
	// returns the same image, another one is a failure.Conflict.
	RequestID string

	rehearsal *rehearsal // nil: it is meant
}

// MaxUserData bounds user data in bytes, as compact JSON.
const MaxUserData = 2048

const (
	granule      = 4096 // sizes of images are multiples of it
	maxSize      = imagecheck.DefaultMaxVirtualSize
	maxRequestID = 128
	// maxChain is how many volumes an image may lie on before it is degraded.
	maxChain = 8
)

func checkImageID(id string) error {
	if !host.IsUUID(id) {
		err := failure.New(failure.Usage, "image %q: an id is a UUID in lower case", clip(id))
		if _, alone, ok := strings.Cut(id, "/"); ok && host.IsUUID(alone) {
			err = failure.Hint(err, "name it by its id alone, %s: it is looked for in the repository, and in all others that are connected", alone)
		}
		return err
	}
	return nil
}

// checkRepoID: it is a name of the host's own, and names a file.
func checkRepoID(id string) error {
	bad := strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_.-", r)
	})
	if bad || id == "" || len(id) > 64 || strings.ContainsRune(".-", rune(id[0])) {
		return failure.New(failure.Usage, "repository %q: an id is of letters, digits, and _ . - but as the first, 64 at most", clip(id))
	}
	return nil
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// checkUserData returns it in its compact form.
func checkUserData(data json.RawMessage) (json.RawMessage, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return nil, failure.New(failure.Usage, "user data: not JSON: %w", err)
	}
	if b.Len() > MaxUserData {
		return nil, failure.New(failure.Usage, "user data: %d bytes; at most %d are kept", b.Len(), MaxUserData)
	}
	return b.Bytes(), nil
}

// checkSize rounds a size up to the granule.
func checkSize(bytes int64) (int64, error) {
	if bytes <= 0 || bytes > maxSize {
		return 0, failure.New(failure.Usage, "size %d: between 1 and %d bytes", bytes, int64(maxSize))
	}
	return roundUp(bytes, granule), nil
}

func roundUp(bytes, to int64) int64 { return (bytes + to - 1) / to * to }

// diskSize is that of a disk of at least so many bytes in this repository: a guest sees
// all of its volume.
func (r *repo) diskSize(bytes int64) int64 {
	if g := r.place.Capabilities().Granule; g > 0 {
		return roundUp(bytes, g)
	}
	return bytes
}

func (o Options) check() error {
	switch o.Strategy {
	case "", Space, Performance:
	default:
		return failure.New(failure.Usage, "strategy %q: space or performance", clip(string(o.Strategy)))
	}
	if len(o.RequestID) > maxRequestID {
		return failure.New(failure.Usage, "request id: %d bytes; at most %d", len(o.RequestID), maxRequestID)
	}
	for _, repo := range o.ParticipatingRepositories {
		if err := checkRepoID(repo); err != nil {
			return err
		}
	}
	for id, repo := range o.ImageHints {
		if err := checkImageID(id); err != nil {
			return err
		}
		if err := checkRepoID(repo); err != nil {
			return err
		}
	}
	return nil
}

func (o Options) strategy() Strategy {
	if o.Strategy == "" {
		return Space
	}
	return o.Strategy
}

// erasure is what RemoveImage does with data; nil: no more than delete it.
func (o Options) erasure() *erasure {
	if !o.PostZero && !o.Discard {
		return nil
	}
	return &erasure{Erasure: format.Erasure{Zero: o.PostZero, Discard: o.Discard}}
}

// newID is a new image's: with a request id always the same in this repository.
func (o Options) newID(nonce string) string {
	if o.RequestID == "" {
		return uuid.NewString()
	}
	return uuid.NewSHA1(uuid.MustParse(nonce), []byte(o.RequestID)).String()
}

// digest of what was asked with a request id; "" without one.
func (o Options) digest(verb string, asked ...any) string {
	if o.RequestID == "" {
		return ""
	}
	sum := sha256.Sum256(fmt.Append(nil, verb, " ", o.strategy(), " ", asked))
	return hex.EncodeToString(sum[:16])
}
