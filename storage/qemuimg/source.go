// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// node is one node of QEMU's block graph as its json: pseudo-protocol takes
// it (BlockdevOptions in qapi/block-core.json). Backing is absent for raw and
// null for the last qcow2 layer, which keeps QEMU from following the header.
type node struct {
	Driver  string          `json:"driver"`
	Offset  int64           `json:"offset,omitempty"`
	Size    int64           `json:"size,omitempty"`
	File    fileNode        `json:"file"`
	Backing json.RawMessage `json:"backing,omitempty"`
}

// rangeNode is a raw node that shows a range of another node.
type rangeNode struct {
	Driver string          `json:"driver"`
	Offset int64           `json:"offset"`
	Size   int64           `json:"size,omitempty"`
	File   json.RawMessage `json:"file"`
}

// fileNode is the protocol layer: file, or host_device for block devices.
type fileNode struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename"`
}

// place is where a layer is read from.
type place struct {
	imagecheck.Layer
	block, direct bool
}

func (p place) file() fileNode {
	if p.block {
		return fileNode{"host_device", p.Path}
	}
	return fileNode{"file", p.Path}
}

// tree renders a chain, top first.
func tree(chain []place) (string, error) {
	backing := json.RawMessage("null")
	for i := len(chain) - 1; i >= 0; i-- {
		p := chain[i]
		n := node{Driver: p.Format, File: p.file()}
		switch {
		case p.Format == imagecheck.QCOW2:
			n.Backing = backing
		case p.Format != imagecheck.Raw:
			return "", failure.New(failure.Precondition, "%s: format %q is not supported", p.Path, p.Format)
		case i != len(chain)-1:
			return "", failure.New(failure.Precondition, "%s: a raw image has no backing file", p.Path)
		}
		var err error
		if backing, err = encode(n); err != nil {
			return "", fmt.Errorf("%s: %w", p.Path, err)
		}
	}
	return "json:" + string(backing), nil
}

// encode is json.Marshal without the escapes meant for HTML.
func encode(v any) (json.RawMessage, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(buf.Bytes()), err
}

// places looks which layers are block devices, and whether direct I/O works,
// which tmpfs, overlayfs and some FUSE file systems refuse. Layer i is read through the
// descriptor files[i] where there is one; a child sees that as first+i.
// Storage may hang, so this returns when ctx ends.
func places(ctx context.Context, layers []imagecheck.Layer, files []*os.File, first int) ([]place, error) {
	if len(layers) == 0 || len(files) > 0 && len(files) != len(layers) {
		return nil, failure.New(failure.Usage, "a source of %d layers and %d open files", len(layers), len(files))
	}
	chain, err := command.Abandon(ctx, func() ([]place, error) {
		var chain []place
		for i, l := range layers {
			path := l.Path
			if len(files) > 0 {
				path = descriptor(int(files[i].Fd()))
			}
			p, err := look(l, path)
			if err != nil {
				return nil, err
			}
			if len(files) > 0 {
				p.Path = descriptor(first + i)
			}
			chain = append(chain, p)
		}
		return chain, nil
	})
	if errors.Is(err, command.ErrNoAnswer) {
		return nil, fmt.Errorf("%s: %w", layers[0].Path, err)
	}
	return chain, err
}

// descriptor is a path to an open file that no rename or link can bend.
func descriptor(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// look stats a layer at path, which names the same file as l.Path.
func look(l imagecheck.Layer, path string) (place, error) {
	p := place{Layer: l}
	switch {
	case !filepath.IsAbs(l.Path):
		// A relative name could be taken for a protocol or an option.
		return p, failure.New(failure.Usage, "%q: not an absolute path", l.Path)
	case !utf8.ValidString(l.Path):
		return p, failure.New(failure.Precondition, "%q: not UTF-8, which QEMU's JSON needs", l.Path)
	}
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return p, failure.Wrap(failure.NotFound, err)
	}
	if err != nil {
		return p, err
	}
	mode := st.Mode()
	p.block = mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0
	if !p.block && !mode.IsRegular() {
		return p, failure.New(failure.Precondition, "%s: neither a regular file nor a block device", l.Path)
	}
	p.direct = direct(path)
	return p, nil
}

// direct says whether direct I/O works for path. When we may not open it (a
// squashed root, qemu-img run as somebody else) it is taken to work: network
// file systems do.
func direct(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return !errors.Is(err, unix.EINVAL)
}

// cacheOf is the cache mode of a chain: one layer without direct I/O takes it
// from all, because the mode of the top is inherited.
func cacheOf(chain []place) string {
	for _, p := range chain {
		if !p.direct {
			return "writeback"
		}
	}
	return "none"
}
