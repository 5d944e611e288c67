// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/member/membertest"
	"diskhook/storage/thin/metadata"
)

// kernelHost is the host whose kernel a script has: it does what diskhooks call for.
type kernelHost struct {
	nodes string // directory of device nodes
	loops bool   // thin devices can be read and written: their nodes are loop devices
	san   *devmappertest.SAN

	mu     sync.Mutex
	kernel *devmappertest.Kernel
	disks  map[string]string          // what the SAN calls a file
	paths  map[string]string          // and the other way round
	seen   map[string]bool            // windows whose metadata the SAN has
	guests map[string]devmapper.Block // devices that somebody has open
}

// kernelConnection is that of one diskhook.
type kernelConnection struct {
	*kernelHost
	open map[int]devmapper.Block
}

// Do does a call.
func (c *kernelConnection) Do(call KernelCall, a *KernelAnswer) error {
	if err := c.answer(call, a); err != nil {
		if refused := new(devmapper.Error); errors.As(err, &refused) {
			a.Errno, a.Op = refused.Errno, refused.Op
		}
		a.Text = err.Error()
	}
	return nil
}

func (c *kernelConnection) answer(call KernelCall, a *KernelAnswer) (err error) {
	ctx := context.Background()
	c.mu.Lock()
	k := c.kernel
	c.mu.Unlock()
	switch call.Op {
	case "create", "load":
		return c.load(ctx, k, call, a)
	case "clear":
		return k.Clear(ctx, call.Name)
	case "suspend":
		return k.Suspend(ctx, call.Name, call.Noflush)
	case "resume":
		return k.Resume(ctx, call.Name)
	case "remove":
		info, _ := k.Info(ctx, call.Name)
		if err := k.Remove(ctx, call.Name); err != nil {
			return err
		}
		return errors.Join(unloop(c.node(info)), os.Remove(c.node(info)))
	case "info":
		a.Info, err = k.Info(ctx, call.Name)
	case "list":
		a.Names, err = k.List(ctx)
	case "table":
		var t devmapper.Table
		t, err = k.Table(ctx, call.Name)
		a.Table = c.named(t.String())
	case "status":
		a.Status, err = k.Status(ctx, call.Name, call.Noflush)
	case "message":
		return k.Message(ctx, call.Name, call.Message)
	case "wait":
		ctx, cancel := context.WithTimeout(ctx, call.Wait)
		defer cancel()
		if a.Events, err = k.Wait(ctx, call.Name, call.Since); errors.Is(err, context.DeadlineExceeded) {
			a.Events, err = call.Since, nil
		}
	case "write metadata":
		return k.WriteMetadata(call.Name, whole(call.Image))
	case "read metadata":
		a.Image, err = k.ReadMetadata(call.Name, call.Root)
	case "open":
		a.Handle = len(c.open) + 1
		c.open[a.Handle], err = k.Open(ctx, call.Name)
	case "discard":
		return c.open[call.Handle].Discard(call.Off, call.Length)
	case "close":
		err = c.open[call.Handle].Close()
		c.open[call.Handle] = nil
	default:
		err = fmt.Errorf("no call %q", call.Op)
	}
	return err
}

func (h *kernelHost) node(info devmapper.Info) string {
	return filepath.Join(h.nodes, fmt.Sprint("dm-", info.Minor))
}

// load makes or changes a device over files, which the SAN has as disks.
func (h *kernelHost) load(ctx context.Context, k *devmappertest.Kernel, call KernelCall, a *KernelAnswer) error {
	t, err := parseTable(h.numbered(call.Table))
	if err != nil {
		return err
	}
	thin, isThin := t[0].Target.(devmapper.Thin)
	size := int64(t[0].Length) * 512
	if call.Op == "load" {
		if err := k.Load(ctx, call.Name, t); err != nil || !isThin || !h.loops {
			return err
		}
		info, err := k.Info(ctx, call.Name)
		if err != nil {
			return err
		}
		return reloop(h.node(info), h.content(thin.ID), size)
	}
	if a.Info, err = k.Create(ctx, call.Name, call.UUID, t); err != nil {
		return err
	}
	if isThin && h.loops {
		return loop(h.node(a.Info), h.content(thin.ID), size)
	}
	if err := os.WriteFile(h.node(a.Info), nil, 0o600); err != nil {
		return err
	}
	if linear, ok := t[0].Target.(devmapper.Linear); ok {
		return h.adopt(ctx, k, call.Name, linear)
	}
	return nil
}

// numbered has the SAN's names for the files in a table, named the files'.
func (h *kernelHost) numbered(table string) string {
	return h.each(table, func(word string) string {
		if !strings.HasPrefix(word, "/") || strings.HasPrefix(word, "/dev/") {
			return word
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.disks[word] == "" {
			h.disks[word] = h.san.AddDisk(1 << 30)
			h.paths[h.disks[word]] = word
		}
		return h.disks[word]
	})
}

func (h *kernelHost) named(table string) string {
	return h.each(table, func(word string) string {
		h.mu.Lock()
		defer h.mu.Unlock()
		if path := h.paths[word]; path != "" {
			return path
		}
		return word
	})
}

func (*kernelHost) each(table string, change func(string) string) string {
	words := strings.Split(table, " ")
	for i, word := range words {
		words[i] = change(word)
	}
	return strings.Join(words, " ")
}

// adopt has the SAN know the metadata that the master wrote to a window.
func (h *kernelHost) adopt(ctx context.Context, k *devmappertest.Kernel, name string, at devmapper.Linear) error {
	h.mu.Lock()
	path, window := h.paths[at.Device], fmt.Sprint(at)
	known := h.seen[window]
	h.seen[window] = true
	h.mu.Unlock()
	if known {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := metadata.Open(window512{f, int64(at.Start) * 512})
	if err != nil {
		return nil // nothing was written to it yet
	}
	image, err := membertest.Decode(ctx, r)
	if err != nil {
		return err
	}
	return k.WriteMetadata(name, image)
}

// window512 is a file from an offset on.
type window512 struct {
	*os.File
	from int64
}

func (w window512) ReadAt(p []byte, off int64) (int, error) { return w.File.ReadAt(p, w.from+off) }

func (w window512) Size() int64 {
	info, err := w.Stat()
	if err != nil {
		return 0
	}
	return info.Size() - w.from
}
