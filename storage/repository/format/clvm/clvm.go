// SPDX-License-Identifier: Apache-2.0

// Package clvm is the format clvm-1.2: a volume group that several hosts have, with a
// logical volume for each volume, and one for the documents.
//
// Parameters: vg, the group's name; writer, the machine id of the one host that may write,
// for a group without a lock manager; documents, for how many there is room in a new
// repository, where 8192 are not right to begin with.
//
// # Who keeps hosts apart
//
// A group that lvmlockd(8) locks (sanlock or dlm) is used by all its hosts at once.
// Volumes that are written are activated exclusively: no other host can have them
// active, nor remove them, before this one has let go of them or its lock manager has
// seen to it that it is dead. So a host that was paused and wakes up cannot write into
// blocks that belong to another volume by now.
//
// Any other group is refused, as two hosts would destroy it, unless the parameters say
// that one host alone writes. That is recorded in the header: other hosts may look at the
// documents, and are refused everything else, data included, since the writer could not
// know that they read it, and might give its blocks away. Another host becomes the writer
// by `diskhook repo create --set writer=NEW --set instead-of=OLD`, which is for the operator
// to decide.
//
// # Locks
//
// On one host they are flock(2). Where others write, too, a lock is an entry in the
// host's slot as well (register.go). Each host writes only its own, announces a lock, then
// reads all others': of two that do so at once at least one sees the other. Entries are renewed.
// A process that did not renew its own for 10 s has lost the lock for good, by its
// own clock, and one whose entry has not changed for 15 s is taken for dead by others: they
// note that and pass its entry over. The next holder is told (TakenOver) and starts in new volumes.
// Check is asked right before a document is written; what is left is the time
// between the two, in which a process would have to sleep for 5 s, and its host's lock
// manager let it.
//
// # Documents
//
// The volume dh_documents, all in blocks of 4 KiB, past the page cache, little-endian:
//
//	0        slot of the header, which is JSON
//	64 KiB   64 slots of hosts, JSON
//	1 MiB    buckets of 16 slots; a document is in one of two, by FNV-1a of kind and id;
//	         the last slot of a bucket is for who is about to remove something
//
// When no slot is left for a document a further volume dh_documents_N is added (grow.go),
// with a header and buckets of its own at the same places. The header of the first names all
// of them, and is of version 2 then, which an older diskhook refuses. Everybody asks
// it before he looks for a document (parts.go), so that all hosts have what one has added.
// A document stays in the volume in which it was made.
//
// A slot has two blocks A and B. A write replaces the older one, and the newer one counts;
// half a write is a wrong checksum, and then the other one does. A block:
//
//	 0  8  "dh-clvm\n"          16 16  UUID of the area, as in the header
//	 8  4  CRC-32C of the rest  32 16  id of the document
//	12  1  version (1)          48  8  sequence
//	13  1  kind, f is free      56     contents
//	14  2  length of contents
//
// # Volumes
//
// UUID.raw and UUID.qcow2, tagged DH_REPO:AREA; others in the group are nobody's business
// here. They are thick, and made large enough for the most that their image may take.
// What an earlier owner left in them is overwritten by whoever fills them; DH_NEW and DH_GROW
// (volume.go) say what of that has to be done first.
//
// # How it fails
//
// A slot of which both blocks are unreadable is a failure.Problems for what may be
// there: a document may be missing, so that is not said not to exist, and nothing is
// cleaned. The rest can be read, and a wreck be cleared once that was confirmed. No slot left, and
// no room in the group for more, is a failure.NoSpace, a group that is away a failure.Precondition.
package clvm

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lvm"
	"diskhook/storage/repository/format"
)

// Name is the format's.
const Name = "clvm-1.2"

// documentsLV is the volume of documents.
const documentsLV = "dh_documents"

// Format implements format.Format. All fields but Beat, Buckets and Await are needed.
type Format struct {
	LVM *lvm.LVM
	Dev string // where the groups' directories of nodes are
	// HostID tells hosts apart, BootID the boots of one.
	HostID, BootID string
	// Number is the host's, 1 to 64, each another; 0 will do where one host writes.
	Number int
	// Locks and Cursors are directories of this host.
	Locks, Cursors string
	// Beat is how often a lock's holder says that it lives; 0 is 1 s. All hosts
	// have the same.
	Beat time.Duration
	// Buckets of a new repository, each for 16 documents; 0 is 512.
	Buckets int
	// Await waits for a node; nil is blockdev.WaitNode.
	Await func(ctx context.Context, path string) error
}

// Name implements format.Format.
func (Format) Name() string { return Name }

func (f Format) awaitNode(ctx context.Context, path string) error {
	if f.Await != nil {
		return f.Await(ctx, path)
	}
	_, err := blockdev.WaitNode(ctx, path)
	return err
}

// settings are the parameters.
type settings struct {
	vg, writer, instead string
	buckets             int // 0: as many as usual
}

func parse(parameters map[string]string) (settings, error) {
	s := settings{}
	for name, value := range parameters {
		switch name {
		case "vg":
			s.vg = value
		case "writer":
			s.writer = value
		case "instead-of":
			s.instead = value
		case "documents":
			n, err := strconv.Atoi(value)
			if err != nil || n < bucketSlots || n > maxBuckets*bucketSlots {
				return s, failure.New(failure.Usage, "%s: documents %q: not a number from %d to %d", Name, value, bucketSlots, maxBuckets*bucketSlots)
			}
			s.buckets = (n + bucketSlots - 1) / bucketSlots
		default:
			return s, failure.New(failure.Usage, "%s: parameter %q: there are vg, writer, instead-of and documents", Name, name)
		}
	}
	if !host.LVMName(s.vg) {
		return s, failure.New(failure.Usage, "%s: vg %q: not a name that LVM takes", Name, s.vg)
	}
	for name, id := range map[string]string{"writer": s.writer, "instead-of": s.instead} {
		if id != "" && !hostID(id) {
			return s, failure.New(failure.Usage, "%s: %s %q: not the machine id of a host", Name, name, id)
		}
	}
	if s.instead != "" && s.writer == "" {
		return s, failure.New(failure.Usage, "%s: instead-of without writer", Name)
	}
	return s, nil
}

