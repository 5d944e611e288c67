// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"maps"
	"syscall"
	"time"

	"diskhook/storage/thin/devmapper"
)

// metadataReserve is what a pool always has in use, in blocks.
const metadataReserve = 10

// pool is a pool in the kernel: made by the first table that names it, gone with
// the last.
type pool struct {
	k              *Kernel
	holder         string // device whose tables have it
	refs           int    // tables
	metadata, data string // as in tables, made canonical
	metadataBlocks uint64
	store          *stored
	image          Image           // in core
	before         map[uint64]bool // allocated at the last commit
	fresh          map[uint64]bool // allocated since
	use            map[uint64]int  // how many mappings a block has
	heldUse        map[uint64]bool // blocks that the held metadata map
	dirty          bool
	cursor         uint64
	spec           devmapper.Pool
	mode           devmapper.Mode
	errorIfNoSpace bool
	deadline       time.Duration // when waiting writes fail; 0 never
	belowLow       bool          // the event was sent
	suspended      bool
	open           map[uint32]int // thin devices by their number: tables
}

func newPool(k *Kernel, holder string, spec devmapper.Pool, store *stored, metadataBlocks uint64) *pool {
	p := &pool{
		k: k, holder: holder, spec: spec, store: store, metadataBlocks: metadataBlocks, mode: devmapper.ReadWrite, suspended: true,
		open: map[uint32]int{}, use: map[uint64]int{}, heldUse: map[uint64]bool{},
	}
	p.load()
	return p
}

// load takes the metadata into core.
func (p *pool) load() {
	p.image = p.store.image.Clone()
	clear(p.use)
	for _, d := range p.image.Devices {
		for _, m := range d.Mappings {
			p.use[m.Block]++
		}
	}
	clear(p.heldUse)
	if p.store.root != 0 {
		p.heldUse = p.store.held.allocated()
	}
	p.settle()
}

// settle begins a transaction.
func (p *pool) settle() {
	p.before = map[uint64]bool{}
	for b := range p.use {
		p.before[b] = true
	}
	maps.Copy(p.before, p.heldUse)
	p.fresh = map[uint64]bool{}
	p.dirty = false
}

// commit writes what is in core. It is when freed blocks can be used again.
func (p *pool) commit() {
	if p.mode == devmapper.ReadOnly || p.k.dead {
		return
	}
	if p.dirty {
		p.store.image = p.image.Clone()
	}
	p.settle()
	if p.mode == devmapper.OutOfDataSpace && p.free() > 0 {
		p.setMode(devmapper.ReadWrite)
	}
}

// free is what the kernel reports and allocates from.
func (p *pool) free() uint64 { return p.image.Blocks - uint64(len(p.before)) - uint64(len(p.fresh)) }

func (p *pool) setMode(mode devmapper.Mode) {
	if mode == devmapper.ReadWrite && p.image.NeedsCheck {
		mode = devmapper.ReadOnly
	}
	if mode != p.mode {
		p.k.event(p.holder)
	}
	p.mode, p.deadline = mode, 0
	switch mode {
	case devmapper.ReadWrite:
		p.errorIfNoSpace = p.spec.Features.ErrorIfNoSpace
	case devmapper.OutOfDataSpace:
		if !p.errorIfNoSpace && p.k.timeout > 0 {
			p.deadline = p.k.now + p.k.timeout
		}
	}
	p.k.cond.Broadcast()
}

// allocate takes the first free block at or after the cursor. ok is false when
// there is none, even after a commit; the pool is out of data space then.
func (p *pool) allocate() (block uint64, ok bool) {
	if p.free() <= p.spec.LowWater && !p.belowLow {
		p.belowLow = true
		p.k.event(p.holder)
	}
	if p.free() == 0 {
		p.commit()
		if p.free() == 0 {
			p.setMode(devmapper.OutOfDataSpace)
			return 0, false
		}
	}
	for range p.image.Blocks {
		b := p.cursor % p.image.Blocks
		p.cursor = b + 1
		if !p.before[b] && p.use[b] == 0 {
			p.fresh[b], p.dirty = true, true
			return b, true
		}
	}
	panic("devmappertest: free blocks that cannot be found")
}

// put lets a mapping of a block go.
func (p *pool) put(b uint64) {
	p.dirty = true
	if p.use[b]--; p.use[b] == 0 {
		delete(p.use, b)
		delete(p.fresh, b)
	}
}

// root is the first block that no tree begins in, neither in core nor committed nor
// held: one that was given up is used again.
func (p *pool) root() uint64 {
	for b := uint64(1); ; b++ {
		if p.image.roots(b)+p.store.image.roots(b)+p.store.held.roots(b) == 0 {
			return b
		}
	}
}

