// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository/format"
)

// chain is an image's volumes, top first.
type chain []*volume

// volumes finds a volume's documents by find, top first. ErrBroken: one is missing or
// not complete.
func volumes(id string, find func(id string) (*volume, error)) (chain, error) {
	var c chain
	for at := id; at != ""; {
		if len(c) >= imagecheck.MaxLayers || slices.ContainsFunc(c, func(v *volume) bool { return v.ID == at }) {
			return nil, fmt.Errorf("volume %s: %w: it lies on too many others, or on itself", id, ErrBroken)
		}
		v, err := find(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("volume %s: %w: it does not exist", at, ErrBroken)
		case err != nil:
			return nil, err
		case !v.Complete:
			return nil, fmt.Errorf("volume %s: %w: it is not complete", at, ErrBroken)
		}
		c = append(c, v)
		at = v.Below
	}
	return c, nil
}

// chain reads an image's volumes.
func (r *repo) chain(ctx context.Context, img *image) (chain, error) {
	if img.Volume == "" {
		return nil, fmt.Errorf("image %s/%s: %w yet", r.id, img.ID, ErrBroken)
	}
	c, err := volumes(img.Volume, func(id string) (*volume, error) { return r.volume(ctx, id) })
	if err != nil {
		return nil, fmt.Errorf("image %s/%s: %w", r.id, img.ID, err)
	}
	return c, nil
}

// layers are where the volumes are on this host.
func (r *repo) layers(c chain) []imagecheck.Layer {
	var all []imagecheck.Layer
	for _, v := range c {
		all = append(all, imagecheck.Layer{Path: r.place.Path(v.ID, v.Format), Format: v.Format})
	}
	return all
}

// openVolumes makes all volumes of a chain usable on this host, the top one for writing
// if it is to be.
func (r *repo) openVolumes(ctx context.Context, c chain, write bool) error {
	for i, v := range c {
		r.attached.add(format.Data{ID: v.ID, Kind: v.Format})
		_, err := step(ctx, r, "open a volume", func(ctx context.Context) (struct{}, error) {
			return struct{}{}, r.place.OpenVolume(ctx, v.ID, v.Format, write && i == 0)
		})
		if errors.Is(err, failure.NotFound) {
			return fmt.Errorf("volume %s/%s: %w: %w", r.id, v.ID, ErrBroken, err)
		}
		if err != nil {
			return fmt.Errorf("volume %s/%s: %w", r.id, v.ID, err)
		}
	}
	return nil
}

// inspect opens a chain for reading once the headers say what the documents do:
// whoever wrote an image decides what its header says.
func (r *repo) inspect(ctx context.Context, c chain) (*imagecheck.Opened, error) {
	layers := r.layers(c)
	limited, cancel := context.WithTimeout(ctx, r.deadline)
	defer cancel()
	opened, err := imagecheck.Checker{Allowed: only(layers)}.Open(limited, layers)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", r.id, err)
	}
	for i, v := range c {
		if opened.Sizes[i] < v.Size { // of one that was cut off QEMU would read zeros
			opened.Close()
			return nil, fmt.Errorf("volume %s/%s: %w: it is of %d bytes, not %d", r.id, v.ID, ErrBroken, opened.Sizes[i], v.Size)
		}
	}
	return opened, nil
}

// only allows the paths of a chain and nothing else.
func only(layers []imagecheck.Layer) imagecheck.Allowed {
	return func(path string) (string, error) {
		if !slices.ContainsFunc(layers, func(l imagecheck.Layer) bool { return l.Path == path }) {
			return "", failure.New(failure.Precondition, "%s: not of this image", path)
		}
		resolved, err := filepath.EvalSymlinks(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = failure.Wrap(failure.NotFound, err)
		}
		return resolved, err
	}
}

// stateOf derives an image's state from its document and its volumes, or why there
// are none.
func stateOf(img *image, c chain, broken error) State {
	switch {
	case broken != nil, img.Plan.creates():
		return Broken
	case len(c) > maxChain, img.Strategy == Performance && len(c) > 1:
		return Degraded
	}
	return Optimized
}