// hostID admits machine ids, and names of hosts.
func hostID(s string) bool { return host.LVMName(s) && len(s) <= 64 }

// group looks at the volume group and refuses one that hosts would destroy.
func (f Format) group(ctx context.Context, s settings) (lvm.Report, error) {
	report, err := f.LVM.Report(ctx, s.vg)
	if err != nil {
		return report, err
	}
	switch {
	case report.VG.LockType != "" && s.writer != "":
		err := failure.New(failure.Usage, "vg %s: its hosts are kept apart by %s: it needs no single writer", s.vg, report.VG.LockType)
		return report, failure.Hint(err, "leave --set writer out")
	case report.VG.LockType == "" && s.writer == "":
		err := failure.New(failure.Precondition, "vg %s: nothing keeps two hosts from changing it at once", s.vg)
		return report, failure.Hint(err, "make it one of lvmlockd's with `vgchange --lock-type sanlock %s`, or declare this host its only writer with --set writer=%s", s.vg, f.HostID)
	case report.VG.LockType != "" && (f.Number < 1 || f.Number > maxHost):
		err := failure.New(failure.Precondition, "vg %s: it is shared, and this host has no number", s.vg)
		return report, failure.Hint(err, "set [repository] host_id in diskhook.toml, 1 to %d, on each host another; that of lvmlocal.conf will do", maxHost)
	}
	return report, nil
}

// Open implements format.Format.
func (f Format) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	s, err := parse(parameters)
	if err != nil {
		return nil, err
	}
	report, err := f.group(ctx, s)
	if err != nil {
		return nil, err
	}
	p, err := f.open(ctx, s, report)
	if err != nil {
		return nil, err
	}
	if p.area.Writer != s.writer {
		err := failure.Hint(readOnly(s.vg, p.area.Writer), "connect it with --set writer=%s to read there; `diskhook repo create --format %s --set vg=%s --set writer=%s --set instead-of=%s REPO` makes this host the writer",
			p.area.Writer, Name, s.vg, f.HostID, p.area.Writer)
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (f Format) open(ctx context.Context, s settings, report lvm.Report) (*place, error) {
	lv, ok := report.LV(documentsLV)
	if !ok || slices.Contains(lv.Tags, tagNew) || !slices.ContainsFunc(lv.Tags, isOurs) {
		return nil, failure.New(failure.NotFound, "vg %s: no repository is here: there is no volume %s of diskhook's", s.vg, documentsLV)
	}
	if f.Beat == 0 {
		f.Beat = time.Second
	}
	p := &place{host: f, vg: s.vg, granule: report.VG.ExtentSize, area: &area{header: header{Writer: s.writer}}}
	if err := p.activate(ctx, lv, false); err != nil {
		return nil, err
	}
	a, err := openArea(p.node(documentsLV), s.vg+"/"+documentsLV, s.writer == "" || s.writer == f.HostID)
	if err != nil {
		return nil, err
	}
	p.area, p.locks = a, filepath.Join(f.Locks, "clvm-"+a.Area)
	err = p.join(ctx, a, report)
	if err == nil && p.writable() == nil {
		err = errors.Join(atomicfile.MkdirAll(p.locks, 0o700), atomicfile.MkdirAll(f.Cursors, 0o700))
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// readOnly says who writes.
func readOnly(vg, writer string) error {
	return failure.New(failure.Precondition, "vg %s: host %s alone writes to it", vg, writer)
}

type place struct {
	host    Format
	vg      string
	area    *area
	granule int64    // of the group, in bytes
	locks   string   // directory
	uuids   sync.Map // LVM's own, by the ids of volumes
	shares  shares
}

// writable refuses this host if another one alone writes.
func (p *place) writable() error {
	if w := p.area.Writer; w != "" && w != p.host.HostID {
		return failure.Hint(readOnly(p.vg, w), "do it on that host; `diskhook repo create --format %s --set vg=%s --set writer=%s --set instead-of=%s REPO` makes this host the writer, once that one is gone for good",
			Name, p.vg, p.host.HostID, w)
	}
	return nil
}

func (p *place) report(ctx context.Context) (lvm.Report, error) {
	return p.host.LVM.Report(ctx, p.vg)
}

// Close implements format.Place. Volumes stay as they are.
func (p *place) Close() error {
	if p == nil || p.area.dev == nil {
		return nil
	}
	p.leaveShares()
	return errors.Join(p.area.parts.close(), p.area.dev.Close())
}

// Leave implements format.Place: nobody here needs the documents' volume, and the group can be
// taken from this host.
func (p *place) Leave(ctx context.Context) error {
	names := p.area.names()
	err := p.Close()
	for _, name := range names {
		if off := p.host.LVM.Deactivate(ctx, p.vg, name); !errors.Is(off, lvm.ErrInUse) {
			err = errors.Join(err, off)
		}
	}
	return err
}

// Capabilities implements format.Place.
func (p *place) Capabilities() format.Capabilities {
	c := format.Capabilities{
		Format: Name, Shared: p.area.Writer == "", ReadOnly: p.writable() != nil,
		Stale: true, Granule: p.granule,
	}
	if c.Shared {
		c.Takeover = (judgeBeats + 2) * p.host.Beat
	}
	return c
}
