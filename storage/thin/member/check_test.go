// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
)

// create makes an empty volume, from any host that is up.
func (w *world) create(by *node) string {
	w.Helper()
	w.names++
	name := fmt.Sprint("v", w.names)
	w.must(by.Create(w.Context(), id(1000+w.names), name, perVolume*blockSize))
	w.wrote[name] = map[uint64]uint32{}
	return name
}

func (w *world) record(name string) layout.VolumeRecord {
	w.Helper()
	m, _ := w.readMap()
	for _, v := range m.Volumes {
		if v.Name == name {
			return v
		}
	}
	w.Fatalf("there is no volume %s", name)
	return layout.VolumeRecord{}
}

func device(volume string) string { return "dh-" + cluster + "+" + volume }

// guest opens a volume's device on the host's kernel, past the program.
func (h *node) guest(volume string) devmapper.Block {
	h.w.Helper()
	b, err := h.kernel.Open(h.w.Context(), device(volume))
	h.w.must(err)
	return b
}

// write has a guest write a stamp into a block, and is told that it is there.
func (h *node) write(volume string, virtual uint64) {
	h.w.Helper()
	b := h.guest(volume)
	defer b.Close()
	h.w.stamp++
	p := directio.Buffer(page)
	binary.LittleEndian.PutUint32(p, h.w.stamp)
	_, err := b.WriteAt(p, int64(virtual*blockSize))
	h.w.must(err)
	h.w.must(b.Flush())
	h.w.wrote[volume][virtual] = h.w.stamp
}

// discard has a guest give a block up.
func (h *node) discard(volume string, virtual uint64) {
	h.w.Helper()
	b := h.guest(volume)
	defer b.Close()
	h.w.must(b.Discard(int64(virtual*blockSize), blockSize))
	h.w.must(b.Flush())
	delete(h.w.wrote[volume], virtual)
}

func (w *world) header(h *node) (header layout.HostHeader) {
	w.Helper()
	w.with(layout.Host.Name(id(h.n)), func(v group.Volume) (err error) {
		header, _, err = layout.ReadHost(v, clusterID, id(h.n))
		return err
	})
	return header
}

// metadata are a host's that count, whatever is on its kernel.
func (w *world) metadata(h *node) devmappertest.Image {
	w.Helper()
	ctx, header := w.Context(), w.header(h)
	letter := string(rune('A' + header.Active))
	window, pool := device("metadata+"+letter), device("pool+"+letter)
	status, err := h.kernel.Status(ctx, pool, false)
	if errors.Is(err, failure.NotFound) {
		k, name := w.window(h, header.Windows[header.Active])
		image, err := k.ReadMetadata(name, 0)
		w.must(err)
		return image
	}
	w.must(err)
	if status.Pool.HeldRoot == 0 {
		w.must(h.kernel.Message(ctx, pool, devmapper.ReserveSnapshot()))
		defer func() { w.must(h.kernel.Message(ctx, pool, devmapper.ReleaseSnapshot())) }()
		status, err = h.kernel.Status(ctx, pool, false)
		w.must(err)
		image, err := h.kernel.ReadMetadata(window, status.Pool.HeldRoot)
		w.must(err)
		return image
	}
	// Somebody was killed who held some.
	w.must(h.kernel.Message(ctx, pool, devmapper.ReleaseSnapshot()))
	return w.metadata(h)
}

