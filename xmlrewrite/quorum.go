// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Limits on a quorum that is read or written.
const (
	maxReplicas = 32
	maxLayers   = 200 // of one chain, as in libvirt
)

// QuorumDisk is a disk of several replicas that vote: a read succeeds with what
// at least Threshold of them agree on, a write when as many have taken it.
//
//	<disk type='quorum' device='disk'>
//	  <driver name='qemu' type='quorum'/>
//	  <threshold value='2'/>
//	  <backingStore type='file' nodename='r1'>
//	    <format type='qcow2'/>
//	    <source file='/srv/1.qcow2'/>
//	    <backingStore/>
//	  </backingStore>
//	  <backingStore type='file'>…</backingStore>
//	  <backingStore type='file'>…</backingStore>
//	  <target dev='vda' bus='virtio'/>
//	</disk>
//
// libvirt has no such disk. The element is the one that was proposed to it in
// 2014, well-formed; the threshold may also be an attribute of the disk or of its
// driver, as in later versions of that proposal. What QEMU's driver knows beyond
// (qapi BlockdevOptionsQuorum) are attributes of ours on <driver>:
// read_pattern='fifo', blkverify='on'.
type QuorumDisk struct {
	Target    string
	Threshold int
	// ReadPattern is "" (all replicas are read and vote) or "fifo" (the first
	// replica without an I/O error is believed).
	ReadPattern string
	Blkverify   bool // QEMU exits when its two replicas differ
	Replicas    []QuorumReplica
}

// QuorumReplica is one replica: an image with all that lies below it.
type QuorumReplica struct {
	NodeName string  // of the block node in QEMU; "" lets it be derived
	Chain    []Layer // from the top
	// Open says that the element named the upper layers alone: what lies below
	// the last one only its header tells.
	Open bool
}

// Quorum reads the disk of that target as a quorum; false if it is another
// kind of disk. An element that contradicts itself, or that no quorum can be
// read from, is ErrQuorum; an ambiguous or unknown target is an error as in
// EditDisk. Whether the quorum can work is for Check to say.
func (d *Document) Quorum(target string) (*QuorumDisk, bool, error) {
	i, err := d.findDisk(target)
	if err != nil {
		return nil, false, err
	}
	e := readTree(d.pieces[i].raw, d.pieces[i].in, nil)
	if !isQuorum(e) {
		return nil, false, nil
	}
	q, err := readQuorum(e)
	return q, err == nil, err
}

// ReadQuorum reads all quorum disks of a document, in its order.
func ReadQuorum(d *Document) ([]*QuorumDisk, error) {
	var all []*QuorumDisk
	for _, p := range d.pieces {
		if p.kind != diskPiece {
			continue
		}
		if e := readTree(p.raw, p.in, nil); isQuorum(e) {
			q, err := readQuorum(e)
			if err != nil {
				return nil, err
			}
			all = append(all, q)
		}
	}
	return all, nil
}

// Check finds what would keep QEMU from opening the quorum, or make it worth
// less than it looks: ErrQuorum, in one line that names the fault. That the
// replicas are there, and of one size, only their storage can tell.
func (q *QuorumDisk) Check() error {
	n := len(q.Replicas)
	switch {
	case q.Target == "":
		return fmt.Errorf("%w: the disk has no target", ErrQuorum)
	case n < 2:
		return q.errorf("it has %s, and needs at least 2 (one <backingStore> of the disk for each, side by side)", count(n, "replica"))
	case n > maxReplicas:
		return q.errorf("it has %d replicas, more than %d", n, maxReplicas)
	case q.Threshold < 1:
		return q.errorf("threshold %d: at least 1 replica has to vote", q.Threshold)
	case q.Threshold > n:
		return q.errorf("threshold %d, but it has only %s", q.Threshold, count(n, "replica"))
	case q.ReadPattern != "" && q.ReadPattern != "fifo":
		return q.errorf("read pattern %s: quorum and fifo are known", clip(strconv.Quote(q.ReadPattern)))
	case q.Blkverify && (n != 2 || q.Threshold != 2):
		return q.errorf("blkverify compares exactly 2 replicas with threshold 2, not %d with threshold %d", n, q.Threshold)
	case q.Blkverify && q.ReadPattern == "fifo":
		return q.errorf("blkverify compares what the read pattern fifo does not read")
	}
	if err := q.checkChains(); err != nil {
		return err
	}
	return q.checkDistinct()
}