// shadow is for a tree of mappings that is about to change: unless this transaction
// wrote it and it is nobody else's, the change goes to a copy.
func (p *pool) shadow(id uint32) {
	d := p.image.Devices[id]
	if p.image.roots(d.Root) > 1 || p.store.image.roots(d.Root)+p.store.held.roots(d.Root) > 0 {
		d.Root = p.root()
		p.image.Devices[id] = d
	}
}

// message does what a message says.
func (p *pool) message(m devmapper.Message) syscall.Errno {
	if p.mode == devmapper.ReadOnly {
		return syscall.EOPNOTSUPP
	}
	words, numbers := parseMessage(m)
	do, ok := map[string]func(a, b uint64) syscall.Errno{
		"create_thin/1":           func(a, _ uint64) syscall.Errno { return p.createThin(a) },
		"create_snap/2":           p.createSnap,
		"delete/1":                func(a, _ uint64) syscall.Errno { return p.deleteThin(a) },
		"set_transaction_id/2":    p.setTransaction,
		"reserve_metadata_snap/0": func(uint64, uint64) syscall.Errno { return p.reserve() },
		"release_metadata_snap/0": func(uint64, uint64) syscall.Errno { return p.release() },
	}[words]
	if !ok {
		return syscall.EINVAL
	}
	if errno := do(numbers[0], numbers[1]); errno != 0 {
		return errno
	}
	p.dirty = true
	p.commit()
	return 0
}

func (p *pool) createThin(id uint64) syscall.Errno {
	if id > devmapper.MaxID {
		return syscall.EINVAL
	}
	if _, there := p.image.Devices[uint32(id)]; there {
		return syscall.EEXIST
	}
	p.image.Devices[uint32(id)] = ThinImage{p.image.Transaction, p.image.Time, p.image.Time, map[uint64]Mapped{}, p.root()}
	return 0
}

func (p *pool) createSnap(id, origin uint64) syscall.Errno {
	if id > devmapper.MaxID || origin > devmapper.MaxID {
		return syscall.EINVAL
	}
	if _, there := p.image.Devices[uint32(id)]; there {
		return syscall.EEXIST
	}
	from, there := p.image.Devices[uint32(origin)]
	if !there {
		return syscall.ENODATA
	}
	p.image.Time++
	from.SnapTime = p.image.Time
	p.image.Devices[uint32(origin)] = from
	p.image.Devices[uint32(id)] = ThinImage{p.image.Transaction, p.image.Time, p.image.Time, maps.Clone(from.Mappings), from.Root}
	for _, m := range from.Mappings {
		p.use[m.Block]++
	}
	return 0
}

func (p *pool) deleteThin(id uint64) syscall.Errno {
	if id > devmapper.MaxID {
		return syscall.EINVAL
	}
	d, there := p.image.Devices[uint32(id)]
	switch {
	case !there:
		return syscall.ENODATA
	case p.open[uint32(id)] > 0:
		return syscall.EBUSY
	}
	for _, m := range d.Mappings {
		p.put(m.Block)
	}
	delete(p.image.Devices, uint32(id))
	return 0
}

func (p *pool) setTransaction(from, to uint64) syscall.Errno {
	if p.image.Transaction != from {
		return syscall.EINVAL
	}
	p.image.Transaction = to
	return 0
}

func (p *pool) reserve() syscall.Errno {
	if p.store.root != 0 {
		return syscall.EBUSY
	}
	p.commit()
	p.store.root, p.store.held = metadataReserve+1, p.image.Clone()
	p.heldUse = p.store.held.allocated()
	return 0
}

func (p *pool) release() syscall.Errno {
	if p.store.root == 0 {
		return syscall.EINVAL
	}
	p.store.root, p.store.held = 0, Image{}
	clear(p.heldUse)
	return 0
}

func (p *pool) status() devmapper.PoolStatus {
	mappings := 0
	for _, d := range p.image.Devices {
		mappings += len(d.Mappings)
	}
	discard := "discard_passdown"
	switch {
	case p.spec.Features.IgnoreDiscard:
		discard = "ignore_discard"
	case p.spec.Features.NoPassdown:
		discard = "no_discard_passdown"
	}
	return devmapper.PoolStatus{
		Transaction: p.image.Transaction, MetadataUsed: min(p.metadataBlocks, metadataReserve+uint64(mappings)/250), MetadataTotal: p.metadataBlocks,
		DataUsed: p.image.Blocks - p.free(), DataTotal: p.image.Blocks, HeldRoot: p.store.root, Mode: p.mode, Discard: discard,
		ErrorIfNoSpace: p.errorIfNoSpace, NeedsCheck: p.image.NeedsCheck, MetadataLowWater: min(1024, p.metadataBlocks/4),
	}
}