// cluster is everything as the rules see it.
func (w *world) cluster() invariant.Cluster {
	w.Helper()
	m, _ := w.readMap()
	c := invariant.Cluster{Map: m, Mappings: map[uint32]layout.Mapping{}, Images: map[uint32]invariant.Image{}}
	for _, v := range m.Volumes {
		c.Mappings[v.Number] = w.mapping(v)
	}
	for _, h := range w.hosts {
		if i := slices.IndexFunc(m.Hosts, func(r layout.HostRecord) bool { return r.Number == w.number(m, h) }); m.Hosts[i].State == layout.Recovered {
			continue
		}
		image := w.metadata(h)
		out := invariant.Image{Blocks: image.Blocks, Time: image.Time, Devices: map[uint32]invariant.Device{}}
		for number, d := range image.Devices {
			to := invariant.Device{Generation: d.Transaction, SnapTime: d.SnapTime}
			for virtual, at := range d.Mappings {
				to.Runs = append(to.Runs, invariant.Run{Virtual: virtual, Physical: at.Block, Length: 1, Time: at.Time})
			}
			out.Devices[number] = to
		}
		names, err := h.kernel.List(w.Context())
		w.must(err)
		for _, name := range names {
			volume, ours := strings.CutPrefix(name, device(""))
			if ours && !strings.Contains(volume, "+") {
				out.Active = append(out.Active, w.record(volume).Number)
			}
		}
		c.Images[w.number(m, h)] = out
	}
	return c
}

// check wants every rule kept and every volume to have what was written to it, read
// from where its data are, past the kernels.
func (w *world) check() {
	w.Helper()
	c := w.cluster()
	if found := invariant.Check(c); len(found) != 0 {
		w.Fatalf("%v", found)
	}
	if found := w.san.Violations(); len(found) != 0 {
		w.Fatalf("%v", found)
	}
	data := w.data()
	for _, v := range c.Map.Volumes {
		// It may have been made long after it was asked for, when the master was back.
		if of := w.clones[v.Name]; of != "" && w.wrote[v.Name] == nil {
			w.wrote[v.Name] = maps.Clone(w.wrote[of])
		}
		at := map[uint64]uint64{}
		if d, there := c.Images[v.Host].Devices[v.Number]; v.State.On() && there && d.Generation == v.Generation {
			for _, r := range d.Runs {
				at[r.Virtual] = r.Physical
			}
		} else {
			for _, r := range c.Mappings[v.Number].Runs {
				for i := range r.Length {
					at[r.Virtual+i] = r.Physical + i
				}
			}
		}
		for virtual := range uint64(perVolume) {
			want := w.wrote[v.Name][virtual]
			var got uint32
			if block, mapped := at[virtual]; mapped {
				got = data(block)
			}
			if got != want {
				w.Fatalf("volume %s: block %d has %d, was written with %d", v.Name, virtual, got, want)
			}
		}
	}
}

// data reads the stamp in a data block.
func (w *world) data() func(block uint64) uint32 {
	w.Helper()
	k := devmappertest.NewKernel(w.san)
	_, err := k.Create(w.Context(), "data", "", devmapper.Of(w.blocks*blockSize/512, devmapper.Linear{Device: w.disks[layout.DataName]}))
	w.must(err)
	b, err := k.Open(w.Context(), "data")
	w.must(err)
	return func(block uint64) uint32 {
		p := directio.Buffer(page)
		_, err := b.ReadAt(p, int64(block*blockSize))
		w.must(err)
		return binary.LittleEndian.Uint32(p)
	}
}

// reads wants a guest to read from a device what was written to its volume.
func (h *node) reads(volume string) {
	h.w.Helper()
	b := h.guest(volume)
	defer b.Close()
	for virtual := range uint64(perVolume) {
		p := directio.Buffer(page)
		_, err := b.ReadAt(p, int64(virtual*blockSize))
		h.w.must(err)
		if got := binary.LittleEndian.Uint32(p); got != h.w.wrote[volume][virtual] {
			h.w.Fatalf("volume %s: a guest reads %d in block %d, wrote %d", volume, got, virtual, h.w.wrote[volume][virtual])
		}
	}
}

func (h *node) start() {
	h.w.Helper()
	h.w.must(h.Start(h.w.Context()))
}

func (h *node) attach(volume string) {
	h.w.Helper()
	_, err := h.Attach(h.w.Context(), volume, attachOptions)
	h.w.must(err)
}

func (h *node) detach(volume string) {
	h.w.Helper()
	h.w.must(h.Detach(h.w.Context(), volume))
}

func (h *node) request(n uint64) {
	h.w.Helper()
	_, err := h.Request(h.w.Context(), n)
	h.w.must(err)
}