func (q *QuorumDisk) checkChains() error {
	names := map[string]int{}
	for i, r := range q.Replicas {
		switch {
		case len(r.Chain) == 0:
			return q.errorf("replica %d has no image", i+1)
		case len(r.Chain) > maxLayers:
			return q.errorf("replica %d: a chain of more than %d images", i+1, maxLayers)
		}
		for _, l := range r.Chain {
			l = l.normal()
			if why := l.refused(); why != "" {
				return q.errorf("replica %d: %s: %s", i+1, clip(l.Source.String()), why)
			}
		}
		if r.NodeName == "" {
			continue
		}
		if !isNodeName(r.NodeName) {
			return q.errorf("replica %d: %q is no node name (a letter, then letters, digits and -._, less than 32)", i+1, clip(r.NodeName))
		}
		if first, twice := names[r.NodeName]; twice {
			return q.errorf("replicas %d and %d both have the node name %s", first+1, i+1, r.NodeName)
		}
		names[r.NodeName] = i
	}
	return nil
}

// refused says what of a layer no quorum can take, or "".
func (l Layer) refused() string {
	s := l.Source
	switch {
	case l.Type != "file" && l.Type != "block" && l.Type != "network":
		return fmt.Sprintf("a replica cannot be of type %q", clip(l.Type))
	case l.Format == "":
		return "its format is missing"
	case l.Type == "network" && s.Protocol == "":
		return "its protocol is missing"
	case l.Type != "network" && s.Path() == "":
		return "its path is missing"
	case l.Type != "network" && !strings.HasPrefix(s.Path(), "/"):
		return "its path is not absolute"
	case or(s.StartupPolicy, "mandatory") != "mandatory":
		return "its startupPolicy is " + clip(s.StartupPolicy) + ", but which replicas may be missing the threshold says"
	case s.HasSlices, s.HasDataStore, s.HasReservations, s.HasEncryption, s.HasCookies, s.FDGroup != "":
		return "slices, data stores, reservations, encryption, cookies and descriptors are not supported"
	}
	return ""
}

// checkDistinct finds an image that is in two chains, or twice in one. A base
// that two replicas share would be one copy under two votes.
func (q *QuorumDisk) checkDistinct() error {
	seen := map[string]int{}
	for i, r := range q.Replicas {
		for _, l := range r.Chain {
			l = l.normal()
			key := l.Source.identity()
			switch first, twice := seen[key]; {
			case twice && first == i:
				return q.errorf("replica %d has %s twice in its chain", i+1, clip(l.Source.String()))
			case twice:
				return q.errorf("replicas %d and %d are not distinct: both have %s", first+1, i+1, clip(l.Source.String()))
			}
			seen[key] = i
		}
	}
	return nil
}

// identity is the same for two spellings of one image, as far as their text
// can tell.
func (s Source) identity() string {
	if s.Type != "network" {
		return path.Clean(s.Path())
	}
	ports := map[string]string{"nbd": "10809", "iscsi": "3260", "rbd": "6789"}
	var hosts []string
	for _, h := range s.Hosts {
		if h.Socket != "" {
			hosts = append(hosts, path.Clean(h.Socket))
		} else {
			hosts = append(hosts, strings.ToLower(h.Name)+":"+or(h.Port, ports[s.Protocol]))
		}
	}
	slices.Sort(hosts)
	return fmt.Sprintf("%s %q %q", s.Protocol, s.Name, hosts)
}

// isNodeName tells whether QEMU takes the name for a block node: 31 bytes at
// most (qapi BlockdevOptions), as id_wellformed() wants them.
func isNodeName(s string) bool {
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9') && c != '-' && c != '.' && c != '_') {
			return false
		}
	}
	return s != "" && len(s) < 32
}

func (q *QuorumDisk) errorf(format string, args ...any) error {
	return fmt.Errorf("disk %s: %w: %s", clip(q.Target), ErrQuorum, fmt.Sprintf(format, args...))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
