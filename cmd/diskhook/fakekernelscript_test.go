// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"context"
	"io"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
)

// kernels are those of scripts, which run side by side.
type kernels struct {
	mu     sync.Mutex
	byWork map[string]*kernelHost
}

// kernel: a host with device-mapper.
// kernel open NAME, kernel close NAME: somebody has a device open, or no more.
// kernel loops: what is written to thin devices can be read again.
// kernel reboot: no device is there any more.
func (k *kernels) command(ts *testscript.TestScript, _ bool, args []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	work := ts.Getenv("WORK")
	h := k.byWork[work]
	switch {
	case len(args) == 0:
		h := &kernelHost{
			nodes: filepath.Join(work, "nodes"), san: devmappertest.NewSAN(),
			disks: map[string]string{}, paths: map[string]string{}, seen: map[string]bool{}, guests: map[string]devmapper.Block{},
		}
		h.kernel = devmappertest.NewKernel(h.san)
		ts.Check(os.Mkdir(h.nodes, 0o755))
		listener, err := net.Listen("unix", filepath.Join(work, "kernel"))
		ts.Check(err)
		ts.Defer(func() { listener.Close() })
		go h.serve(listener)
		k.byWork[work] = h
		ts.Setenv(fakeKernelVariable, filepath.Join(work, "kernel"))
		ts.Setenv("DISKHOOK_DEV", h.nodes)
	case args[0] == "open":
		b, err := h.kernel.Open(context.Background(), args[1])
		ts.Check(err)
		h.guests[args[1]] = b
	case args[0] == "loops":
		h.loops = true
		ts.Defer(h.unloopAll)
	case args[0] == "close":
		ts.Check(h.guests[args[1]].Close())
	case args[0] == "reboot":
		h.mu.Lock()
		defer h.mu.Unlock()
		h.kernel.Crash()
		h.unloopAll()
		h.kernel = devmappertest.NewKernel(h.san)
		ts.Check(os.RemoveAll(filepath.Join(ts.Getenv("DISKHOOK_ROOT"), "run")))
	default:
		ts.Fatalf("kernel: no word %q", args[0])
	}
}

func (h *kernelHost) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go h.talk(conn)
	}
}

// talk does the calls of one diskhook. What it had open is closed at its end.
func (h *kernelHost) talk(conn io.ReadWriteCloser) {
	c := &kernelConnection{h, map[int]devmapper.Block{}}
	server := rpc.NewServer()
	if err := server.RegisterName("Kernel", c); err != nil {
		panic(err)
	}
	server.ServeConn(conn)
	for _, b := range c.open {
		if b != nil {
			b.Close()
		}
	}
}
