// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"context"
	"fmt"
	"path/filepath"

	"diskhook/storage/failure"
)

// Discover walks the backing files from top's header down and returns the
// chain, top first, in the form in which it may be declared and kept: a path
// is as it was named, joined to the directory of the image above, with its
// links left alone, because what they lead to (/dev/dm-7) changes. Use it
// where an operator names an image and trusts what its header says; every path
// still has to be allowed. A format that a header does not name is not guessed.
func (c Checker) Discover(ctx context.Context, top Layer) ([]Layer, error) {
	return abandon(ctx, c.User, func(at func(string)) ([]Layer, error) {
		var images []*image
		defer func() { closeAll(images) }()
		var layers []Layer
		for l := top; ; {
			at(l.Path)
			img, err := c.open(l)
			if err != nil {
				return nil, below(layers, err)
			}
			met := find(images, img)
			images, layers = append(images, img), append(layers, l)
			if met != nil || len(layers) > MaxLayers {
				return nil, loop(l.Path)
			}
			h, err := c.header(img)
			if err != nil {
				return nil, below(layers[:len(layers)-1], err)
			}
			if h == nil || h.BackingFile == "" {
				return layers, nil
			}
			if l, err = next(img, h, l.Path); err != nil {
				return nil, err
			}
		}
	})
}

// next is the layer that a header names.
func next(img *image, h *Header, from string) (Layer, error) {
	if err := plainPath(img.Path, h.BackingFile); err != nil {
		return Layer{}, err
	}
	path := h.BackingFile
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(from), path)
	}
	if h.BackingFormat == "" {
		err := unusable(img.Path, "it does not name the format of its backing file %q", clip(h.BackingFile))
		return Layer{}, failure.Hint(err, "set it with `%s`", rebase(h.BackingFile, "FORMAT", img.Path))
	}
	return Layer{filepath.Clean(path), h.BackingFormat}, nil
}

// below says through which image a refused one was reached.
func below(layers []Layer, err error) error {
	if len(layers) == 0 {
		return err
	}
	return fmt.Errorf("backing file of %s: %w", layers[len(layers)-1].Path, err)
}
