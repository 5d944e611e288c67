// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/failure"
)

// Chain inspects every layer, top first, and returns what the headers say
// once they agree with what is declared: each qcow2 layer names exactly the
// next layer as its backing file (and its format, if it names one), the last
// layer names none, and a raw layer is the last.
func (c Checker) Chain(ctx context.Context, layers []Layer) (Info, error) {
	opened, err := c.Open(ctx, layers)
	if err != nil {
		return Info{}, err
	}
	opened.Close()
	return opened.Info, nil
}

// Opened is a chain that was accepted and is still held open. A program that
// inherits Files and reads /proc/self/fd/N reads what was inspected, whatever
// became of the names since.
type Opened struct {
	Info
	Files []*os.File // one per layer, for reading
}

// closing is how long Close waits.
const closing = 500 * time.Millisecond

// Close closes the files. Of a server that does not answer they are closed
// once it does: the kernel first waits for reads that are under way, as those
// of a copy that was given up.
func (o *Opened) Close() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, f := range o.Files {
			_ = f.Close()
		}
	}()
	select {
	case <-closed:
	case <-time.After(closing):
	}
}

// Open is Chain for those who go on to read; they call Close.
func (c Checker) Open(ctx context.Context, layers []Layer) (*Opened, error) {
	return abandon(ctx, c.User, func(at func(string)) (*Opened, error) {
		images, err := c.openAll(layers, at)
		if err != nil {
			closeAll(images)
			return nil, err
		}
		info, err := c.inspect(images, layers, at)
		if err != nil {
			closeAll(images)
			return nil, err
		}
		opened := &Opened{Info: info}
		for _, img := range images {
			opened.Files = append(opened.Files, img.file)
		}
		return opened, nil
	})
}

// openAll resolves and opens the layers and refuses a layer met twice.
func (c Checker) openAll(layers []Layer, at func(string)) ([]*image, error) {
	if len(layers) == 0 {
		return nil, failure.New(failure.Usage, "no image is declared")
	}
	if len(layers) > MaxLayers {
		err := trap(layers[0].Path, "a chain of %d images", len(layers))
		return nil, failure.Hint(err, "flatten it; at most %d are accepted", MaxLayers)
	}
	var images []*image
	for _, l := range layers {
		at(l.Path)
		img, err := c.open(l)
		if err != nil {
			return images, err
		}
		images = append(images, img)
		if earlier := find(images[:len(images)-1], img); earlier != nil {
			return images, loop(l.Path)
		}
	}
	return images, nil
}

func (c Checker) open(l Layer) (*image, error) {
	if !filepath.IsAbs(l.Path) {
		return nil, trap(l.Path, "not an absolute path")
	}
	if err := supported(l); err != nil {
		return nil, err
	}
	resolved, err := c.Allowed(l.Path)
	if err != nil {
		return nil, err
	}
	return open(Layer{resolved, l.Format})
}

func closeAll(images []*image) {
	for _, img := range images {
		_ = img.file.Close()
	}
}

func find(images []*image, wanted *image) *image {
	for _, img := range images {
		if img.sameStat(&wanted.stat) {
			return img
		}
	}
	return nil
}

func loop(path string) error {
	err := trap(path, "the chain comes back to it")
	return failure.Hint(err, "give it its right backing file with `%s`", rebase("BASE", "FORMAT", path))
}

// rebase is the command that changes what an image names as its backing file.
func rebase(base, format, path string) string {
	return shell("qemu-img", "rebase", "-u", "-f", QCOW2, "-b", base, "-F", format, path)
}

// inspect reads the headers and compares neighbours. declared are the layers
// as they were named, since a relative backing file starts from there.
func (c Checker) inspect(images []*image, declared []Layer, at func(string)) (Info, error) {
	var info Info
	for i, img := range images {
		at(img.Path)
		h, err := c.header(img)
		if err != nil {
			return Info{}, err
		}
		var next *image
		if i+1 < len(images) {
			next = images[i+1]
		}
		if err := c.neighbours(img, h, next, declared[i].Path); err != nil {
			return Info{}, err
		}
		info.Layers = append(info.Layers, img.Layer)
		info.Headers = append(info.Headers, h)
		info.Sizes = append(info.Sizes, holds(img, h))
		info.Block = info.Block || img.block
	}
	var err error
	if info.VirtualSize, err = c.virtualSize(images[0], info.Headers[0]); err != nil {
		return Info{}, err
	}
	info.Fingerprint, info.Identities, err = fingerprint(images, info.Headers)
	return info, err
}

