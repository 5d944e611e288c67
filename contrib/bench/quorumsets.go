// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/quorum"
)

// quorumBench has a plain image and two replica sets in a folder that is also
// the root of a host of their own.
type quorumBench struct {
	dir  string
	sets *quorum.Service
}

// make writes the images, so that no request has to find space, and takes the
// replicas as sets.
func (b *quorumBench) make(ctx context.Context) error {
	diskhook, err := filepath.Abs("bin/diskhook")
	if err != nil {
		return err
	}
	layout := host.Layout{Root: b.dir}
	if err := layoutFor(layout); err != nil {
		return err
	}
	config := host.Defaults(layout)
	config.Paths.Roots = []string{b.dir}
	// `quorum serve` is a program of its own and reads this.
	err = errors.Join(os.MkdirAll(filepath.Join(b.dir, "etc/diskhook"), 0o755),
		os.WriteFile(filepath.Join(b.dir, "etc/diskhook/diskhook.toml"), fmt.Appendf(nil, "[paths]\nroots = [%q]\n", b.dir), 0o644))
	if err != nil {
		return err
	}
	b.sets = &quorum.Service{
		Layout: layout, Config: config, Run: command.System{}, Program: diskhook,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	}
	err = shell(ctx, `
		cd "$1"
		head -c "$2" /dev/urandom >plain.raw
		for set in vote fifo; do for replica in 1 2 3; do cp --reflink=never plain.raw $set$replica.raw; done; done
		sync`, b.dir, fmt.Sprint(quorumSize))
	if err != nil {
		return err
	}
	for _, p := range patterns {
		building := quorum.Building{Name: p.set, Threshold: 2, ReadPattern: p.pattern, AllowMinority: p.pattern == quorum.FIFO, Adopt: true}
		for i := range 3 {
			replica, err := quorum.ParseReplica(filepath.Join(b.dir, fmt.Sprintf("%s%d.raw", p.set, i+1)), "raw")
			if err != nil {
				return err
			}
			building.Replicas = append(building.Replicas, replica)
		}
		if _, err := b.sets.Build(ctx, building); err != nil {
			return err
		}
	}
	return nil
}

// rawFile is an image as QEMU opens it for a disk with cache='none' and
// io='native', and as diskhook opens replicas.
func rawFile(name, path string) *quorum.Node {
	cache := &quorum.Cache{Direct: true}
	file := &quorum.Node{Driver: "file", Filename: path, AIO: "native", Cache: cache}
	return &quorum.Node{Driver: "raw", NodeName: name, Cache: cache, File: file}
}

// device is QEMU: it shows a node called disk as a virtio disk.
func (b *quorumBench) device(ctx context.Context, disk *quorum.Node) (socket string, closed func() error, err error) {
	node, err := disk.JSON()
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(b.dir, "device")
	_ = os.Remove(socket)
	qemu := exec.CommandContext(ctx, "qemu-storage-daemon", "--blockdev", node,
		"--export", "type=vhost-user-blk,id=disk,node-name=disk,writable=on,num-queues=1,addr.type=unix,addr.path="+socket)
	qemu.Stderr = os.Stderr
	if err := qemu.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- qemu.Wait() }()
	closed = func() error {
		_ = qemu.Process.Signal(unix.SIGTERM)
		return <-ended
	}
	for {
		if _, err := os.Stat(socket); err == nil {
			return socket, closed, nil
		}
		select {
		case err := <-ended:
			return "", nil, fmt.Errorf("qemu-storage-daemon: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// inline has QEMU vote.
func (b *quorumBench) inline(ctx context.Context, name string) (socket string, closed func() error, err error) {
	set, err := b.sets.Load(name)
	if err != nil {
		return "", nil, err
	}
	var replicas []*quorum.Node
	for _, r := range set.Replicas {
		replicas = append(replicas, rawFile(r.ID, r.Top().Path))
	}
	vote := set.Tree(replicas)
	vote.NodeName = "disk"
	return b.device(ctx, vote)
}

// overNBD has diskhook serve the set to QEMU.
func (b *quorumBench) overNBD(ctx context.Context, name string) (socket string, closed func() error, err error) {
	served, stop, err := b.serve(ctx, name, quorum.NBDExport)
	if err != nil {
		return "", nil, err
	}
	server := &quorum.Server{Type: "unix", Path: served.Socket}
	nbd := &quorum.Node{Driver: "nbd", Server: server, Export: served.Export}
	socket, gone, err := b.device(ctx, &quorum.Node{Driver: "raw", NodeName: "disk", File: nbd})
	if err != nil {
		return "", nil, errors.Join(err, stop())
	}
	return socket, func() error { return errors.Join(gone(), stop()) }, nil
}

// overVhost has diskhook serve the set to the guest itself.
func (b *quorumBench) overVhost(ctx context.Context, name string) (socket string, closed func() error, err error) {
	served, stop, err := b.serve(ctx, name, quorum.VhostUser)
	return served.Socket, stop, err
}

func (b *quorumBench) serve(ctx context.Context, name, kind string) (quorum.Endpoint, func() error, error) {
	use := quorum.Use{Domain: "6a7e5d52-5d3e-4a5f-9c55-0a0c6e4a6d5f", Target: "vda", Name: "bench", Kind: kind}
	served, err := b.sets.Start(ctx, name, use, time.Minute)
	return served, func() error { return b.sets.Stop(context.WithoutCancel(ctx), name, use) }, err
}
