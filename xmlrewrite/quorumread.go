// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/beevik/etree"
)

// isQuorum tells whether a <disk> is one of replicas.
func isQuorum(e *etree.Element) bool {
	return attr(e, "type") == "quorum" || attr(child(e, "driver"), "type") == "quorum"
}

// children returns all child elements of that name.
func children(e *etree.Element, local string) []*etree.Element {
	var all []*etree.Element
	for c := range e.ChildElementsSeq() {
		if is(c, "", local) {
			all = append(all, c)
		}
	}
	return all
}

func hasAttr(e *etree.Element, key string) bool {
	return slices.ContainsFunc(e.Attr, func(a etree.Attr) bool { return a.Space == "" && a.Key == key })
}

func readQuorum(e *etree.Element) (*QuorumDisk, error) {
	q := &QuorumDisk{Target: attr(child(e, "target"), "dev")}
	for _, name := range []string{"driver", "threshold", "target"} {
		if n := len(children(e, name)); n > 1 {
			return nil, q.errorf("it has %d <%s>s", n, name)
		}
	}
	driver := child(e, "driver")
	if kind, format := or(attr(e, "type"), "file"), or(attr(driver, "type"), "quorum"); kind != format {
		return nil, q.errorf("the disk is of type %q, its driver of type %q", clip(kind), clip(format))
	}
	if child(e, "source") != nil {
		return nil, q.errorf("it has a <source>: the images of its replicas stand in <backingStore>")
	}
	threshold, err := q.agreed(e, "threshold", "threshold", "value")
	if err != nil {
		return nil, err
	}
	if q.Threshold, err = strconv.Atoi(threshold); err != nil || strconv.Itoa(q.Threshold) != threshold {
		if threshold == "" {
			return nil, q.errorf("it has no threshold: write <threshold value='2'/>")
		}
		return nil, q.errorf("threshold %q is no number", clip(threshold))
	}
	if q.ReadPattern, err = q.agreed(e, "read_pattern", "", ""); err != nil {
		return nil, err
	}
	if q.ReadPattern == "quorum" {
		q.ReadPattern = ""
	}
	blkverify, err := q.agreed(e, "blkverify", "", "")
	if err != nil {
		return nil, err
	}
	switch blkverify {
	case "", "off", "no":
	case "on", "yes":
		q.Blkverify = true
	default:
		return nil, q.errorf("blkverify %q is neither on nor off", clip(blkverify))
	}
	if err := q.readReplicas(e); err != nil {
		return nil, err
	}
	return q, nil
}

// agreed returns a value that may be spelled as an attribute of the disk, as one
// of its driver, or in an element of its own. Those that are there must agree.
func (q *QuorumDisk) agreed(e *etree.Element, key, element, elementKey string) (string, error) {
	value, where := "", ""
	for _, at := range []struct {
		e   *etree.Element
		key string
		in  string
	}{
		{child(e, "driver"), key, "<driver>"}, {e, key, "<disk>"}, {child(e, or(element, "driver")), elementKey, "<" + element + ">"},
	} {
		if at.e == nil || at.key == "" || !hasAttr(at.e, at.key) {
			continue
		}
		v := attr(at.e, at.key)
		if where != "" && v != value {
			return "", q.errorf("%s is %q in %s and %q in %s", key, clip(value), where, clip(v), at.in)
		}
		value, where = v, at.in
	}
	return value, nil
}

func (q *QuorumDisk) readReplicas(e *etree.Element) error {
	stores := children(e, "backingStore")
	if len(stores) > maxReplicas {
		return q.errorf("it has %d replicas, more than %d", len(stores), maxReplicas)
	}
	for i, store := range stores {
		r := QuorumReplica{NodeName: attr(store, "nodename"), Open: true}
		for r.Open {
			layer, err := readReplicaLayer(store)
			if err != nil {
				return q.errorf("replica %d: %v", i+1, err)
			}
			r.Chain = append(r.Chain, layer)
			below := children(store, "backingStore")
			if len(below) > 1 {
				return q.errorf("replica %d: an image has %d <backingStore>s: only the disk itself has several", i+1, len(below))
			}
			if len(below) == 0 {
				break
			}
			store = below[0]
			r.Open = attr(store, "type") != ""
		}
		q.Replicas = append(q.Replicas, r)
	}
	return nil
}

func readReplicaLayer(store *etree.Element) (Layer, error) {
	kind := attr(store, "type")
	switch {
	case kind == "":
		return Layer{}, fmt.Errorf("its <backingStore> has no type")
	case kind == "quorum":
		return Layer{}, fmt.Errorf("it is a quorum itself, which is not supported")
	case child(store, "source") == nil:
		return Layer{}, fmt.Errorf("its <backingStore> has no <source>")
	}
	return readLayer(store, kind), nil
}
