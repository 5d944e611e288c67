// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member/membertest"
	"diskhook/storage/thin/metadata"
	"diskhook/storage/thin/request"
)

// channel is the way to the master, on which the program can be killed before it
// was asked, or before it was told.
type channel struct{ h *node }

func (c channel) Ask(ctx context.Context, sequence uint64, r request.Request) (request.Reply, error) {
	if err := c.h.life.step(); err != nil {
		return request.Reply{}, err
	}
	if c.h.w.away {
		return request.Reply{}, failure.New(failure.Temporary, "the master did not answer")
	}
	if c.h.w.asked != nil {
		c.h.w.asked()
	}
	reply, err := c.h.w.chief.Channel(id(c.h.n)).Ask(ctx, sequence, r)
	if err := c.h.life.step(); err != nil {
		return request.Reply{}, err
	}
	if c.h.w.mute {
		return request.Reply{}, failure.New(failure.Temporary, "the master did not answer")
	}
	return reply, err
}

// window maps a host's window on a kernel where nothing else runs.
func (w *world) window(h *node, at layout.Window) (*devmappertest.Kernel, string) {
	w.Helper()
	k := devmappertest.NewKernel(w.san)
	_, err := k.Create(w.Context(), "window", "", devmapper.Of(at.Length/512, devmapper.Linear{Device: w.disks[layout.Host.Name(id(h.n))], Start: at.Offset / 512}))
	w.must(err)
	return k, "window"
}

// fetch has the SAN know the metadata that the master wrote.
func (h *node) fetch() {
	h.w.Helper()
	at := h.w.header(h).Windows[0]
	r, err := metadata.Open(section{h.w.g.Disk(layout.Host.Name(id(h.n))), int64(at.Offset)})
	h.w.must(err)
	image, err := membertest.Decode(h.w.Context(), r)
	h.w.must(err)
	k, name := h.w.window(h, at)
	h.w.must(k.WriteMetadata(name, image))
}

// section is a disk from an offset on.
type section struct {
	layout.Device
	from int64
}

func (s section) ReadAt(p []byte, off int64) (int, error) { return s.Device.ReadAt(p, s.from+off) }

// fence has a host lose its power, and the master recover what it had from its
// metadata, as they are on the SAN. The host joins again.
func (h *node) fence() {
	h.w.Helper()
	h.kernel.Crash()
	h.recovered()
	h.w.check()
	h.rejoin()
}

// recovered has the master hold a host for fenced and recover what it had.
func (h *node) recovered() {
	w := h.w
	w.Helper()
	header := w.header(h)
	at := header.Windows[header.Active]
	k, name := w.window(h, at)
	image, err := k.ReadMetadata(name, 0)
	w.must(err)
	disk, err := membertest.Encode(image)
	w.must(err)
	b := directio.Buffer(disk.Size())
	_, err = disk.ReadAt(b, 0)
	w.must(err)
	w.g.Disk(layout.Host.Name(id(h.n))).Write(int64(at.Offset), b)
	w.must(w.chief.Fence(w.Context(), header.Name, 0, "its power is off"))
	recovered, err := w.chief.Recover(w.Context(), header.Name, false)
	w.must(err)
	for _, v := range recovered {
		if v.Suspect {
			w.Fatalf("%+v", v)
		}
	}
}

func (w *world) number(m layout.Map, h *node) uint32 {
	var number uint32
	for _, record := range m.Hosts {
		if record.UUID == id(h.n) {
			number = record.Number
		}
	}
	return number
}

// mapping reads the mapping of a volume that counts.
func (w *world) mapping(v layout.VolumeRecord) (m layout.Mapping) {
	w.Helper()
	w.with(layout.Thin.Name(v.UUID), func(dev group.Volume) (err error) {
		m, err = layout.ReadMapping(dev, clusterID, v.UUID, v.Stored())
		return err
	})
	return m
}