// header reads a qcow2 layer's header; a raw layer has none to read.
func (c Checker) header(img *image) (*Header, error) {
	if img.Format == Raw {
		return nil, nil
	}
	h, err := ReadHeader(img.file, img.size, c.maxVirtualSize())
	if errors.Is(err, errNotQCOW2) {
		if name := looksLike(img.file); name != "" {
			err := unusable(img.Path, "declared qcow2, it is %s, which is not supported", name)
			return nil, failure.Hint(err, "convert it with `%s`", convert(name, img.Path))
		}
		return nil, failure.Hint(named(img.Path, err), "see what it is with `%s`; if it is raw, declare it so", shell("qemu-img", "info", img.Path))
	}
	if err != nil {
		return nil, named(img.Path, err)
	}
	return h, nil
}

func (c Checker) maxVirtualSize() int64 {
	if c.MaxVirtualSize > 0 {
		return min(c.MaxVirtualSize, hardMaxVirtual)
	}
	return DefaultMaxVirtualSize
}

func holds(img *image, h *Header) int64 {
	if h != nil {
		return h.VirtualSize
	}
	return img.size
}

// virtualSize is the header's, or the raw file's in whole sectors.
func (c Checker) virtualSize(top *image, h *Header) (int64, error) {
	if h != nil {
		return h.VirtualSize, nil
	}
	if top.size == 0 {
		return 0, failure.Hint(unusable(top.Path, "it is empty"), "check that it is the disk's image")
	}
	if top.size > c.maxVirtualSize() {
		return 0, unusable(top.Path, "it has %d bytes, at most %d are accepted", top.size, c.maxVirtualSize())
	}
	return (top.size + 511) &^ 511, nil
}

// neighbours compares what a header says of its backing file with the next
// declared layer, nil if there is none. from is the image's declared path.
func (c Checker) neighbours(img *image, h *Header, next *image, from string) error {
	if h == nil || h.BackingFile == "" {
		if next != nil {
			err := trap(img.Path, "%s is declared below it, but it has no backing file", next.Path)
			return failure.Hint(err, "declare it alone, or give it that backing file with `%s`", rebase(next.Path, next.Format, img.Path))
		}
		return nil
	}
	name := h.BackingFile
	if err := plainPath(img.Path, name); err != nil {
		return err
	}
	wayOut := func(err error) error {
		return failure.Hint(err, "if it is meant, declare the whole chain; list it with `%s`", shell("qemu-img", "info", "-U", "-f", QCOW2, img.Path))
	}
	if next == nil {
		return wayOut(trap(img.Path, "it names a backing file %q, but none is declared", clip(name)))
	}
	if !c.names(img, name, from, next) {
		return wayOut(trap(img.Path, "it names the backing file %q, declared is %s", clip(name), next.Path))
	}
	if h.BackingFormat != "" && h.BackingFormat != next.Format {
		return wayOut(trap(img.Path, "it names %s as the format of its backing file, declared is %s", failure.OneLine(clip(h.BackingFormat)), next.Format))
	}
	return nil
}

// names says whether the backing file name leads to next. A relative name
// starts from the directory of the image: as it was declared, which is what
// QEMU does, or, where that is a link elsewhere, from the real one.
func (c Checker) names(img *image, name, from string, next *image) bool {
	for _, path := range []string{from, img.Path} {
		candidate := name
		if !filepath.IsAbs(name) {
			candidate = filepath.Join(filepath.Dir(path), name)
		}
		resolved, err := c.Allowed(filepath.Clean(candidate))
		if err == nil && next.same(resolved) {
			return true
		}
	}
	return false
}

// plainPath refuses names that QEMU takes for something else than a file:
// json:{…} describes any tree of drivers, and whatever has a colon before its
// first slash is a protocol (nbd:, ssh://, file:).
func plainPath(image, name string) error {
	scheme, _, found := strings.Cut(name, ":")
	if (found && !strings.Contains(scheme, "/")) || strings.ContainsRune(name, 0) {
		err := trap(image, "its backing file %q is not a plain path", clip(name))
		return failure.Hint(err, "if its owner made it so, give the file's path with `%s`", rebase("BASE", "FORMAT", image))
	}
	return nil
}
