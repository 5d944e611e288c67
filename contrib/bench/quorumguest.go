// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockGuest is a guest's side of a virtio block device, without the guest: it
// has one virtqueue in memory that it shares with who serves the device, over
// vhost-user. So requests come in, and completions go out, as they do with a
// real virtual machine (descriptors in memory, an eventfd each way), and none
// of the time is emulation.
//
// The protocol is "Vhost-user Protocol" in QEMU's documentation; the layout of
// the queue and of requests, sections 2.7 and 5.2 of the virtio specification
// 1.1. Everything is little-endian, as this program's machine has to be.
type blockGuest struct {
	conn       *net.UnixConn
	memory     []byte
	kick, call int // eventfds

	most int // bytes of a request

	pending, avail uint16 // in the queue: made, shown to the device
	used           uint16 // and taken back
}

// The queue and its buffers in the shared memory. The queue has queueSize
// descriptors, three of them a request.
const (
	queueSize   = 64
	descriptors = 0
	availRing   = descriptors + 16*queueSize
	usedRing    = 4096
	headers     = 8192 // 32 bytes a request: header, and at 16 the status
	buffers     = 16384
)

// Requests of vhost-user.
const (
	getFeatures = 1 + iota
	setFeatures
	setOwner
	_
	setMemTable
	_
	_
	setVringNum
	setVringAddr
	setVringBase
	_
	setVringKick
	setVringCall
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	setVringEnable      = 18
)

// Feature bits: what every Linux guest negotiates, and what vhost-user needs.
const (
	eventIndex       = 1 << 29
	protocolFeatures = 1 << 30
	version1         = 1 << 32
)

// connectGuest takes the device that is served at socket, for requests of at
// most most bytes, depth of them at a time.
func connectGuest(ctx context.Context, socket string, depth, most int) (*blockGuest, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	g := &blockGuest{conn: conn.(*net.UnixConn), kick: -1, call: -1, most: most}
	if err := g.setUp(buffers + depth*most); err != nil {
		g.close()
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	return g, nil
}

// setUp makes a memory of size bytes and shares it.
func (g *blockGuest) setUp(size int) error {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return err
	}
	if g.memory, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return err
	}
	for _, fd := range []*int{&g.kick, &g.call} {
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			return err
		}
	}
	for i := buffers; i < size; i++ {
		g.memory[i] = byte(i * 131 >> 7)
	}
	if err := g.send(setOwner, nil); err != nil {
		return err
	}
	features, err := g.get(getFeatures)
	if err != nil {
		return err
	}
	const want = eventIndex | protocolFeatures | version1
	if features&want != want {
		return fmt.Errorf("vhost-user features %#x, want %#x", features, uint64(want))
	}
	if _, err := g.get(getProtocolFeatures); err != nil {
		return err
	}
	// The memory has the same addresses for the guest and for this process.
	base := uint64(g.address())
	le := binary.LittleEndian
	region := le.AppendUint64(le.AppendUint64(le.AppendUint64(le.AppendUint64(nil, base), uint64(size)), base), 0)
	for _, m := range []struct {
		request uint32
		payload []byte
		fds     []int
	}{
		{setProtocolFeatures, u64(0), nil},
		{setFeatures, u64(want), nil},
		{setMemTable, append(u64(1), region...), []int{fd}},
		{setVringNum, u64(queueSize << 32), nil},
		{setVringBase, u64(0), nil},
		{setVringAddr, append(u64(0), append(append(append(u64(base+descriptors), u64(base+usedRing)...), u64(base+availRing)...), u64(0)...)...), nil},
		{setVringCall, u64(0), []int{g.call}},
		{setVringKick, u64(0), []int{g.kick}},
		{setVringEnable, u64(1 << 32), nil},
	} {
		if err := g.send(m.request, m.payload, m.fds...); err != nil {
			return err
		}
	}
	// An answer to anything says that all of that was taken in.
	_, err = g.get(getFeatures)
	return err
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func (g *blockGuest) address() uintptr { return uintptr(unsafe.Pointer(&g.memory[0])) }

func (g *blockGuest) close() {
	_ = g.conn.Close()
	for _, fd := range []int{g.kick, g.call} {
		_ = unix.Close(fd)
	}
	if g.memory != nil {
		_ = unix.Munmap(g.memory)
	}
}

// send sends a request: its number, version 1, the length, the payload; open
// files beside it.
func (g *blockGuest) send(request uint32, payload []byte, fds ...int) error {
	le := binary.LittleEndian
	message := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, request), 1), uint32(len(payload)))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := g.conn.WriteMsgUnix(append(message, payload...), rights, nil)
	return err
}

// get asks for a number.
func (g *blockGuest) get(request uint32) (uint64, error) {
	if err := g.send(request, nil); err != nil {
		return 0, err
	}
	answer := make([]byte, 12+8)
	if _, err := io.ReadFull(g.conn, answer); err != nil {
		return 0, err
	}
	if got := binary.LittleEndian.Uint32(answer); got != request {
		return 0, fmt.Errorf("request %d of vhost-user: the answer is to %d", request, got)
	}
	return binary.LittleEndian.Uint64(answer[12:]), nil
}
