// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// access is what a guest does: requests of size bytes at random places, depth of
// them under way.
type access struct {
	write       bool
	size, depth int
}

func (a access) String() string {
	word := "read"
	if a.write {
		word = "write"
	}
	return fmt.Sprintf("%d KiB %s", a.size>>10, word)
}

// stuck is how long a device may take for a request.
const stuck = 30 * time.Second

// run keeps a disk of size bytes busy for about as long as it is told, and
// returns how many requests it served a second.
func (g *blockGuest) run(a access, size int64, most time.Duration) (float64, error) {
	runtime.LockOSThread() // it waits in the kernel, as a processor of a guest does
	defer runtime.UnlockOSThread()
	places := rand.New(rand.NewPCG(1, uint64(a.size)))
	next := func(i int) {
		g.request(i, a, places.Int64N(size/int64(a.size))*int64(a.size))
	}
	began := time.Now()
	for i := range a.depth {
		next(i)
	}
	for done, pending := 0, a.depth; ; {
		g.publish()
		if err := g.await(); err != nil {
			return 0, fmt.Errorf("%s: %w", a, err)
		}
		for {
			i, ok, err := g.completed()
			if err != nil {
				return 0, fmt.Errorf("%s: %w", a, err)
			}
			if !ok {
				break
			}
			done++
			if time.Since(began) < most {
				next(i)
			} else if pending--; pending == 0 {
				return float64(done) / time.Since(began).Seconds(), nil
			}
		}
	}
}

// Flags of descriptors, and the types of requests that are used.
const (
	continued, forDevice = 1, 2 // VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
	typeRead, typeWrite  = 0, 1 // VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT
	unanswered           = 0xff
)

// descriptor writes the n-th: where, how long, and whether another follows.
func (g *blockGuest) descriptor(n, at, length int, flags uint16) {
	le, d := binary.LittleEndian, g.memory[descriptors+16*n:]
	le.PutUint64(d, uint64(g.address())+uint64(at))
	le.PutUint32(d[8:], uint32(length))
	le.PutUint16(d[12:], flags)
	le.PutUint16(d[14:], uint16(n+1))
}

// request makes the i-th request and puts it into the queue, unpublished.
func (g *blockGuest) request(i int, a access, at int64) {
	header, kind, flags := headers+32*i, uint32(typeRead), uint16(continued|forDevice)
	if a.write {
		kind, flags = typeWrite, continued
	}
	le := binary.LittleEndian
	le.PutUint32(g.memory[header:], kind)
	le.PutUint64(g.memory[header+8:], uint64(at/512))
	g.memory[header+16] = unanswered
	g.descriptor(3*i, header, 16, continued)
	g.descriptor(3*i+1, buffers+i*g.most, a.size, flags)
	g.descriptor(3*i+2, header+16, 1, forDevice)
	le.PutUint16(g.memory[availRing+4+2*int(g.pending%queueSize):], uint16(3*i))
	g.pending++
}

// word is an aligned place that both sides look at.
func (g *blockGuest) word(at int) *uint32 { return (*uint32)(unsafe.Pointer(&g.memory[at])) }

// publish shows the requests to the device, and wakes it if it asked for that
// (section 2.7.10 of virtio 1.1): one eventfd may start several requests.
func (g *blockGuest) publish() {
	was := g.avail
	if g.avail = g.pending; g.avail == was {
		return
	}
	atomic.StoreUint32(g.word(availRing), uint32(g.avail)<<16) // the flags beside it are 0
	wanted := uint16(atomic.LoadUint32(g.word(usedRing + 4 + 8*queueSize)))
	if g.avail-wanted-1 < g.avail-was {
		_, _ = unix.Write(g.kick, u64(1))
	}
}

// await waits until something is completed.
func (g *blockGuest) await() error {
	for {
		// Asked first, looked after: the device does it the other way round.
		atomic.StoreUint32(g.word(availRing+4+2*queueSize), uint32(g.used))
		if g.hasCompleted() {
			return nil
		}
		// Whoever got the eventfd has made it one that read(2) does not wait for.
		called := []unix.PollFd{{Fd: int32(g.call), Events: unix.POLLIN}}
		switch n, err := unix.Poll(called, int(stuck.Milliseconds())); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("no answer for %s", stuck)
		}
		var count [8]byte
		if _, err := unix.Read(g.call, count[:]); err != nil && !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
}

func (g *blockGuest) hasCompleted() bool {
	return uint16(atomic.LoadUint32(g.word(usedRing))>>16) != g.used
}

// completed takes one completion, if there is any.
func (g *blockGuest) completed() (i int, ok bool, err error) {
	if !g.hasCompleted() {
		return 0, false, nil
	}
	i = int(binary.LittleEndian.Uint32(g.memory[usedRing+4+8*int(g.used%queueSize):])) / 3
	g.used++
	if status := g.memory[headers+32*i+16]; status != 0 {
		return i, false, fmt.Errorf("the device answers with status %d", status)
	}
	return i, true, nil
}
