// SPDX-License-Identifier: Apache-2.0

// Package imagecheck looks at the headers of disk images before any other
// program does.
//
// Whoever can write an image file decides what a tool does that opens it: a
// qcow2 header names backing and data files by path, by URL or by a json:
// description, and asks for tables of any size. As root, qemu-img then copies
// /etc/shadow into a guest's disk. So a chain is declared by the caller, each
// layer with path and format, and Chain only accepts headers that say the
// same. Nothing is ever probed: what is declared raw is raw, whatever a guest
// wrote into its first sector.
//
// Paths are asked of the caller's allowed function ([paths] roots), then
// opened once without following links; everything that is said of a layer is
// read through that one descriptor. Reads may hang on remote storage: when the
// context ends, every function returns at once and leaves the stuck read
// behind.
//
// A refusal is one line that names the layer, the cause and the way out
// (failure.Hint). Sentinels: ErrTrap, ErrFormat.
package imagecheck

import (
	"context"
	"errors"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// Layer is one image of a backing chain as it is declared, not as it looks.
type Layer struct {
	Path   string `json:"path"`   // absolute
	Format string `json:"format"` // Raw or QCOW2
}

// The formats that are accepted, by the names that QEMU and libvirt use.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
)

// MaxLayers bounds a chain; QEMU itself recurses per layer.
const MaxLayers = 200

// DefaultMaxVirtualSize is the largest virtual disk accepted unless Checker
// says otherwise: a header may claim any size, and copies are allocated by it.
const DefaultMaxVirtualSize = 64 << 40

var (
	// ErrTrap says that an image would make a program read, allocate or do
	// what nobody declared. It is a failure.Precondition.
	ErrTrap = failure.Wrap(failure.Precondition, errors.New("hostile image"))

	// ErrFormat says that a layer is not of the declared format, is of one
	// that is not supported, or is damaged. It is a failure.Precondition.
	ErrFormat = failure.Wrap(failure.Precondition, errors.New("unusable image"))
)

// Info is what the headers of a chain say.
type Info struct {
	// VirtualSize is the size of the disk in bytes as a guest sees it, that
	// of the top layer. It is a multiple of 512: like QEMU, a raw file that
	// ends within a sector is taken as filled up with zeros.
	VirtualSize int64

	// Layers is the chain, top first, with symlinks resolved: where it is now.
	// Keep the declared paths, since /dev/dm-7 is another volume tomorrow.
	Layers []Layer

	// Headers holds the header of each qcow2 layer and nil for a raw one.
	Headers []*Header

	// Sizes are what each layer says it holds, in bytes: the virtual size of a qcow2
	// image, the length of a raw one.
	Sizes []int64

	// Fingerprint (hex) changes when a layer was replaced or written to, as
	// far as that can be told without reading everything; see fingerprint.go.
	Fingerprint string

	// Identities are what it is made of, one for each layer.
	Identities []Identity

	// Block says that a layer is a block device, so that it may have been
	// written to though the fingerprint is the same.
	Block bool
}

// Allowed resolves a path and refuses what may not be read, as
// host.Paths.Allowed does.
type Allowed func(path string) (resolved string, err error)

// Checker is how to look; only Allowed is required.
type Checker struct {
	Allowed Allowed

	// MaxVirtualSize in bytes; 0 is DefaultMaxVirtualSize.
	MaxVirtualSize int64

	// User finds and opens the files with that identity instead of the
	// process's own: an NFS server that squashes root serves oVirt's images to
	// vdsm only. Only root may ask for it.
	User *command.Credential
}

// Chain is Checker.Chain with the defaults.
func Chain(ctx context.Context, layers []Layer, allowed func(string) (string, error)) (Info, error) {
	return Checker{Allowed: allowed}.Chain(ctx, layers)
}

// Discover is Checker.Discover with the defaults.
func Discover(ctx context.Context, top Layer, allowed func(string) (string, error)) ([]Layer, error) {
	return Checker{Allowed: allowed}.Discover(ctx, top)
}

// trap refuses what reaches beyond the declared chain.
func trap(path, cause string, args ...any) error {
	return refusal(ErrTrap, path, cause, args...)
}

// unusable refuses what cannot be read as declared.
func unusable(path, cause string, args ...any) error {
	return refusal(ErrFormat, path, cause, args...)
}
